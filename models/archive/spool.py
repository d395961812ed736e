"""Local cache of a remote store's files. Files are fetched when they are read and deleted when the process ends."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

__all__ = ["Spool"]

ROOM = 4 << 30
"Maximum size on disk in bytes, in the system's temporary folder (TMPDIR). Files that are being read may exceed it."


@dataclass(slots=True, eq=False)
class _Held:
    local: Path
    fetching: Lock = field(default_factory=Lock)
    size: int = -1
    "Size in bytes; -1 until the file is fetched."
    readers: int = 0


class Spool:
    """Local copies of immutable files. The least recently used are deleted to make room. Thread-safe."""

    def __init__(self, fetch: Callable[[str, Path], None], room: int = ROOM) -> None:
        """Create an empty cache. `fetch(path, local)` writes the remote file at `path` to `local`; `room`: bytes."""
        self._fetch, self._room = fetch, room
        self._folder: Path | None = None
        self._held: dict[str, _Held] = {}
        "Copies by path, the most recently used last."
        self._made = 0
        self._lock = Lock()

    @contextmanager
    def file(self, path: str) -> Iterator[Path]:
        """Provide the local copy while the context is open; errors of `fetch` are raised unchanged."""
        held = self._take(path)
        try:
            with held.fetching:
                if held.size < 0:
                    try:
                        self._fetch(path, held.local)
                    except BaseException:
                        held.local.unlink(missing_ok=True)
                        raise
                    held.size = held.local.stat().st_size
            yield held.local
        finally:
            with self._lock:
                held.readers -= 1
                self._make_room()

    def _take(self, path: str) -> _Held:
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="riffle-archive-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            held = self._held.pop(path, None)
            if held is None:
                held = _Held(self._folder / f"{self._made}.parquet")
                self._made += 1
            self._held[path] = held
            held.readers += 1
            return held

    def _make_room(self) -> None:
        over = sum(max(held.size, 0) for held in self._held.values()) - self._room
        for path, held in list(self._held.items()):
            if over <= 0:
                return
            if not held.readers:
                over -= max(held.size, 0)
                held.local.unlink(missing_ok=True)
                del self._held[path]
