"""Sparse sums over items for each query, and products of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = [
    "at_least",
    "best_dots",
    "covisits",
    "dots",
    "largest",
    "profiles",
    "transitions",
    "value_at",
    "weighted",
]


DENSE = 32
"Fraction, as its inverse, of items from which rows are found by a scan over all items, which is then faster than sorting."


@njit(inline="always")
def _gathered(
    sums: Any, marked: Any, mark: int, touched: Any, count: int, n_items: int, rows: Any, scores: Any, at: int
) -> None:
    """Move the sums of the touched rows, ascending, to the output, and clear them. Touched rows are marked with `mark`."""
    if count * DENSE > n_items:
        place = at
        for row in range(n_items):
            if marked[row] == mark:
                rows[place], scores[place] = row, sums[row]
                sums[row] = 0
                place += 1
        return
    ordered = np.sort(touched[:count])
    for i in range(count):
        row = ordered[i]
        rows[at + i], scores[at + i] = row, sums[row]
        sums[row] = 0


@njit(cache=True, nogil=True)
def covisits(
    recent: Any, recency: Any, near: Any, weights: Any, totals: Any, n_items: int, sums: Any, marked: Any, first: int
) -> Any:
    """Sum, per query, the normalised co-visits of its newest items.

    `recent`: item rows, newest first, -1 where there is none `(q, r)`; `recency`: their weights `(r,)`; `near`, `weights`:
    complements of the rows of each item's neighbours, 0 for none, and their weights `(items, NEIGHBOURS)`; `totals`: total
    weight of each item's neighbours; `sums`: work array of zeros by item row, as it is left, too; `marked`: one that has no
    mark of `first` or more. Returns each query's start and the last end, item rows ascending, int32, and float32 scores,
    divided by the root of the neighbour's own total.
    """
    q, r = recent.shape
    starts = np.zeros(q + 1, np.int64)
    rows, scores = (
        np.empty(q * min(r * near.shape[1], n_items), np.int32),
        np.empty(q * min(r * near.shape[1], n_items), np.float32),
    )
    touched = np.empty(min(r * near.shape[1], n_items), np.int32)
    for n in range(q):
        count = 0
        for place in range(r):
            item = recent[n, place]
            if item < 0:
                continue
            weight = recency[place] / np.sqrt(max(totals[item], np.float32(1)))
            for j in range(near.shape[1]):
                other = ~near[item, j]
                if other < 0:
                    continue
                if marked[other] != first + n:
                    marked[other] = first + n
                    touched[count] = other
                    count += 1
                sums[other] += weights[item, j] * weight
        at = starts[n]
        _gathered(sums, marked, first + n, touched, count, n_items, rows, scores, at)
        for i in range(at, at + count):
            scores[i] /= np.sqrt(max(totals[rows[i]], np.float32(1)))
        starts[n + 1] = at + count
    return starts, rows[: starts[q]].copy(), scores[: starts[q]].copy()


@njit(cache=True, nogil=True)
def weighted(
    history: Any,
    liked: Any,
    decay: Any,
    number_of_row: Any,
    near: Any,
    weights: Any,
    row_of_number: Any,
    n_items: int,
    sums: Any,
    marked: Any,
    first: int,
) -> Any:
    """Sum, per query, the item-to-item weights of its liked items; the newest counts fully, each older one `decay` times that.

    `history`: item rows, newest first `(q, h)`; `liked`: bool, same shape; `near`, `weights`: neighbours of each of the
    release's items, by number. Work arrays and result are as in `covisits`.
    """
    q, h = history.shape
    width = near.shape[1]
    room = min(h * width, n_items)
    starts = np.zeros(q + 1, np.int64)
    rows, scores = np.empty(q * room, np.int32), np.empty(q * room, np.float32)
    touched = np.empty(room, np.int32)
    for n in range(q):
        count = 0
        weight = np.float32(1)
        for place in range(h):
            if not liked[n, place]:
                continue
            item = history[n, place]
            number = number_of_row[item] if item >= 0 else -1
            if number >= 0:
                for j in range(width):
                    other = near[number, j]
                    row = row_of_number[other] if other >= 0 else -1
                    if row < 0 or row >= n_items:
                        continue
                    if marked[row] != first + n:
                        marked[row] = first + n
                        touched[count] = row
                        count += 1
                    sums[row] += weights[number, j] * weight
            weight *= decay
        at = starts[n]
        _gathered(sums, marked, first + n, touched, count, n_items, rows, scores, at)
        starts[n + 1] = at + count
    return starts, rows[: starts[q]].copy(), scores[: starts[q]].copy()


@njit(cache=True, nogil=True)
def transitions(
    recent: Any,
    times: Any,
    lags: Any,
    gap_ms: int,
    number_of_row: Any,
    near: Any,
    weights: Any,
    row_of_number: Any,
    n_items: int,
    sums: Any,
    marked: Any,
    first: int,
) -> Any:
    """Sum, per query, the transition weights from the newest events of its session, each times the weight of its lag.

    `recent`: item rows, newest first `(q, r)`; `times`: event times in ms, at least `(q, len(lags))`; `lags`: weights of the
    newest events, newest first, at most r; the session ends at the first two events that are more than `gap_ms` apart.
    `near`, `weights`, work arrays and result are as in `weighted`.
    """
    q, width = recent.shape[0], near.shape[1]
    room = min(len(lags) * width, n_items)
    starts = np.zeros(q + 1, np.int64)
    rows, scores = np.empty(q * room, np.int32), np.empty(q * room, np.float32)
    touched = np.empty(room, np.int32)
    for n in range(q):
        count = 0
        for place in range(len(lags)):
            if place and times[n, place - 1] - times[n, place] > gap_ms:
                break
            item = recent[n, place]
            number = number_of_row[item] if item >= 0 else -1
            if number < 0:
                continue
            for j in range(width):
                other = near[number, j]
                if other < 0:
                    break
                row = row_of_number[other]
                if row < 0 or row >= n_items:
                    continue
                if marked[row] != first + n:
                    marked[row] = first + n
                    touched[count] = row
                    count += 1
                sums[row] += weights[number, j] * lags[place]
        at = starts[n]
        _gathered(sums, marked, first + n, touched, count, n_items, rows, scores, at)
        starts[n + 1] = at + count
    return starts, rows[: starts[q]].copy(), scores[: starts[q]].copy()


@njit(cache=True, nogil=True)
def value_at(starts: Any, rows: Any, scores: Any, query_row: Any, item_row: Any) -> Any:
    """Return the score of each candidate by its query's sparse scores, whose rows ascend; 0 where it has none: float32."""
    out = np.zeros(len(item_row), np.float32)
    for i in range(len(item_row)):
        low, high = starts[query_row[i]], starts[query_row[i] + 1]
        item, end = item_row[i], high
        while low < high:
            middle = (low + high) >> 1
            if rows[middle] < item:
                low = middle + 1
            else:
                high = middle
        if low < end and rows[low] == item:
            out[i] = scores[low]
    return out


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def dots(vectors: Any, rows: Any, queries: Any, query_row: Any) -> Any:
    """Return the product of each row of `vectors` with its query's vector: float32 `(n,)`."""
    out = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        total = np.float32(0)
        vector, query = vectors[rows[i]], queries[query_row[i]]
        for d in range(len(query)):
            total += vector[d] * query[d]
        out[i] = total
    return out


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def best_dots(vectors: Any, rows: Any, others: Any, query_row: Any) -> Any:
    """Return each row's largest product with its query's other rows of `vectors`: float32 `(n,)`, 0 where there are none.

    `others`: row numbers, -1 for none `(q, m)`.
    """
    out = np.zeros(len(rows), np.float32)
    for i in range(len(rows)):
        best, any_there = np.float32(0), False
        vector = vectors[rows[i]]
        for m in range(others.shape[1]):
            other = others[query_row[i], m]
            if other >= 0:
                total = np.float32(0)
                theirs = vectors[other]
                for d in range(len(vector)):
                    total += vector[d] * theirs[d]
                best = total if not any_there else max(best, total)
                any_there = True
        out[i] = best
    return out


@njit(cache=True, nogil=True)
def at_least(scores: Any, least: Any, allowed: Any) -> Any:
    """Find each query's allowed rows whose score `(q, n)` is at least `least[q]`.

    Returns each query's start and the last end, and the rows ascending, int32.
    """
    q, n = scores.shape
    starts, rows = np.zeros(q + 1, np.int64), np.empty(q * n, np.int32)
    for k in range(q):
        at = starts[k]
        for i in range(n):
            if allowed[i] and scores[k, i] >= least[k]:
                rows[at] = i
                at += 1
        starts[k + 1] = at
    return starts, rows[: starts[q]].copy()


@njit(cache=True, nogil=True)
def profiles(vectors: Any, rows: Any, weights: Any) -> Any:
    """Return the direction of each query's weighted sum of rows of `vectors`: float32 `(q, d)`, of length 1 or 0.

    `rows`: -1 for none `(q, r)`; `weights`: by place `(r,)`.
    """
    out = np.zeros((rows.shape[0], vectors.shape[1]), np.float32)
    for q in range(rows.shape[0]):
        mine = out[q]
        for r in range(rows.shape[1]):
            if rows[q, r] >= 0:
                vector = vectors[rows[q, r]]
                for d in range(len(mine)):
                    mine[d] += vector[d] * weights[r]
        length = np.float32(0)
        for d in range(len(mine)):
            length += mine[d] * mine[d]
        length = np.sqrt(length)
        if length > 0:
            for d in range(len(mine)):
                mine[d] /= length
    return out


@njit(cache=True, nogil=True)
def largest(scores: Any, starts: Any, least: float) -> Any:
    """Return each query's largest score, at least `least`: float32 `(q,)`."""
    out = np.full(len(starts) - 1, least, np.float32)
    for q in range(len(out)):
        for i in range(starts[q], starts[q + 1]):
            out[q] = max(out[q], scores[i])
    return out
