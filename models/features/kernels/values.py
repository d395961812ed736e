"""Compiled loops that compute single features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["among", "finite", "newest", "seen", "standard", "standardised", "standardised_value"]


@njit(cache=True, nogil=True)
def newest(history: Any, liked: Any, most: int) -> Any:
    """Return the rows of each query's newest known items, int32 `(q, most)`, -1 beyond; only liked ones if any event is liked.

    `history`: item rows, newest first, -1 for none `(q, h)`; `liked`: bool, same shape.
    """
    q, h = history.shape
    out = np.full((q, most), -1, np.int32)
    for n in range(q):
        chosen = liked[n].any()
        count = 0
        for i in range(h):
            if count == most:
                break
            if history[n, i] >= 0 and (liked[n, i] or not chosen):
                out[n, count] = history[n, i]
                count += 1
    return out


@njit(inline="always")
def standardised_value(value: Any, mean: Any, deviation: Any, most: Any) -> Any:
    """Standardise one float32 value, which is not NaN."""
    return min(max((value - mean) / deviation, -most), most)


@njit(cache=True, nogil=True)
def standard(values: Any, mean: Any, deviation: Any, most: Any, out: Any) -> None:
    """Write each value less the mean, divided by the deviation and clipped to `most`; 0 for NaN. All are float32."""
    for i in range(len(values)):
        if np.isnan(values[i]):
            out[i] = 0
        else:
            out[i] = standardised_value(values[i], mean, deviation, most)


@njit(cache=True, nogil=True)
def finite(values: Any) -> None:
    """Replace numbers `(n, m)` that are not finite by 0."""
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            if not np.isfinite(values[i, j]):
                values[i, j] = 0


@njit(cache=True, nogil=True)
def standardised(values: Any, spans: Any) -> Any:
    """Return each value less its query's mean, divided by the query's deviation: float32 `(n,)`."""
    out = np.empty(len(values), np.float32)
    for q in range(len(spans) - 1):
        low, high = spans[q], spans[q + 1]
        if high == low:
            continue
        total = 0.0
        for i in range(low, high):
            total += values[i]
        mean, squares = total / (high - low), 0.0
        for i in range(low, high):
            squares += (values[i] - mean) ** 2
        deviation = np.sqrt(squares / (high - low)) + 1e-6
        for i in range(low, high):
            out[i] = (values[i] - mean) / deviation
    return out


@njit(cache=True, nogil=True)
def among(values: Any, spans: Any) -> Any:
    """Return how each value compares with the others of its query: float32 `(n, 2)`, 0 for NaN and without another value.

    Its place by size, from -0.5 for the least to 0.5 for the greatest, where equal values share the mean of theirs; and the
    value less the query's mean.
    """
    out = np.zeros((len(values), 2), np.float32)
    for q in range(len(spans) - 1):
        low, high = spans[q], spans[q + 1]
        known = np.empty(high - low, np.int64)
        count, total = 0, 0.0
        for i in range(low, high):
            if not np.isnan(values[i]):
                known[count] = i
                count += 1
                total += values[i]
        if count < 2:
            continue
        known = known[:count]
        known = known[np.argsort(values[known])]
        start = 0
        while start < count:
            stop = start + 1
            while stop < count and values[known[stop]] == values[known[start]]:
                stop += 1
            for place in range(start, stop):
                out[known[place], 0] = 0.5 * (start + stop - 1) / (count - 1) - 0.5
                out[known[place], 1] = values[known[place]] - total / count
            start = stop
    return out


@njit(cache=True, nogil=True)
def seen(query_row: Any, item_row: Any, history: Any, keeping: Any) -> Any:
    """Return how often and how recently each candidate is in its user's history: float32 `(n, 2)`, 0 where it is not.

    The number of events on it, as a logarithm, and 1 / (1 + number of newer events). `history` `(q, h)`: item rows, newest
    first, -1 for none. `keeping` `(q,)`: whether the query may have such candidates; others have zeros.
    """
    out = np.zeros((len(item_row), 2), np.float32)
    for i in range(len(item_row)):
        q = query_row[i]
        if not keeping[q]:
            continue
        count = 0
        for j in range(history.shape[1]):
            if history[q, j] == item_row[i]:
                count += 1
                if count == 1:
                    out[i, 1] = 1.0 / (1.0 + j)
        out[i, 0] = np.log1p(count)
    return out
