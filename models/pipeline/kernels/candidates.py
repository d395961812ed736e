"""Merging, filtering, light scoring and selection of the candidates of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from models.state.kernels.seen import in_tier

__all__ = ["among", "ascending", "diverse", "in_categories", "light_scores", "merged", "seen"]


@njit(cache=True, nogil=True)
def ascending(values: Any) -> bool:
    """Whether no value is smaller than the one before it."""
    for i in range(1, len(values)):  # noqa: SIM110 - compiled
        if values[i] < values[i - 1]:
            return False
    return True


@njit(cache=True, nogil=True)
def merged(query_row: Any, item_row: Any, scores: Any, ends: Any, queries: int, place: Any) -> Any:
    """Merge the results of several sources, which are concatenated and each ordered by query.

    `ends`: end of each source's part; `place`: work array of -1 by item row, as it is left, too. Returns query rows and item
    rows, int32 `(n,)`, and the score of each source, float32 `(n, sources)`, NaN where it does not name the candidate; of a
    repeated candidate the better score counts.
    """
    sources = len(ends)
    at = np.zeros(sources, np.int64)
    for s in range(1, sources):
        at[s] = ends[s - 1]
    room = len(item_row)
    found_query, found_item = np.empty(room, np.int32), np.empty(room, np.int32)
    found = np.full((room, sources), np.nan, np.float32)
    n = 0
    for q in range(queries):
        first = n
        for s in range(sources):
            i = at[s]
            while i < ends[s] and query_row[i] == q:
                item = item_row[i]
                c = place[item]
                if c < 0:
                    c = n
                    place[item] = c
                    found_query[c], found_item[c] = q, item
                    n += 1
                if not (found[c, s] >= scores[i]):
                    found[c, s] = scores[i]
                i += 1
            at[s] = i
        for c in range(first, n):
            place[found_item[c]] = -1
    return found_query[:n].copy(), found_item[:n].copy(), found[:n].copy()


@njit(cache=True, nogil=True)
def seen(tiers: Any, starts: Any, bloom: Any, query_row: Any, item_row: Any) -> Any:
    """Return whether the candidate's user has seen the item: any of their tiers holds it. bool `(n,)`."""
    out = np.zeros(len(item_row), np.bool_)
    for i in range(len(item_row)):
        item, q = item_row[i], query_row[i]
        for t in range(starts[q], starts[q + 1]):
            if in_tier(tiers, t, bloom, item):
                out[i] = True
                break
    return out


@njit(cache=True, nogil=True)
def among(starts: Any, rows: Any, query_row: Any, item_row: Any, marked: Any, first: int) -> Any:
    """Return whether the candidate's item is among its query's rows `rows[starts[q]:starts[q + 1]]`: bool `(n,)`.

    `marked`: work array by item row that has no mark of `first` or more.
    """
    out = np.zeros(len(item_row), np.bool_)
    last = -1
    for i in range(len(item_row)):
        q = query_row[i]
        if q != last:
            last = q
            for j in range(starts[q], starts[q + 1]):
                if rows[j] >= 0:
                    marked[rows[j]] = first + q
        out[i] = marked[item_row[i]] == first + q
    return out


@njit(cache=True, nogil=True)
def in_categories(starts: Any, wanted: Any, query_row: Any, item_row: Any, category_ids: Any) -> Any:
    """Return whether the candidate has one of its query's categories: bool `(n,)`."""
    out = np.zeros(len(item_row), np.bool_)
    for i in range(len(item_row)):
        item, q = item_row[i], query_row[i]
        for c in range(category_ids.shape[1]):
            category = category_ids[item, c]
            if category < 0:
                break
            for w in range(starts[q], starts[q + 1]):
                if wanted[w] == category:
                    out[i] = True
    return out


@njit(cache=True, nogil=True)
def light_scores(source_scores: Any, starts: Any, weights: Any) -> Any:
    """Return the weighted sum of a candidate's source scores, each divided by its largest within the query: float32 `(n,)`.

    Scores that are missing or not finite count as 0.
    """
    n, sources = source_scores.shape
    out = np.zeros(n, np.float32)
    largest = np.empty(sources, np.float32)
    for q in range(len(starts) - 1):
        largest[:] = np.float32(1e-9)
        for i in range(starts[q], starts[q + 1]):
            for s in range(sources):
                score = source_scores[i, s]
                if np.isfinite(score) and score > largest[s]:
                    largest[s] = score
        for i in range(starts[q], starts[q + 1]):
            total = np.float32(0)
            for s in range(sources):
                score = source_scores[i, s]
                if np.isfinite(score):
                    total += score / largest[s] * weights[s]
            out[i] = total
    return out


@njit(cache=True, nogil=True)
def diverse(scores: Any, starts: Any, categories: Any, most: Any, diversify: Any, penalty: float) -> Any:
    """Pick each query's `most` candidates by score, where each pick lowers those of the same category.

    `scores`: float32 `(n,)`, best first within a query; `categories`: int32 `(n,)`, -1 for none; `penalty`: fraction of the
    best score. Queries without `diversify` keep their order. Returns the picks, int64, and each query's start and the last end.
    """
    q = len(most)
    ends = np.zeros(q + 1, np.int64)
    for n in range(q):
        ends[n + 1] = ends[n] + max(0, min(most[n], starts[n + 1] - starts[n]))
    out = np.empty(ends[q], np.int64)
    for n in range(q):
        low, size, k = starts[n], starts[n + 1] - starts[n], ends[n + 1] - ends[n]
        mine = out[ends[n] : ends[n + 1]]
        for i in range(k):
            mine[i] = low + i
        if not diversify[n] or penalty == 0 or size <= 1:
            continue
        step = penalty * max(np.float64(scores[low]), 0.0)
        if not np.isfinite(step):
            continue
        left = scores[low : low + size].astype(np.float64)
        taken = np.zeros(size, np.bool_)
        done = 0
        while done < k:
            best = np.argmax(left)
            if not np.isfinite(left[best]):
                break
            mine[done] = low + best
            done += 1
            taken[best] = True
            left[best] = -np.inf
            category = categories[low + best]
            if category >= 0:
                for i in range(size):
                    if categories[low + i] == category:
                        left[i] -= step
        for i in range(size):
            if done == k:
                break
            if not taken[i]:
                mine[done] = low + i
                done += 1
    return out, ends
