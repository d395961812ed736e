"""The first items of a catalogue by a value that changes, found without looking at all items each time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore

__all__ = ["Leaders", "Value", "descending"]

LEAST_POOL = 1_024
"Minimum number of items that are kept; all items of a smaller catalogue."
ROOM = 4
"How many times as many items are kept as are asked for."
ROUNDING = 1e-6
"Relative amount by which a value that should fall may rise by rounding."


class Value(Protocol):
    """A value by which items are ordered."""

    def __call__(self, items: ItemStore, rows: slice | NDArray[np.integer], eligible: NDArray[np.bool_], /) -> NDArray[Any]:
        """Return the values of rows, not negative; 0 excludes an item.

        The value of an item must not rise, except with an entry in the store's journal, or when the item becomes eligible.
        """


class Leaders:
    """The first items by a value.

    A pool holds the items with the largest values at some time, and those that changed since. No other item can have a value
    above `_bound`. While enough items of the pool exceed it they are the first of all items, else a new pool is made.
    """

    def __init__(self, value: Value, *, timeless: bool = False) -> None:
        """`timeless`: whether a value depends on the row and whether it is eligible alone, not on the store's stream time."""
        self._value, self._timeless = value, timeless
        self._items: ItemStore | None = None
        self._eligible = np.zeros(0, np.bool_)
        self._position, self._time = 0, 0
        "Position in the store's journal, and its stream time, up to which the pool follows."
        self._pool = np.zeros(0, np.int32)
        "Rows, ascending."
        self._values: NDArray[Any] = np.zeros(0, np.float32)
        self._bound = 0.0
        self._first: tuple[int, NDArray[np.int32], NDArray[Any]] | None = None

    def first(self, items: ItemStore, eligible: NDArray[np.bool_], most: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Return the `most` rows with the largest values above 0, and all that tie with the last; and their values.

        Largest first, equal ones by row. `eligible`: the result of the store's `eligible`.
        """
        self._follow(items, eligible, most)
        if self._first is None or self._first[0] < most:
            if not self._suffices(most):
                self._refill(items, eligible, most)
            places = descending(self._values, most)
            self._first = most, self._pool[places], self._values[places]
        return self._first[1:]

    def _suffices(self, most: int) -> bool:
        above = int((self._values > self._bound * (1 + ROUNDING)).sum())
        return self._bound == 0 or above >= most

    def _follow(self, items: ItemStore, eligible: NDArray[np.bool_], most: int) -> None:
        """Bring the pool up to date."""
        # fewer items: a batch that began before the one that the pool follows
        if items is not self._items or items.stream_time_ms < self._time or len(eligible) < len(self._eligible):
            self._refill(items, eligible, most)
            return
        still = self._timeless or self._time == items.stream_time_ms
        if self._position == items.journal.position and eligible is self._eligible:
            if not still:
                self._values, self._first = self._value(items, self._pool, eligible), None
                self._time = items.stream_time_ms
            return
        changed = items.journal.since(self._position)
        if changed is None:
            self._refill(items, eligible, most)
            return
        if eligible is not self._eligible:
            size = len(self._eligible)
            shown = np.flatnonzero(eligible[:size] != self._eligible), np.arange(size, len(eligible))
            changed = np.unique(np.concatenate([changed, *shown]).astype(np.int32))
        changed = changed[changed < len(eligible)]
        self._include(changed)
        if still:
            self._values[np.searchsorted(self._pool, changed)] = self._value(items, changed, eligible)
        else:
            self._values = self._value(items, self._pool, eligible)
        self._position, self._eligible, self._time, self._first = items.journal.position, eligible, items.stream_time_ms, None
        kept = max(LEAST_POOL, ROOM * most)
        if len(self._pool) > 2 * kept and self._bound > 0:
            self._trim(kept)

    def _trim(self, kept: int) -> None:
        """Drop the items of the pool that are not above the bound; if more than `kept` are, the bound rises."""
        if int((self._values > self._bound).sum()) > kept:
            self._bound = float(np.partition(self._values, -kept)[-kept])
        above = self._values > self._bound
        self._pool, self._values = self._pool[above], self._values[above]

    def _include(self, rows: NDArray[np.int32]) -> None:
        """Add rows, ascending, to the pool, with a value of 0."""
        places = np.searchsorted(self._pool, rows)
        known = np.zeros(len(rows), np.bool_)
        inside = places < len(self._pool)
        known[inside] = self._pool[places[inside]] == rows[inside]
        if not known.all():
            self._pool = np.insert(self._pool, places[~known], rows[~known])
            self._values = np.insert(self._values, places[~known], 0)

    def _refill(self, items: ItemStore, eligible: NDArray[np.bool_], most: int) -> None:
        """Look at all items."""
        values = self._value(items, slice(len(eligible)), eligible)
        kept = max(LEAST_POOL, ROOM * most)
        self._pool, self._bound = np.arange(len(values), dtype=np.int32), 0.0
        if len(values) > kept:
            bound = float(np.partition(values, -kept)[-kept])
            above = np.flatnonzero(values > bound * (1 + ROUNDING))
            if len(above) >= most and bound > 0:
                # without those at the bound, which may be all items without events
                self._pool, self._bound = above.astype(np.int32), bound * (1 + ROUNDING)
            else:
                self._pool = np.flatnonzero(values > 0).astype(np.int32)
        self._items, self._eligible, self._first = items, eligible, None
        self._position, self._time = items.journal.position, items.stream_time_ms
        self._values = values[self._pool]


def descending(scores: NDArray[Any], most: int) -> NDArray[np.int32]:
    """Return the rows with the `most` largest scores above 0, and all that tie with the last of them, largest first."""
    if most <= 0:
        return np.zeros(0, np.int32)
    if len(scores) > most:
        least = np.partition(scores, -most)[-most]
        rows = np.flatnonzero((scores >= least) & (scores > 0))
    else:
        rows = np.flatnonzero(scores > 0)
    return rows[np.argsort(-scores[rows], kind="stable")].astype(np.int32)
