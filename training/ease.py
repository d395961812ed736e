"""EASE: item-to-item weights in closed form (Steck, WWW 2019)."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = ["ease"]

LARGEST = 12_000
"Items that the dense inverse may hold; of a larger catalogue the most liked ones are used."


def ease(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    n_items: int,
    neighbours: int = 128,
    l2: float = 300.0,
    least: int = 2,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The heaviest positive weights of each item.

    `users` and `items` are the liked pairs, `(n,)` each; items liked fewer than `least` times have none. Returns
    indices int32 `(n_items, neighbours)`, -1 where there is none, and weights float32 likewise.
    """
    index = np.full((n_items, neighbours), -1, np.int32)
    weight = np.zeros((n_items, neighbours), np.float32)
    counts = np.bincount(items, minlength=n_items)
    kept = np.flatnonzero(counts >= least)
    if len(kept) > LARGEST:
        kept = np.sort(kept[np.argsort(-counts[kept], kind="stable")[:LARGEST]])
    if not len(kept):
        return index, weight
    place = np.full(n_items, -1, np.int64)
    place[kept] = np.arange(len(kept))
    mine = place[items] >= 0
    shape = (int(users.max()) + 1, len(kept))
    x = sp.csr_matrix((np.ones(int(mine.sum()), np.float32), (users[mine], place[items[mine]])), shape=shape)
    x.data[:] = 1.0  # a pair counts once
    x.sum_duplicates()
    x.data[:] = 1.0
    gram = (x.T @ x).toarray().astype(np.float32, order="F")
    gram[np.diag_indices(len(kept))] += l2
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise ArithmeticError("the regularised Gram matrix is not positive definite")
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices(len(kept))] = 0.0
    most = min(neighbours, len(kept))
    for start in range(0, len(kept), 1_000):
        part = weights[start : start + 1_000]
        top = np.argsort(-part, axis=1, kind="stable")[:, :most]
        values = np.take_along_axis(part, top, axis=1)
        rows = kept[start : start + 1_000]
        index[rows, :most] = np.where(values > 0, kept[top], -1)
        weight[rows, :most] = np.where(values > 0, values, 0)
    return index, weight
