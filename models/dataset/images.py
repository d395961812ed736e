"""Whether something is an image, by its first bytes."""

from __future__ import annotations

from pathlib import Path

__all__ = ["begins_as_image", "is_image"]

STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")
"PNG, JPEG, GIF, BMP and TIFF."


def is_image(path: Path) -> bool:
    """Whether a file begins as an image of a known kind does; what follows may still be damaged.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return begins_as_image(file.read(12))


def begins_as_image(start: bytes) -> bool:
    """Whether these bytes, of which the first 12 count, begin an image of a known kind."""
    return start.startswith(STARTS) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
