"""The most popular of some items, per query."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Queries, Retrieved
from models.pipeline.kernels import order
from models.pipeline.ragged import Scored

__all__ = ["descending", "most_popular", "popularity_of"]

UNDECAYED = 0.001
"""Popularity that each event adds without decay, so that a few new events after a quiet period do not displace items with long
histories."""


def popularity_of(queries: Queries, items: ItemStore) -> NDArray[np.float32]:
    """Return the popularity of each item of the batch, above 0, and 0 for items that are not eligible: float32 `(size,)`."""
    size = queries.size
    ever = items.events[:size].sum(axis=1) * UNDECAYED
    return np.where(queries.eligible, items.popularity_now(slice(size)) + ever + 1e-6, 0.0).astype(np.float32)


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
