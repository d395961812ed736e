"""The most popular of some items, per query."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Queries, Retrieved
from models.pipeline.kernels import order
from models.pipeline.ragged import Scored

__all__ = ["Popularity", "most_popular", "popularity_of"]

UNDECAYED = 0.001
"""Popularity that each event adds without decay, so that a few new events after a quiet period do not displace items with long
histories."""


def popularity_of(items: ItemStore, rows: slice | NDArray[np.integer], eligible: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the popularity of items, above 0, and 0 for items that are not eligible: float32 `(n,)`."""
    ever = items.events[rows].sum(axis=1) * UNDECAYED
    found: NDArray[np.float64] = np.where(eligible[rows], items.popularity_now(rows) + ever + 1e-6, 0.0)
    return found.astype(np.float32)


class Popularity:
    """The popularity of all items, computed again only after something changed."""

    def __init__(self) -> None:
        self._of: tuple[int, ...] = ()
        self._eligible = np.zeros(0, np.bool_)
        "Statistics with their stream time, and eligible items, of which `_found` was computed."
        self._found = np.zeros(0, np.float32)

    def of(self, queries: Queries, items: ItemStore) -> NDArray[np.float32]:
        """Return the popularity of each item of the batch, above 0, and 0 for items that are not eligible: float32 `(size,)`.

        The same array is returned until it changes.
        """
        of = id(items), items.statistics_changes, items.stream_time_ms
        if self._of != of or self._eligible is not queries.eligible:
            self._of, self._eligible = of, queries.eligible
            self._found = popularity_of(items, slice(queries.size), queries.eligible)
        return self._found


def most_popular(
    queries: Queries,
    items: ItemStore,
    popularity: Callable[[], NDArray[np.float32]],
    head: tuple[NDArray[np.int32], NDArray[np.float32]],
    most: NDArray[np.int64],
    asked: NDArray[np.bool_],
) -> Retrieved:
    """Return the `most` items with the largest popularity above 0 for each asking query, within the categories it asks for.

    `head`: the first rows by popularity, as `leaders.Leaders.first` returns them, as many as the largest of `most` where no
    categories are asked for, and their popularity; `popularity`: returns that of all items, float32 `(queries.size,)`, and is
    called only for queries within categories; `most` and `asked`: `(q,)`. Scores are the logarithm of 1 + popularity.
    """
    ties, anywhere = queries.ties, asked & ~queries.restricted
    (rows, values), ties, anywhere = head, queries.ties, asked & ~queries.restricted
    places, starts = order.first_places(values, rows, most, anywhere, ties.hashes, ties.salts)
    found = Retrieved.of(Scored(starts, rows[places], np.log1p(values[places])))
    within = asked & queries.restricted
    if not within.any():
        return found
    wanted, ids, values = queries.categories, items.category_ids, popularity()
    rows, starts = order.popular(values, most, within, wanted.starts, wanted.values, ids, ties.hashes, ties.salts)
    return Retrieved.join([found, Retrieved.of(Scored(starts, rows, np.log1p(values[rows])))]).ordered()
