"""The discount of NDCG (Järvelin & Kekäläinen 2002): the value of an item by its rank. Ranks count from 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["discounts", "discounts_at", "expected_discount"]

Floats = NDArray[np.float64]


def discounts(ranks: NDArray[np.integer]) -> Floats:
    """1 / log2(rank + 2) for ranks of 0 and more, in the shape of `ranks`."""
    found: Floats = 1.0 / np.log2(ranks + 2.0)
    return found


def discounts_at(ranks: NDArray[np.integer], k: int) -> Floats:
    """`discounts` of ranks below `k`; 0 for other ranks and for negative ones, which mark items without a rank."""
    found: Floats = np.where((ranks >= 0) & (ranks < k), discounts(np.maximum(ranks, 0)), 0.0)
    return found


def expected_discount(scores: NDArray[np.floating], discount: Floats) -> Floats:
    """Discount of each item's rank by descending score, `(q, c)`. Tied items get the mean discount over their ranks.

    `scores`: `(q, c)`; `discount`: by rank, `(c,)`. Ties get the expectation over random orders, because an item's position
    in a file must not decide its rank.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores, order, axis=1)
    fresh = np.concatenate([np.ones((len(scores), 1), np.bool_), sorted_scores[:, 1:] != sorted_scores[:, :-1]], axis=1)
    run = np.cumsum(fresh.ravel()) - 1
    mean = np.bincount(run, np.broadcast_to(discount, scores.shape).ravel()) / np.bincount(run)
    found: Floats = np.empty(scores.shape)
    np.put_along_axis(found, order, mean[run].reshape(scores.shape), axis=1)
    return found
