"""Search of some thousand vectors by way of a byte per dimension, which takes a quarter of the memory traffic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["encode", "nearest"]

PARTS = 2_048
"Number of parts of the range of products in which they are counted, to find how large the largest are."
ROUNDING = 4e-5
"Bound of the rounding errors of two products in float32, relative to the product of the lengths."


@njit(cache=True, nogil=True)
def encode(vectors: Any, rows: Any, codes: Any, scale: Any, error: Any) -> None:
    """Write the codes of these rows of `vectors` `(n, d)`: int8 `(n, d)`, the value of one step `(n,)`, and a bound `(n,)`.

    The product of a code's vector with a query differs from that of the vector by at most the bound times the query's length
    (Cauchy and Schwarz, with the vector's distance from its code).
    """
    for i in range(len(rows)):
        row = rows[i]
        vector, code = vectors[row], codes[row]
        largest, squares, apart = np.float32(0), 0.0, 0.0
        for d in range(len(vector)):
            largest = max(largest, abs(vector[d]))
            squares += np.float64(vector[d]) ** 2
        step = largest / np.float32(127)
        scale[row] = step
        for d in range(len(vector)):
            code[d] = np.int8(np.rint(vector[d] / step)) if step > 0 else np.int8(0)
            apart += (np.float64(vector[d]) - np.float64(code[d]) * np.float64(step)) ** 2
        error[row] = 1.001 * np.sqrt(apart) + ROUNDING * np.sqrt(squares)


@njit(cache=True, nogil=True)
def _exceeded(low: Any, most: int, counts: Any) -> Any:
    """Return a number that at least `most` of `low` reach or exceed, if as many are finite, close to the largest such number.

    `counts`: work array. The finite numbers are counted in as many equal parts of their range.
    """
    least, largest, n = np.float32(np.inf), np.float32(-np.inf), 0
    for i in range(len(low)):
        if low[i] > -np.inf:
            least, largest = min(least, low[i]), max(largest, low[i])
            n += 1
    if n < most:
        return np.float32(-np.inf)
    width = (largest - least) / np.float32(len(counts) - 1)
    if not width > 0:
        return least
    counts[:] = 0
    for i in range(len(low)):
        if low[i] > -np.inf:
            counts[int((low[i] - least) / width)] += 1
    above, part = 0, len(counts)
    while above < most:
        part -= 1
        above += counts[part]
    # one part lower, because of rounding
    return least + np.float32(part - 1) * width


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _about(codes: Any, scale: Any, query: Any, allowed: Any, error: Any, length: Any, low: Any) -> None:
    """Write a lower bound of each row's product with the query, -inf for rows that are not allowed."""
    for i in range(len(low)):
        total, code = np.float32(0), codes[i]
        for j in range(len(query)):
            total += np.float32(code[j]) * query[j]
        low[i] = total * scale[i] - error[i] * length if allowed[i] else np.float32(-np.inf)


@njit(inline="always")
def _length(vector: Any) -> Any:
    squares = 0.0
    for j in range(len(vector)):
        squares += np.float64(vector[j]) ** 2
    return np.float32(np.sqrt(squares))


@njit(cache=True, nogil=True)
def nearest(queries: Any, codes: Any, scale: Any, error: Any, allowed: Any, most: int, above: float) -> Any:
    """Find, per query, all allowed rows that may be among the `most` whose vectors have the largest products above `above`.

    `queries` `(q, d)`; the other arrays as `encode` writes them, for as many rows as `allowed` has. Returns each query's start
    and the last end, and the rows ascending, int32.
    """
    q, n = len(queries), len(allowed)
    starts, rows = np.zeros(q + 1, np.int64), np.empty(q * n, np.int32)
    low, counts = np.empty(n, np.float32), np.empty(PARTS, np.int32)
    for k in range(q):
        at, length = starts[k], _length(queries[k])
        _about(codes, scale, queries[k], allowed, error, length, low)
        least = max(np.float32(above), _exceeded(low, most, counts))
        for i in range(n):
            if allowed[i] and low[i] + np.float32(2) * error[i] * length >= least:
                rows[at] = i
                at += 1
        starts[k + 1] = at
    return starts, rows[: starts[q]].copy()
