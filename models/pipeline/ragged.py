"""Rows of different lengths, one per query, in flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.pipeline.kernels import order, signals
from models.pipeline.ties import Ties

__all__ = ["Ragged", "Scored"]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Numbers of q queries: those of query n are `values[starts[n]:starts[n + 1]]`."""

    starts: NDArray[np.int64]
    values: NDArray[np.intp] | NDArray[np.int32]

    @classmethod
    def of(cls, parts: Sequence[NDArray[np.intp]] | Sequence[NDArray[np.int32]]) -> Ragged:
        """Join one array per query."""
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return cls(starts, np.concatenate([np.zeros(0, np.int32), *parts]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, query: int) -> NDArray[np.intp] | NDArray[np.int32]:
        return self.values[self.starts[query] : self.starts[query + 1]]

    def __iter__(self) -> Iterator[NDArray[np.intp] | NDArray[np.int32]]:
        return (self[n] for n in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of values of each query: int64 `(q,)`."""
        return np.diff(self.starts)


@dataclass(frozen=True, slots=True)
class Scored:
    """Item scores of q queries; items that are not listed score 0. Those of query n lie at `starts[n]:starts[n + 1]`."""

    starts: NDArray[np.int64]
    rows: NDArray[np.int32]
    "Item rows."
    scores: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of_query(self, query: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the item rows of a query and their scores."""
        span = slice(int(self.starts[query]), int(self.starts[query + 1]))
        return self.rows[span], self.scores[span]

    @property
    def query_row(self) -> NDArray[np.int32]:
        """Query of each score: int32 `(n,)`."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.starts))

    @classmethod
    def of_pairs(
        cls, queries: int, query_row: NDArray[np.int32], rows: NDArray[np.int32], scores: NDArray[np.float32]
    ) -> Scored:
        """Order (query, item) pairs by query and item row."""
        order = np.lexsort((rows, query_row))
        starts = np.searchsorted(query_row[order], np.arange(queries + 1)).astype(np.int64)
        return cls(starts, rows[order], scores[order])

    def best(self, most: int | NDArray[np.int64], ties: Ties, above: float = 0.0) -> Scored:
        """Keep each query's `most` best scores above `above`, in the order they are listed; `ties` decides the last."""
        most = np.full(len(self), most, np.int64) if isinstance(most, int) else most
        where, starts = order.best_of_spans(
            self.scores, self.starts, most, np.float32(above), self.rows, ties.hashes, ties.salts
        )
        return Scored(starts, self.rows[where], self.scores[where])

    def at(self, query_row: NDArray[np.int32], item_row: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the scores of (query, item) pairs, 0 without one: float32, same shape. Rows ascend per query."""
        found: NDArray[np.float32] = signals.value_at(self.starts, self.rows, self.scores, query_row, item_row)
        return found

    def largest(self, least: float = 0.0) -> NDArray[np.float32]:
        """Return each query's best score, at least `least`: float32 `(q,)`."""
        found: NDArray[np.float32] = signals.largest(self.scores, self.starts, np.float32(least))
        return found
