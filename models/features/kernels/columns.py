"""Compiled loops that fill several columns of features at once.

One loop costs less than the dozen array operations that it replaces, because at some hundred requests a second a batch has few
rows: not the arithmetic takes the time, but the calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from models.features.kernels.values import standardised_value

__all__ = [
    "brought",
    "last_shares",
    "of_items",
    "of_largest",
    "of_prices",
    "of_users",
    "shares",
]

ITEM_PRIOR = 5.0
"Number of neutral events that the means and shares of an item's events are shrunk by."


@njit(inline="always")
def _days_since(time_ms: Any, now_ms: Any, day_ms: Any) -> Any:
    """Return the log of one plus the days since a time; 0 where it is unknown, which is 0."""
    return np.log1p(np.float32(max(now_ms - time_ms, 0) / day_ms)) if time_ms > 0 else np.float32(0)


@njit(cache=True, nogil=True)
def of_items(
    rows: Any,
    popularity: Any,
    popularity_ms: Any,
    half_life_ms: int,
    events: Any,
    value_sum: Any,
    value_count: Any,
    actions: Any,
    slots: Any,
    first_ms: Any,
    published_ms: Any,
    price: Any,
    met: Any,
    now_ms: int,
    day_ms: float,
    scale: Any,
    out: Any,
) -> None:
    """Write the columns of `models.features.item` for n rows of the item store: `out` float32 `(n, 10 + len(slots))`.

    `popularity` to `value_count`: `(items, partitions)`, `actions`: `(items, partitions, slots)`; `slots`: the columns of
    `actions` whose shares are told, -1 for none. `scale`: mean, deviation and largest standardised value, float32 `(3,)`.
    """
    mean, deviation, most = scale[0], scale[1], scale[2]
    for i in range(len(rows)):
        row = rows[i]
        total, count, valued, value = 0.0, 0, 0, 0.0
        for j in range(popularity.shape[1]):
            if popularity[row, j] != 0.0:
                age = np.float32(max(now_ms - popularity_ms[row, j], 0) / half_life_ms)
                total += popularity[row, j] * np.exp2(-age)
            count += events[row, j]
            valued += value_count[row, j]
            value += value_sum[row, j]
        decayed = np.float32(total)
        out[i, 0] = np.log1p(decayed)
        out[i, 1] = np.log1p(np.float32(count))
        out[i, 2] = decayed / (count + 1.0)
        out[i, 3] = _days_since(first_ms[row], now_ms, day_ms)
        out[i, 4] = _days_since(published_ms[row], now_ms, day_ms)
        out[i, 5] = 0.0
        if valued > 0:
            out[i, 5] = standardised_value(np.float32(value / valued), mean, deviation, most) * valued / (valued + ITEM_PRIOR)
        out[i, 6] = np.log1p(np.float32(valued))
        out[i, 7] = np.log1p(price[row]) if price[row] > 0 else np.float32(0)
        out[i, 8] = not np.isnan(price[row])
        out[i, 9] = met[row]
        for n in range(len(slots)):
            share = 0
            if slots[n] >= 0:
                for j in range(actions.shape[1]):
                    share += actions[row, j, slots[n]]
            out[i, 10 + n] = share / (count + ITEM_PRIOR)


@njit(cache=True, nogil=True)
def of_users(
    events: Any,
    size: Any,
    values: Any,
    liked: Any,
    first_ms: Any,
    last_ms: Any,
    session_events: Any,
    now_ms: int,
    day_ms: float,
    scale: Any,
    out: Any,
) -> None:
    """Write the columns of `models.features.user` for q users: `out` float32 `(q, 7)`, left as it is without history.

    `values`, `liked`: of the kept events, newest first, `(q, h)`; `size`: how many are kept. `scale` is as in `of_items`.
    """
    mean, deviation, most = scale[0], scale[1], scale[2]
    for q in range(len(size)):
        if size[q] == 0:
            continue
        total, valued, likes = 0.0, 0, 0
        for j in range(values.shape[1]):
            likes += liked[q, j]
            if j < size[q] and not np.isnan(values[q, j]):
                total += standardised_value(values[q, j], mean, deviation, most)
                valued += 1
        out[q, 0] = np.log1p(float(events[q]))
        out[q, 1] = np.log1p(float(size[q]))
        out[q, 2] = total / max(valued, 1)
        out[q, 3] = likes / size[q]
        out[q, 4] = np.log1p(max(now_ms - last_ms[q], 0) / day_ms)
        out[q, 5] = np.log1p(float(session_events[q]))
        out[q, 6] = np.log1p(max(last_ms[q] - first_ms[q], 0) / day_ms)


@njit(cache=True, nogil=True)
def shares(starts: Any, rows: Any, scores: Any, query_row: Any, item_row: Any, work: Any) -> Any:
    """Return the candidates' scores by their query's sparse ones, and each as a share of that query's largest: float32.

    `starts`, `rows`, `scores`: those of query q lie at `starts[q]:starts[q + 1]`; others score 0. The candidates are ordered by
    query. `work`: zeros by item row, as it is left, too. Returns `(n, 2)`.
    """
    out = np.zeros((len(item_row), 2), np.float32)
    i = 0
    while i < len(item_row):
        q, largest = query_row[i], np.float32(1e-9)
        for j in range(starts[q], starts[q + 1]):
            work[rows[j]] = scores[j]
            largest = max(largest, scores[j])
        while i < len(item_row) and query_row[i] == q:
            out[i, 0] = work[item_row[i]]
            out[i, 1] = out[i, 0] / largest
            i += 1
        for j in range(starts[q], starts[q + 1]):
            work[rows[j]] = 0
    return out


@njit(cache=True, nogil=True)
def last_shares(last: Any, near: Any, weights: Any, totals: Any, query_row: Any, item_row: Any, work: Any) -> Any:
    """Return each candidate's share of the co-visits of its query's newest item `last` `(q,)`: float32 `(n,)`.

    `near`: complements of the rows of each item's neighbours, 0 for none, with their `weights` `(items, neighbours)` and each
    item's total. The candidates are ordered by query. `work`: zeros by item row, as it is left, too.
    """
    out = np.zeros(len(item_row), np.float32)
    i = 0
    while i < len(item_row):
        q = query_row[i]
        item = last[q]
        if item >= 0:
            total = max(totals[item], np.float32(1e-9))
            for j in range(near.shape[1]):
                if 0 <= ~near[item, j] < len(work):
                    work[~near[item, j]] = weights[item, j] / total
        while i < len(item_row) and query_row[i] == q:
            if item >= 0:
                out[i] = work[item_row[i]]
            i += 1
        if item >= 0:
            for j in range(near.shape[1]):
                if 0 <= ~near[item, j] < len(work):
                    work[~near[item, j]] = 0
    return out


@njit(cache=True, nogil=True)
def of_largest(values: Any, spans: Any, least: Any) -> Any:
    """Return each value as a share of its query's largest, which is at least `least`: float32 `(n,)`."""
    out = np.empty(len(values), np.float32)
    for q in range(len(spans) - 1):
        largest = np.float32(least)
        for i in range(spans[q], spans[q + 1]):
            largest = max(largest, values[i])
        for i in range(spans[q], spans[q + 1]):
            out[i] = values[i] / largest
    return out


@njit(cache=True, nogil=True)
def of_prices(price: Any, rows: Any, query_row: Any, newest: Any) -> Any:
    """Return the log of each candidate's price, and its difference from the mean log price of the user's newest items.

    `newest` `(q, r)`: item rows, -1 for none. Returns float32 `(n,)`, NaN where the price is unknown; float32 `(n,)`, 0 where
    it or all those of the newest items are; and whether any price is known among the candidates, and among the newest items.
    """
    logs, above = np.empty(len(rows), np.float32), np.zeros(len(rows), np.float32)
    usual = np.full(len(newest), np.nan, np.float32)
    priced, told = False, False
    for q in range(len(newest)):
        total, count = 0.0, 0
        for place in range(newest.shape[1]):
            item = newest[q, place]
            if item >= 0 and not np.isnan(price[item]):
                total += np.log1p(max(price[item], np.float32(0)))
                count += 1
        if count:
            usual[q] = total / count
            told = True
    for i in range(len(rows)):
        value = price[rows[i]]
        if np.isnan(value):
            logs[i] = np.nan
            continue
        priced = True
        logs[i] = np.log1p(max(value, np.float32(0)))
        if not np.isnan(usual[query_row[i]]):
            above[i] = logs[i] - usual[query_row[i]]
    return logs, above, priced, told


@njit(cache=True, nogil=True)
def brought(scores: Any, places: Any) -> Any:
    """Mark by which sources each candidate came: float32 `(n, len(places))`, 1 where its score is no NaN.

    `scores`: by candidate and source; `places`: the column of each source in it, -1 for one that the pipeline lacks.
    """
    out = np.zeros((len(scores), len(places)), np.float32)
    for i in range(len(scores)):
        for n in range(len(places)):
            if places[n] >= 0 and not np.isnan(scores[i, places[n]]):
                out[i, n] = 1.0
    return out
