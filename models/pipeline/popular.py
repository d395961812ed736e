"""The most popular of some items, per query."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Queries, Retrieved
from models.pipeline.kernels import order
from models.pipeline.ragged import Scored

__all__ = ["Popularity", "descending", "most_popular"]

UNDECAYED = 0.001
"""Popularity that each event adds without decay, so that a few new events after a quiet period do not displace items with long
histories."""


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
        size, of = queries.size, (id(items), items.statistics_changes, items.stream_time_ms)
        if self._of != of or self._eligible is not queries.eligible:
            self._of, self._eligible = of, queries.eligible
            ever = items.events[:size].sum(axis=1) * UNDECAYED
            found = np.where(queries.eligible, items.popularity_now(slice(size)) + ever + 1e-6, 0.0)
            self._found = found.astype(np.float32)
        return self._found


def most_popular(
    queries: Queries,
    items: ItemStore,
    popularity: NDArray[np.float32],
    head: NDArray[np.int32],
    most: NDArray[np.int64],
    asked: NDArray[np.bool_],
) -> Retrieved:
    """Return the `most` items with the largest `popularity` above 0 for each asking query, within the categories it asks for.

    `popularity`: float32 `(queries.size,)`; `head`: its `descending` rows, as many as the largest of `most` where no categories
    are asked for; `most` and `asked`: `(q,)`. Scores are the logarithm of 1 + popularity.
    """
    ties, anywhere = queries.ties, asked & ~queries.restricted
    rows, starts = order.first_places(popularity, head, most, anywhere, ties.hashes, ties.salts)
    found = Retrieved.of(Scored(starts, rows, np.log1p(popularity[rows])))
    within = asked & queries.restricted
    if not within.any():
        return found
    wanted, ids = queries.categories, items.category_ids
    rows, starts = order.popular(popularity, most, within, wanted.starts, wanted.values, ids, ties.hashes, ties.salts)
    return Retrieved.join([found, Retrieved.of(Scored(starts, rows, np.log1p(popularity[rows])))]).ordered()


def descending(scores: NDArray[np.float32], most: int) -> NDArray[np.int32]:
    """Return the rows with the `most` largest scores above 0, and all that tie with the last of them, largest first."""
    if most <= 0:
        return np.zeros(0, np.int32)
    if len(scores) > most:
        least = np.partition(scores, -most)[-most]
        rows = np.flatnonzero((scores >= least) & (scores > 0))
    else:
        rows = np.flatnonzero(scores > 0)
    return rows[np.argsort(-scores[rows], kind="stable")].astype(np.int32)
