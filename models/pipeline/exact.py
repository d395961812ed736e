"""Exact nearest items by inner product.

A query has the same result in any batch: a matrix product finds candidates, and each query then scores its own again, in an
order of operations that does not depend on the batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.pipeline.kernels import signals
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties

__all__ = ["FEW", "UNSCORED", "exact_top", "nobody", "rescored"]

UNSCORED = np.zeros(0, np.float32)
"The scores of rows that are not scored yet."

ROUNDING = np.float32(2e-5)
"Upper bound of the relative rounding error between two summation orders. Items this close to the cut-off are scored again."
FEW = 8
"""Number of queries up to which one product for each is faster than one of all, for which OpenBLAS packs the whole matrix:
1.3 ms for 9,742 vectors of 320 dimensions, where a product with one query takes 0.15 ms."""


def nobody(queries: int) -> Scored:
    """Return a result without any item."""
    return Scored(np.zeros(queries + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def rescored(queries: NDArray[np.float32], vectors: NDArray[np.float32], found: Scored) -> Scored:
    """Score listed rows of `vectors` again, each on its own."""
    return Scored(found.starts, found.rows, signals.dots(vectors, found.rows, queries, found.query_row))


def _products(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the product of every query with every vector: float32 `(q, n)`."""
    if len(queries) > FEW:
        return np.ascontiguousarray((vectors @ queries.T).T)
    scores = np.empty((len(queries), len(vectors)), np.float32)
    for query, row in zip(queries, scores, strict=True):
        np.dot(vectors, query, out=row)
    return scores


def exact_top(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    most: int,
    ties: Ties,
    above: float = -np.inf,
) -> Scored:
    """Return, per query, up to `most` allowed items with the largest inner products above `above`; rows ascend.

    queries: float32 `(q, d)`; vectors: float32 `(n, d)`; allowed: bool `(n,)`; `ties`: by row of `vectors`, and by query.
    """
    n = len(vectors)
    if not n or not len(queries) or not allowed.any():
        return nobody(len(queries))
    scores = _products(queries, vectors)
    scores[:, ~allowed] = -np.inf
    least = np.full(len(queries), above, np.float32)
    if n > most:
        np.maximum(least, np.partition(scores, n - most, axis=1)[:, n - most], out=least)
    # a cut-off of -inf keeps all allowed rows
    with np.errstate(invalid="ignore"):
        least = np.where(np.isfinite(least), least - ROUNDING * np.maximum(abs(least), abs(scores.max(axis=1))), least)
    starts, rows = signals.at_least(scores, least.astype(np.float32), allowed)
    return rescored(np.ascontiguousarray(queries), vectors, Scored(starts, rows, UNSCORED)).best(most, ties, above)
