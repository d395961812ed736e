"""Windows over users' histories, and their packing: several short windows share one row of LENGTH events.

The user tower has no absolute positions, so a window's states are the same at any offset of a row, as long as it attends to no
other window. Without packing most of each row would be padding where histories are short.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.release.sequences import LENGTH
from training.data.table import EventTable

__all__ = ["Packed", "Windows"]

STRIDE = LENGTH // 2
"Distance of the ends of a user's successive windows. The later half of a window, and all of a user's first, is predicted."


@dataclass(slots=True)
class Packed:
    """Rows of windows, padded at their ends."""

    rows: NDArray[np.int64]
    "Event indices, oldest first within a window, -1 for padding: `(r, LENGTH)`."
    following: NDArray[np.int64]
    "Index of the same user's next event, where the window predicts it, otherwise -1: `(r, LENGTH)`."
    window: NDArray[np.int64]
    "Window of each place, numbered from 0 within all rows, -1 for padding: `(r, LENGTH)`."


@dataclass(slots=True)
class Windows:
    """Windows of at most LENGTH events; each event after a user's first is predicted in exactly one."""

    order: NDArray[np.int64]
    "Event indices by user, oldest first: `(n,)`."
    following: NDArray[np.int64]
    "Index of the same user's next event, -1 at the end, in that order: `(n,)`."
    start: NDArray[np.int64]
    "First place of each window in `order`: `(w,)`."
    length: NDArray[np.int64]
    "Number of events of each window: `(w,)`."
    context: NDArray[np.int64]
    "Number of first events of each window after which another window predicts: `(w,)`."

    @classmethod
    def of(cls, table: EventTable) -> Windows:
        """Cut the histories of `table` into windows, newest first within a user."""
        order = np.lexsort((np.arange(len(table)), table.user))
        bounds = np.flatnonzero(np.diff(table.user[order], prepend=-1, append=-1))
        begins, counts = bounds[:-1], np.diff(bounds)
        following = np.append(order[1:], -1)[: len(order)]
        following[bounds[1:] - 1] = -1
        each = 1 + np.maximum(0, -(-(counts - LENGTH) // STRIDE))
        number = np.arange(int(each.sum())) - np.repeat(np.cumsum(each) - each, each)
        stop = np.repeat(counts, each) - STRIDE * number
        begin = np.maximum(0, stop - LENGTH)
        # each event is predicted in the window that holds the longest history before it
        context = np.where(begin > 0, STRIDE, 0)
        return cls(order, following, np.repeat(begins, each) + begin, stop - begin, context)

    def __len__(self) -> int:
        return len(self.start)

    def steps(self, batch: int) -> int:
        """Number of steps of an epoch with `batch` windows per step, at least 1."""
        return max(1, -(-len(self) // batch))

    def pack(self, part: NDArray[np.intp]) -> Packed:
        """Lay windows into rows one after the other; a window that does not fit begins the next row."""
        length = self.length[part]
        row, offset = _places(length.tolist())
        shape = (int(row[-1]) + 1 if len(row) else 0, LENGTH)
        rows, following, window = (np.full(shape, -1, np.int64) for _ in range(3))
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        place = np.repeat(self.start[part], length) + within
        at = np.repeat(row, length), np.repeat(offset, length) + within
        rows[at] = self.order[place]
        following[at] = np.where(within >= np.repeat(self.context[part], length), self.following[place], -1)
        window[at] = np.repeat(np.arange(len(part)), length)
        return Packed(rows, following, window)


def _places(lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and offset of each window."""
    rows, offsets = [], []
    row = used = 0
    for length in lengths:
        if used + length > LENGTH:
            row, used = row + 1, 0
        rows.append(row)
        offsets.append(used)
        used += length
    return np.asarray(rows, np.int64), np.asarray(offsets, np.int64)
