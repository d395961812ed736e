"""Values that are read from files, and read again when a file changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from schemas.errors import ConfigError
from schemas.parsing import demand, variable

__all__ = ["Stamp", "Watched", "secret_in", "stamp", "stamp_of"]

T = TypeVar("T")
Stamp = tuple[int, int, int]
"Identity of a file's content: its inode, the time of its last change in ns, and its size in bytes."
NOTHING: Stamp = (0, 0, 0)


def stamp(file: str) -> Stamp:
    """Return the stamp of a file; `NOTHING` if none is named. Raises OSError if it cannot be looked at."""
    if not file:
        return NOTHING
    found = Path(file).stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def stamp_of(file: str) -> Stamp:
    """Return the stamp of a file; `NOTHING` if none is named, or it cannot be looked at."""
    try:
        return stamp(file)
    except OSError:
        return NOTHING


def secret_in(file: str, setting: str) -> str:
    """Return the secret that a file holds, without the line breaks at its end. `setting`: its name, for errors.

    Raises:
        ConfigError: the file cannot be read, is empty, or is not one line of UTF-8. The message does not quote it.
    """
    try:
        found = Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as exc:
        raise ConfigError("invalid_setting", f"{variable(setting)} cannot be read: {exc}", setting) from exc
    except ValueError:  # not chained, because a UnicodeDecodeError quotes the bytes
        found = None
    if found is None:
        raise ConfigError("invalid_setting", f"{variable(setting)} must hold UTF-8 text", setting)
    demand(bool(found), setting, "is empty")
    return found


class Watched(Generic[T]):
    """A value that is read at once, and again after one of its files has changed.

    If a changed file cannot be used, the value stays as it was, and `failed` is called once for that change with the error.
    """

    def __init__(self, files: tuple[str, ...], read: Callable[[], T], failed: Callable[[ConfigError], None]) -> None:
        """Read the value.

        Raises:
            ConfigError: as `read`.
        """
        self._files, self._read, self._failed = files, read, failed
        self._stamps = self._now()
        self._value = read()

    def _now(self) -> tuple[Stamp, ...]:
        return tuple(stamp_of(file) for file in self._files)

    def value(self) -> T:
        """Return the current value; looks at the files' stamps, which takes some microseconds."""
        now = self._now()
        if now != self._stamps:
            # the stamps of before the read: a change during it is then seen the next time
            self._stamps = now
            try:
                self._value = self._read()
            except ConfigError as error:
                self._failed(error)
        return self._value
