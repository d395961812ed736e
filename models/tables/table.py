"""Rows of bytes in memory, as the tables of a partition keep them. No Kafka and no disk in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Load", "Rows", "joined"]

Load = Callable[[Sequence[bytes]], Sequence[bytes | None]]
"Stored rows of keys, None where there is none."


def joined(rows: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The rows in one array, and where each starts and the last ends: uint8 `(bytes,)`, int64 `(n + 1,)`."""
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=starts[1:])
    return np.frombuffer(b"".join(rows), np.uint8), starts


class Rows:
    """Rows in memory: those changed since they were last taken, and a cache of others."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rows: dict[bytes, bytes | None] = {}
        self._dirty: set[bytes] = set()
        self.held = 0
        "Bytes of all rows in memory."

    def _taken(self) -> dict[bytes, bytes | None]:
        taken = {key: self._rows[key] for key in self._dirty}
        self._dirty = set()
        return taken

    def trim(self, most: int, most_bytes: int) -> None:
        """Drop clean rows, those first that came first, until no more than `most` are left with `most_bytes`, or none."""
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
