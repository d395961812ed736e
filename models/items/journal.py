"""Rows in the order in which they changed, so that what is derived from all items can follow a few changes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Journal"]


class Journal:
    """The newest changed rows, at most `capacity`. A reader that falls further behind reads everything again."""

    def __init__(self, capacity: int = 1 << 16) -> None:
        self._rows = np.zeros(capacity, np.int32)
        self.position = 0
        "Number of changes so far."

    def add(self, row: int) -> None:
        """Note that a row changed."""
        self._rows[self.position % len(self._rows)] = row
        self.position += 1

    def extend(self, rows: NDArray[np.integer]) -> None:
        """Note that rows changed, in this order."""
        size = len(self._rows)
        kept = rows[-size:]
        self.position += len(rows)
        self._rows[np.arange(self.position - len(kept), self.position) % size] = kept

    def since(self, position: int) -> NDArray[np.int32] | None:
        """Return the rows that changed after `position`, each once, ascending; None if they are no longer known."""
        if self.position - position > len(self._rows):
            return None
        return np.unique(self._rows[np.arange(position, self.position) % len(self._rows)])
