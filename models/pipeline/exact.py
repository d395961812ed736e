"""Exact nearest items by inner product.

A query has the same result in any batch: a matrix product finds candidates, and each query then scores its own again, in an
order of operations that does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.pipeline.ties import Keys

__all__ = ["Found", "best_of", "exact_top"]

Found = tuple[NDArray[np.int32], NDArray[np.float32]]
"Numbers of items and their scores, best first."
ROUNDING = np.float32(2e-5)
"Upper bound of the relative rounding error between two summation orders. Items this close to the cut-off are scored again."


def best_of(
    query: NDArray[np.float32],
    vectors: NDArray[np.float32],
    rows: NDArray[np.integer],
    most: int,
    keys: Keys | None = None,
    above: float = -np.inf,
) -> Found:
    """Return the `most` best of `rows` for one query `(d,)`, best first; only products larger than `above`.

    Each row is scored on its own. `keys` of item numbers break ties; without them the lower number comes first.
    """
    scores = np.einsum("nd,d->n", vectors[rows], query)
    order = np.lexsort((rows if keys is None else keys(rows), -scores))[:most]
    order = order[scores[order] > above]
    return rows[order].astype(np.int32), scores[order]


def exact_top(
    queries: NDArray[np.float32],
    vectors: NDArray[np.float32],
    allowed: NDArray[np.bool_],
    most: int,
    keys: Sequence[Keys] | None = None,
    above: float = -np.inf,
) -> list[Found]:
    """Return, per query, up to `most` allowed items with the largest inner products above `above`, best first.

    queries: float32 `(q, d)`; vectors: float32 `(n, d)`; allowed: bool `(n,)`. `keys` holds one function of item numbers per
    query, which breaks ties.
    """
    if not len(vectors) or not len(queries):
        return [(np.zeros(0, np.int32), np.zeros(0, np.float32)) for _ in queries]
    scores = queries @ vectors.T
    scores[:, ~allowed] = -np.inf
    found = []
    for n, (query, row) in enumerate(zip(queries, scores, strict=True)):
        last = np.partition(row, -most)[-most] if len(row) > most else np.float32(-np.inf)
        last = max(last, np.float32(above))
        near = row >= last - ROUNDING * max(abs(last), abs(row.max())) if np.isfinite(last) else allowed
        found.append(best_of(query, vectors, np.flatnonzero(near & allowed), most, None if keys is None else keys[n], above))
    return found
