"""Search of an inverted file: the lists nearest to a query are scanned, one byte per dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["searched"]

ROOM = 2
"How many times as many items as asked for are kept before the worse ones are dropped."


@njit(inline="always")
def _probed(query: Any, centres: Any, probes: int, scores: Any, out: Any) -> int:
    """Write the `probes` lists whose centres have the largest products with the query to `out`, the largest first.

    Returns their number.
    """
    for c in range(len(centres)):
        total = np.float32(0)
        for d in range(len(query)):
            total += centres[c, d] * query[d]
        scores[c] = total
    n, lists, least = 0, len(centres), np.float32(-np.inf)
    if probes < lists:
        least = np.partition(scores, lists - probes)[lists - probes]
    for c in range(lists):
        if scores[c] >= least and n < probes:
            out[n] = c
            n += 1
    out[:n] = out[:n][np.argsort(-scores[out[:n]], kind="mergesort")]
    return n


@njit(inline="always")
def _kept(scores: Any, rows: Any, count: int, depth: int) -> Any:
    """Move the `depth` best of `count` scores to the front, the earlier of equal ones; returns their number and the least."""
    if count <= depth:
        return count, np.float32(-np.inf)
    least = np.partition(scores[:count], count - depth)[count - depth]
    equal = depth
    for i in range(count):
        equal -= scores[i] > least
    n = 0
    for i in range(count):
        if scores[i] > least or (scores[i] == least and equal > 0):
            equal -= scores[i] == least
            scores[n], rows[n] = scores[i], rows[i]
            n += 1
    return n, least


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def searched(
    queries: Any,
    projected: Any,
    centres: Any,
    probes: int,
    starts: Any,
    numbers: Any,
    codes: Any,
    scale: Any,
    row_of: Any,
    eligible: Any,
    covered: Any,
    depth: int,
) -> Any:
    """Find each query's `depth` best items within its `probes` nearest lists, by approximate products.

    `projected` `(q, p)`: the queries as the `centres` `(lists, p)` are; `numbers` and `codes` `(n, d)`: the items of list c at
    `starts[c]:starts[c + 1]`; `scale` `(d,)`: value of one step of a code; `row_of`: item row of each number, -1 for none; an
    empty one is the identity; `eligible` and `covered`: items that may be found, by item row.
    Returns each query's start and the last end, and item rows ascending, int32.
    """
    q, room = len(queries), ROOM * depth
    out, ends = np.empty(q * depth, np.int32), np.zeros(q + 1, np.int64)
    of_lists, lists = np.empty(len(centres), np.float32), np.empty(len(centres), np.int64)
    scores, rows, scaled = np.empty(room, np.float32), np.empty(room, np.int32), np.empty(len(scale), np.float32)
    limit, direct = min(len(eligible), len(covered)), len(row_of) == 0
    for n in range(q):
        for d in range(len(scale)):
            scaled[d] = queries[n, d] * scale[d]
        count, least = 0, np.float32(-np.inf)
        for p in range(_probed(projected[n], centres, probes, of_lists, lists)):
            for i in range(starts[lists[p]], starts[lists[p] + 1]):
                total, code = np.float32(0), codes[i]
                for d in range(len(scaled)):
                    total += np.float32(code[d]) * scaled[d]
                if total <= least:
                    continue
                # only now, because these lie anywhere in memory
                row = numbers[i] if direct else row_of[numbers[i]]
                if row < 0 or row >= limit or not (eligible[row] and covered[row]):
                    continue
                scores[count], rows[count] = total, row
                count += 1
                if count == room:
                    count, least = _kept(scores, rows, count, depth)
        count, least = _kept(scores, rows, count, depth)
        out[ends[n] : ends[n] + count] = np.sort(rows[:count])
        ends[n + 1] = ends[n] + count
    return ends, out[: ends[q]].copy()
