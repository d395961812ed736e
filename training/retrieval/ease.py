"""EASE: item-to-item weights in closed form (Steck, WWW 2019), computed in blocks for large catalogues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import lapack

__all__ = ["EaseSettings", "ease"]

CHUNK = 1_000
"Number of rows of a dense matrix that are sorted at once."


@dataclass(frozen=True, slots=True)
class EaseSettings:
    """Size limits of the computation."""

    largest: int = 12_000
    "Largest number of items for which one inverse is computed; above it, weights are computed block by block."
    block: int = 3_000
    "Maximum number of items in a block."
    context: int = 3_000
    "Maximum number of items outside a block that serve as predictors for it."


STANDARD = EaseSettings()


def ease(
    users: NDArray[np.int64],
    items: NDArray[np.int64],
    n_items: int,
    neighbours: int = 128,
    l2: float = 300.0,
    least: int = 2,
    settings: EaseSettings = STANDARD,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Compute the largest positive weights of each item.

    `users` and `items` are the liked pairs, `(n,)` each; items liked fewer than `least` times get no weights. Returns
    indices int32 `(n_items, neighbours)`, -1 where there is none, and weights float32 in the same shape.

    Above `settings.largest` items the weights are those of sparse Markov random fields (Steck, NeurIPS 2019): each item is
    predicted only from its block and the block's nearest other items, by the same closed form. Memory is then about three
    float32 matrices of (block + context) items, and `2 * neighbours` weights per item.
    """
    index = np.full((n_items, neighbours), -1, np.int32)
    weight = np.zeros((n_items, neighbours), np.float32)
    counts = np.bincount(items, minlength=n_items)
    kept = np.flatnonzero(counts >= least)
    if not len(kept):
        return index, weight
    x = _pairs(users, items, kept, n_items)
    if len(kept) <= settings.largest:
        weights = _closed_form(x, l2)
        most = min(neighbours, len(kept))
        for start in range(0, len(kept), CHUNK):
            top, values = _heaviest(weights[start : start + CHUNK], most)
            rows = kept[start : start + CHUNK]
            index[rows, :most] = np.where(values > 0, kept[top], -1)
            weight[rows, :most] = np.where(values > 0, values, 0)
        return index, weight
    near, values = _blockwise(x, neighbours, l2, settings)
    index[kept] = np.where(near >= 0, kept[near], -1)
    weight[kept] = values
    return index, weight


def _pairs(users: NDArray[np.int64], items: NDArray[np.int64], kept: NDArray[np.intp], n_items: int) -> sp.csr_matrix:
    """User by kept-item matrix: 1 where liked, however often."""
    place = np.full(n_items, -1, np.int64)
    place[kept] = np.arange(len(kept))
    mine = place[items] >= 0
    shape = (int(users.max()) + 1, len(kept))
    x = sp.csr_matrix((np.ones(int(mine.sum()), np.float32), (users[mine], place[items[mine]])), shape=shape)
    x.data[:] = 1.0  # a pair counts once
    x.sum_duplicates()
    x.data[:] = 1.0
    return x


def _closed_form(x: sp.csr_matrix, l2: float) -> NDArray[np.float32]:
    """Weights `(i, j)`: contribution of liking i to the score of j."""
    gram = (x.T @ x).toarray().astype(np.float32, order="F")
    n = len(gram)
    gram[np.diag_indices(n)] += l2
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, failed_too = lapack.spotri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise ArithmeticError("the regularised Gram matrix is not positive definite")
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights: NDArray[np.float32] = inverse / -np.diag(inverse)
    weights[np.diag_indices(n)] = 0.0
    return weights


def _heaviest(part: NDArray[np.float32], most: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    top = np.argsort(-part, axis=1, kind="stable")[:, :most]
    return top, np.take_along_axis(part, top, axis=1)


# ---- large catalogues


def _blockwise(
    x: sp.csr_matrix, neighbours: int, l2: float, settings: EaseSettings
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Largest weights of each column of `x`: column indices `(n, neighbours)`, -1 where none, and weights."""
    n = x.shape[1]
    columns = x.tocsc()
    sizes = np.asarray(columns.sum(axis=0)).ravel().astype(np.float32)
    index, weight = np.full((n, neighbours), -1, np.int32), np.zeros((n, neighbours), np.float32)
    for block in _blocks(x, settings.block):
        context = _context(columns, sizes, block, settings.context)
        members = np.concatenate([block, context])
        found = _closed_form(columns[:, members].tocsr(), l2)[:, : len(block)]
        for start in range(0, len(members), CHUNK):
            rows = members[start : start + CHUNK]
            top, values = _heaviest(found[start : start + CHUNK], min(neighbours, len(block)))
            joined = np.concatenate([weight[rows], np.maximum(values, 0)], axis=1)
            numbers = np.concatenate([index[rows], np.where(values > 0, block[top], -1).astype(np.int32)], axis=1)
            best, weight[rows] = _heaviest(joined, neighbours)
            index[rows] = np.take_along_axis(numbers, best, axis=1)
    return index, weight


def _blocks(x: sp.csr_matrix, most: int) -> Iterator[NDArray[np.intp]]:
    """Split items into blocks of at most `most` that the same users like, by repeated halving along principal axes."""
    n = x.shape[1]
    rank = min(16, min(x.shape) - 1)
    size = np.sqrt(np.asarray(x.sum(axis=0)).ravel())
    start = np.random.default_rng(0).normal(size=min(x.shape))
    _, values, axes = sp.linalg.svds((x @ sp.diags(1.0 / np.maximum(size, 1.0))).astype(np.float64), k=rank, v0=start)
    places = axes.T * values
    waiting = [np.arange(n)]
    while waiting:
        block = waiting.pop()
        if len(block) <= most:
            yield np.sort(block)
            continue
        centred = places[block] - places[block].mean(axis=0)
        _, directions = np.linalg.eigh(centred.T @ centred)
        along = centred @ (directions[:, -1] * np.sign(directions[np.abs(directions[:, -1]).argmax(), -1]))
        order = np.argsort(along, kind="stable")
        waiting += [block[order[: len(order) // 2]], block[order[len(order) // 2 :]]]


def _context(columns: sp.csc_matrix, sizes: NDArray[np.float32], block: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """Items outside the block that are most similar to it, by the sum of squared cosines, computed a few columns at a time."""
    near = np.zeros(columns.shape[1], np.float32)
    rows = columns.T.tocsr()
    for start in range(0, len(block), 256):
        part = block[start : start + 256]
        together = (rows @ columns[:, part]).tocoo()
        cosine = together.data**2 / (sizes[together.row] * sizes[part][together.col])
        near += np.bincount(together.row, cosine, minlength=len(near)).astype(np.float32)
    near[block] = -1.0
    others = len(near) - len(block)
    return np.sort(np.argsort(-near, kind="stable")[: min(most, others)])
