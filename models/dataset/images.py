"""Detection of images by their first bytes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["begins_as_image", "is_image"]

STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")
"First bytes of PNG, JPEG, GIF, BMP and TIFF files."


def is_image(path: Path) -> bool:
    """Return whether a file begins like an image of a known format. The rest may still be damaged.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return begins_as_image(file.read(12))


def begins_as_image(start: bytes) -> bool:
    """Return whether the first 12 bytes of `start` are those of an image of a known format."""
    return start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
