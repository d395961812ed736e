"""Selection and order by score; among equal scores the smaller tie-break key comes first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint64

__all__ = ["best_of_spans", "descending", "first_places", "key", "newest", "popular", "sorted_best"]


@njit(inline="always")
def key(item_hash: Any, salt: Any) -> Any:
    """Mix an item's hash with a salt by splitmix64 (Steele et al. 2014), as `models.pipeline.ties.tie_keys` does."""
    mixed = item_hash ^ salt
    mixed ^= mixed >> uint64(30)
    mixed *= uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> uint64(27)
    mixed *= uint64(0x94D049BB133111EB)
    mixed ^= mixed >> uint64(31)
    return mixed


@njit(inline="always")
def _smallest(places: Any, items: Any, hashes: Any, salt: Any, left: int) -> Any:
    """Return the `left` of `places` with the smallest keys, in that order. `items[i]` is the item of `places[i]`."""
    keys = np.empty(len(places), np.uint64)
    for i in range(len(places)):
        keys[i] = key(hashes[items[i]], salt)
    if len(keys) > 4 * left > 0:
        # keys of one salt differ, so that exactly `left` are not above the last
        kept = np.flatnonzero(keys <= np.partition(keys, left - 1)[left - 1])
        return places[kept[np.argsort(keys[kept])]]
    return places[np.argsort(keys)[:left]]


@njit(cache=True, nogil=True)
def best_of_spans(scores: Any, starts: Any, most: Any, above: float, rows: Any, hashes: Any, salts: Any) -> Any:
    """Find each query's `most` largest scores above `above`.

    Returns their indices, ascending within a query, int64, and each query's start among them and the last one's end.
    """
    out, ends = np.empty(len(scores), np.int64), np.zeros(len(starts), np.int64)
    n = 0
    for q in range(len(starts) - 1):
        low, high, limit = starts[q], starts[q + 1], most[q]
        count = 0
        for i in range(low, high):
            count += scores[i] > above
        least = np.float32(above)
        left, equals = 0, 0
        if count > limit > 0:
            least = np.partition(scores[low:high], high - low - limit)[high - low - limit]
            left = limit
            for i in range(low, high):
                left -= scores[i] > least
                equals += scores[i] == least
        if limit <= 0:
            ends[q + 1] = n
            continue
        if equals > left:
            tied = np.empty(equals, np.int64)
            at = 0
            for i in range(low, high):
                if scores[i] == least:
                    tied[at] = i
                    at += 1
            chosen = np.sort(_smallest(tied, rows[tied], hashes, salts[q], left))
            at = 0
            for i in range(low, high):
                if scores[i] > least or (at < len(chosen) and chosen[at] == i):
                    at += scores[i] == least
                    out[n] = i
                    n += 1
        else:
            for i in range(low, high):
                if scores[i] > above and scores[i] >= least:
                    out[n] = i
                    n += 1
        ends[q + 1] = n
    return out[:n], ends


@njit(inline="always")
def _order(scores: Any, rows: Any, hashes: Any, salt: Any) -> Any:
    """Return the indices of a query's scores, largest first, ties by key."""
    order = np.argsort(-scores)
    i = 0
    while i < len(order):
        j = i + 1
        while j < len(order) and scores[order[j]] == scores[order[i]]:
            j += 1
        if j - i > 1:
            tied = order[i:j].copy()
            order[i:j] = _smallest(tied, rows[tied], hashes, salt, j - i)
        i = j
    return order


@njit(cache=True, nogil=True)
def sorted_best(scores: Any, starts: Any, most: Any, rows: Any, hashes: Any, salts: Any) -> Any:
    """Return the indices of each query's `most` best scores, best first, int64; scores hold no NaN."""
    room = 0
    for q in range(len(starts) - 1):
        room += min(most[q], starts[q + 1] - starts[q])
    out = np.empty(room, np.int64)
    n = 0
    for q in range(len(starts) - 1):
        low, high = starts[q], starts[q + 1]
        size = min(most[q], high - low)
        if size <= 0:
            continue
        mine = scores[low:high]
        if size < high - low:
            least = np.partition(mine, high - low - size)[high - low - size]
            near = np.flatnonzero(mine >= least)
        else:
            near = np.arange(high - low)
        order = _order(mine[near], rows[low:high][near], hashes, salts[q])
        for i in range(size):
            out[n] = low + near[order[i]]
            n += 1
    return out


@njit(cache=True, nogil=True)
def descending(scores: Any, starts: Any) -> Any:
    """Return the indices that sort each query's scores, largest first; equal scores keep their order."""
    out = np.empty(len(scores), np.int64)
    for q in range(len(starts) - 1):
        low, high = starts[q], starts[q + 1]
        out[low:high] = low + np.argsort(-scores[low:high], kind="mergesort")
    return out


@njit(cache=True, nogil=True)
def first_places(values: Any, head: Any, most: Any, asked: Any, hashes: Any, salts: Any) -> Any:
    """Return the places in `head` of each asking query's `most` first items.

    `head` lists items by descending value, `values` holds their values. Where the last place is tied, the smaller keys win.
    Returns the places, int64, and each query's start and the last end.
    """
    q = len(most)
    starts = np.zeros(q + 1, np.int64)
    for n in range(q):
        starts[n + 1] = starts[n] + (min(most[n], len(head)) if asked[n] else 0)
    out = np.empty(starts[q], np.int64)
    for n in range(q):
        size = starts[n + 1] - starts[n]
        if size == 0:
            continue
        last = values[size - 1]
        low, high = size - 1, size
        while low > 0 and values[low - 1] == last:
            low -= 1
        while high < len(head) and values[high] == last:
            high += 1
        mine = out[starts[n] : starts[n + 1]]
        for place in range(size):
            mine[place] = place
        if high > size:
            mine[low:] = _smallest(np.arange(low, high), head[low:high], hashes, salts[n], size - low)
    return out, starts


@njit(cache=True, nogil=True)
def popular(
    values: Any, most: Any, asked: Any, wanted_starts: Any, wanted: Any, category_ids: Any, hashes: Any, salts: Any
) -> Any:
    """Return each asking query's `most` best items above 0 within its categories: items, int32, and starts as above."""
    q, size = len(most), len(values)
    starts = np.zeros(q + 1, np.int64)
    out = np.empty(0, np.int32)
    found, scores = np.empty(size, np.int64), np.empty(size, np.float32)
    parts_end = 0
    for n in range(q):
        count = 0
        if asked[n]:
            last = -1
            for w in range(wanted_starts[n], wanted_starts[n + 1]):
                last = max(last, wanted[w])
            inside_of = np.zeros(last + 1, np.bool_)
            for w in range(wanted_starts[n], wanted_starts[n + 1]):
                inside_of[wanted[w]] = True
            for i in range(size):
                if values[i] > 0:
                    inside = False
                    for c in range(category_ids.shape[1]):
                        category = category_ids[i, c]
                        if category < 0:
                            break
                        inside |= category <= last and inside_of[category]
                    if inside:
                        found[count], scores[count] = i, values[i]
                        count += 1
        bounds = np.array([0, count])
        best, _ = best_of_spans(scores[:count], bounds, most[n : n + 1], 0.0, found, hashes, salts[n : n + 1])
        larger = np.empty(parts_end + len(best), np.int32)
        larger[:parts_end] = out
        for i in range(len(best)):
            larger[parts_end + i] = found[best[i]]
        out, parts_end = larger, len(larger)
        starts[n + 1] = parts_end
    return out, starts


@njit(cache=True, nogil=True)
def newest(times: Any, rows: Any, most: int, queries: Any, hashes: Any, salts: Any) -> Any:
    """Return, one after the other, the `most` newest of `rows` for each of `queries`; ties by key: int32."""
    by_time = np.argsort(-times, kind="mergesort")
    out = np.empty(most * len(queries), np.int32)
    for n in range(len(queries)):
        mine = out[n * most : (n + 1) * most]
        i = 0
        while i < most:
            j = i + 1
            while j < len(by_time) and times[by_time[j]] == times[by_time[i]]:
                j += 1
            tied = rows[by_time[i:j]]
            if j - i > 1:
                tied = _smallest(tied, tied, hashes, salts[queries[n]], j - i)
            for place in range(i, min(j, most)):
                mine[place] = tied[place - i]
            i = j
    return out
