"""Text files of datasets as lines, numbered as an editor numbers them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from schemas.errors import BadDataset
from schemas.parsing import shown

__all__ = ["escaped", "is_utf8", "opened"]

SNIFFED = 1_024
BINARY = {
    b"PK\x03\x04": "a spreadsheet or a ZIP archive",
    b"\x1f\x8b": "compressed by gzip",
    b"(\xb5/\xfd": "compressed by zstd",
    b"PAR1": "a Parquet file",
}
"First bytes of files that often carry the wrong suffix."


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """The file as UTF-8 text. A line ends with LF, CRLF or CR; each byte that is no UTF-8 is a surrogate (see `is_utf8`).

    Raises:
        BadDataset: `not_text`, the file is in UTF-16 or UTF-32, or is no text.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        _check(path, file.read(SNIFFED))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield lines


def is_utf8(text: str) -> bool:
    """Whether a text that was read by `opened` was UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """The text as a message shows it, quoted, with escapes for what is no UTF-8."""
    return shown(text.encode(errors="surrogateescape").decode(errors="backslashreplace"))


def _check(path: Path, start: bytes) -> None:
    for magic, what in BINARY.items():
        if start.startswith(magic):
            raise BadDataset("not_text", f"{path.name} is {what}: write it as text in UTF-8")
    # the first of JSON's characters are ASCII, and a CSV header holds no NUL
    head = start[:4] if path.suffix == ".jsonl" else start.splitlines()[0] if start else b""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise BadDataset("not_text", f"{path.name} is no UTF-8 text, but probably UTF-16: save it as UTF-8")
