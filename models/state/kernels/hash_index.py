"""An open-addressing hash table from 64-bit hashes to row numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

__all__ = ["SPREAD", "HashIndex", "find"]

SPREAD = 0x9E3779B97F4A7C15


@njit(inline="always")
def find(keys: Any, rows: Any, key: Any) -> Any:
    """Return the row of `key`, -1 if absent. Linear probing; the table's length is a power of two, and it is never full."""
    mask = len(keys) - 1
    at = np.int64((key * uint64(SPREAD)) >> uint64(20)) & mask
    row = rows[at]  # read once, because another thread may be filling the slot
    while row >= 0 and keys[at] != key:
        at = (at + 1) & mask
        row = rows[at]
    return row


@njit(cache=True, nogil=True)
def find_many(keys: Any, rows: Any, wanted: Any) -> NDArray[np.int32]:
    out = np.empty(len(wanted), np.int32)
    for i in range(len(wanted)):
        out[i] = find(keys, rows, wanted[i])
    return out


@njit(cache=True, nogil=True)
def insert(keys: Any, rows: Any, new_keys: Any, new_rows: Any) -> None:
    mask = len(keys) - 1
    for i in range(len(new_keys)):
        at = np.int64((new_keys[i] * uint64(SPREAD)) >> uint64(20)) & mask
        while rows[at] >= 0 and keys[at] != new_keys[i]:
            at = (at + 1) & mask
        keys[at], rows[at] = new_keys[i], new_rows[i]


class HashIndex:
    """Row numbers by 64-bit hash. It grows, and keys are never removed."""

    def __init__(self, keys: NDArray[np.uint64] | None = None, rows: NDArray[np.int32] | None = None) -> None:
        """`keys` and `rows`: a table that another index held."""
        if keys is None or rows is None:
            keys, rows = np.zeros(1024, np.uint64), np.full(1024, -1, np.int32)
        self.table = keys, rows
        """Keys and rows, held in one attribute so that another thread than the adding one reads a matching pair. A key that is
        being added may or may not be found."""
        self._size = int((rows >= 0).sum())

    def add(self, key: int, row: int) -> None:
        """Add a key that is not in the table."""
        keys, rows = self.table
        if 2 * self._size >= len(keys):
            held = rows >= 0
            more = np.zeros(2 * len(keys), np.uint64), np.full(2 * len(rows), -1, np.int32)
            insert(*more, keys[held], rows[held])
            self.table = keys, rows = more
        insert(keys, rows, np.asarray([key], np.uint64), np.asarray([row], np.int32))
        self._size += 1

    def add_many(self, keys: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        """Add distinct keys that are not in the table."""
        held, size = self.table, self._size + len(keys)
        if 2 * size >= len(held[0]):
            there, capacity = held[1] >= 0, 1 << (2 * size + size // 2).bit_length()
            more = np.zeros(capacity, np.uint64), np.full(capacity, -1, np.int32)
            insert(*more, held[0][there], held[1][there])
            held = more
        insert(*held, keys, rows)
        self.table, self._size = held, size

    def find_many(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the rows of `keys`, -1 where absent: int32 `(len(keys),)`."""
        found: NDArray[np.int32] = find_many(*self.table, keys)
        return found
