"""Signals: sparse item scores of one retrieval model per query, shared by sources, light scorer and ranker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.pipeline.ties import Keys, best

__all__ = ["Scratch", "Signal"]


class Scratch:
    """Reused accumulators as long as the catalogue. A sum costs time by the rows it touches only."""

    def __init__(self) -> None:
        self._sums = np.zeros(0, np.float32)
        self._marks = np.zeros(0, np.bool_)

    def sum(
        self, rows: NDArray[np.integer], weights: NDArray[np.float32], size: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Sum `weights` by row; returns the rows that occur, ascending, and their sums. `rows` lie in `0..size-1`."""
        if len(self._sums) < size:
            self._sums, self._marks = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        np.add.at(self._sums, rows, weights)
        self._marks[rows] = True
        touched = np.flatnonzero(self._marks[:size])
        sums = self._sums[touched]
        self._sums[touched], self._marks[touched] = 0.0, False
        return touched.astype(np.int32), sums


@dataclass(slots=True)
class Signal:
    """Item scores of one model, by query; items that are not listed score 0."""

    rows: Sequence[NDArray[np.int32]]
    "Per query: item rows, ascending."
    values: Sequence[NDArray[np.float32]]
    "Per query: their scores."

    def top(self, query: int, most: int, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the `most` best scores above 0 of a query, in no particular order; `keys` of item rows break ties."""
        rows, values = self.rows[query], self.values[query]
        places = best(values, most, lambda equal: keys(rows[equal]))
        return rows[places], values[places]

    def at(self, query: int, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the scores of given items for a query, 0 for items without one: float32, same shape."""
        known, values = self.rows[query], self.values[query]
        if not len(known):
            return np.zeros(rows.shape, np.float32)
        places = np.minimum(np.searchsorted(known, rows), len(known) - 1)
        found: NDArray[np.float32] = np.where(known[places] == rows, values[places], np.float32(0))
        return found

    def largest(self, query: int) -> float:
        """Return the best score of a query, 0 if it has no scores."""
        values = self.values[query]
        return float(values.max()) if len(values) else 0.0
