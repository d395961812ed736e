"""Rows of bytes in memory: the base of a partition's tables. Uses neither Kafka nor disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Load", "Rows", "joined"]

Load = Callable[[Sequence[bytes]], Sequence[bytes | None]]
"Loads the stored rows of keys, None for a key without a row."


def joined(rows: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join rows into one array; returns it, uint8 `(bytes,)`, and each row's start and the last one's end, int64 `(n + 1,)`."""
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=starts[1:])
    return np.frombuffer(b"".join(rows), np.uint8), starts


class Rows:
    """Rows in memory: rows changed since they were last taken, and a cache of others."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rows: dict[bytes, bytes | None] = {}
        self._dirty: set[bytes] = set()
        self.held = 0
        "Size of all rows in memory, in bytes."

    def _taken(self) -> dict[bytes, bytes | None]:
        taken = {key: self._rows[key] for key in self._dirty}
        self._dirty = set()
        return taken

    def trim(self, most: int, most_bytes: int) -> None:
        """Drop unchanged rows, oldest first, until at most `most` rows and `most_bytes` bytes remain or all others changed."""
        excess, over = len(self._rows) - most, self.held - most_bytes
        if excess <= 0 and over <= 0:
            return
        dropped = []
        for key, row in self._rows.items():
            if excess <= 0 and over <= 0:
                break
            if key not in self._dirty:
                dropped.append(key)
                excess, over = excess - 1, over - len(row or b"")
        for key in dropped:
            self.held -= len(self._rows.pop(key) or b"")
