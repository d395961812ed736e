"""Reading of a dataset's text files by lines, numbered as in an editor."""

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
"First bytes of file formats that are often saved with a wrong suffix."


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open the file as UTF-8 text. Lines end with LF, CRLF or CR; each invalid byte becomes a surrogate (see `is_utf8`).

    Raises:
        BadDataset: `not_text`, the file is in UTF-16 or UTF-32, or is not text.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        _check(path, file.read(SNIFFED))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        yield lines


def is_utf8(text: str) -> bool:
    """Return whether a text that `opened` has read was valid UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """Format a text for messages: quoted, with escapes for invalid UTF-8."""
    return shown(text.encode(errors="surrogateescape").decode(errors="backslashreplace"))


def _check(path: Path, start: bytes) -> None:
    for magic, what in BINARY.items():
        if start.startswith(magic):
            raise BadDataset("not_text", f"{path.name} is {what}: write it as text in UTF-8")
    # JSON begins with ASCII characters, and a CSV header contains no NUL
    head = start[:4] if path.suffix == ".jsonl" else start.splitlines()[0] if start else b""
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        raise BadDataset("not_text", f"{path.name} is not UTF-8 text but probably UTF-16: save it as UTF-8")
