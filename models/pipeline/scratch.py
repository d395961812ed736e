"""Work arrays by item row that batches reuse, so that a request costs nothing for the items it does not touch."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

__all__ = ["SCRATCH", "Scratch"]

LAST_MARK = 2**31 - 1


class Scratch(threading.local):
    """Work arrays of a thread. They only grow; whoever uses one leaves it as it was found."""

    def __init__(self) -> None:
        self._sums = np.zeros(0, np.float32)
        self._places = np.zeros(0, np.int32)
        self._marks = np.zeros(0, np.int32)
        self._mark = 1

    def sums(self, size: int) -> NDArray[np.float32]:
        """Return zeros, to be zeros again afterwards: float32, at least `(size,)`."""
        if len(self._sums) < size:
            self._sums = np.zeros(max(size, 2 * len(self._sums)), np.float32)
        return self._sums

    def places(self, size: int) -> NDArray[np.int32]:
        """Return an array of -1, to be -1 again afterwards: int32, at least `(size,)`."""
        if len(self._places) < size:
            self._places = np.full(max(size, 2 * len(self._places)), -1, np.int32)
        return self._places

    def marks(self, size: int, kinds: int) -> tuple[NDArray[np.int32], int]:
        """Return marks, int32, at least `(size,)`, and the first of `kinds` consecutive marks that no item has yet.

        Marks may stay.
        """
        if len(self._marks) < size:
            self._marks, self._mark = np.zeros(max(size, 2 * len(self._marks)), np.int32), 1
        if self._mark > LAST_MARK - kinds:
            self._marks[:], self._mark = 0, 1
        first, self._mark = self._mark, self._mark + kinds
        return self._marks, first


SCRATCH = Scratch()
"The work arrays of the calling thread."
