"""What a user's history says of the categories of candidates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from models.features.kernels.values import standardised_value
from models.state.rows import AFFINITY_HALF_LIFE_MS
from models.units import DAY_MS

__all__ = ["by_category", "hour_nearness"]

CATEGORY_PRIOR = 3.0
"Number of neutral events that a category's means are shrunk by."


@njit(cache=True, nogil=True)
def hour_nearness(time_ms: int, now_ms: int) -> float:
    """Return how near a time is to `now_ms` by time of day: 1 for the same time, 0 from a distance of six hours on."""
    return max(math.cos((time_ms - now_ms) % DAY_MS * (2 * math.pi / DAY_MS)), 0.0)


@njit(cache=True, nogil=True)
def by_category(
    query_row: Any,
    item_row: Any,
    category_ids: Any,
    categories: int,
    starts: Any,
    affine: Any,
    affinity: Any,
    affinity_ms: Any,
    history: Any,
    times: Any,
    values: Any,
    liked: Any,
    now_ms: int,
    scale: Any,
) -> Any:
    """Return statistics of each candidate's categories in its user's history: float32 `(n, 5)`, 0 without history.

    They are affinity, affinity as a share, value, likes and time of day, as `models.features.cross` describes them.

    `starts`, `affine`, `affinity`, `affinity_ms`: each user's categories (-1 for unknown), their weights, and the times from
    which they decay; `history` `(q, h)`: item rows, -1 for none, with the events' `times`, `values` and whether `liked`.
    `scale` is as in `columns.of_items`.
    """
    mean, deviation, most = scale[0], scale[1], scale[2]
    out = np.zeros((len(item_row), 5), np.float32)
    # of one query, by category: affinity, number of events, sum of values, likes and nearness
    sums, total = np.zeros((categories, 5)), np.zeros(5)
    last = -1
    greatest, nearness, events, told = 0.0, 0.0, 0, False
    for i in range(len(item_row)):
        q = query_row[i]
        if q != last:
            last, told, events, nearness, greatest = q, False, 0, 0.0, 0.0
            sums[:] = 0.0
            for a in range(starts[q], starts[q + 1]):
                if affine[a] >= 0:
                    age = max(now_ms - affinity_ms[a], 0) / AFFINITY_HALF_LIFE_MS
                    decayed = affinity[a] * np.exp2(np.float32(-age))
                    sums[affine[a], 0] = decayed
                    greatest = max(greatest, decayed)
                    told = True
            for j in range(history.shape[1]):
                item = history[q, j]
                if item < 0:
                    continue
                told = True
                events += 1
                near = hour_nearness(times[q, j], now_ms)
                nearness += near
                value = np.float32(0)
                if not np.isnan(values[q, j]):
                    value = standardised_value(values[q, j], mean, deviation, most)
                for c in range(category_ids.shape[1]):
                    category = category_ids[item, c]
                    if category < 0:
                        break
                    sums[category, 1] += 1
                    sums[category, 2] += value
                    sums[category, 3] += liked[q, j]
                    sums[category, 4] += near
        if not told:
            continue
        number = 0
        total[:] = 0.0
        for c in range(category_ids.shape[1]):
            category = category_ids[item_row[i], c]
            if category < 0:
                break
            number += 1
            count = sums[category, 1]
            total[0] += sums[category, 0]
            total[1] += sums[category, 0] / max(greatest, 1e-6)
            total[2] += sums[category, 2] / (count + CATEGORY_PRIOR)
            total[3] += sums[category, 3] / (count + CATEGORY_PRIOR)
            total[4] += (sums[category, 4] - nearness * count / max(events, 1)) / (nearness + CATEGORY_PRIOR)
        if number:
            out[i, 0] = np.log1p(total[0])
            for place in range(1, 5):
                out[i, place] = total[place] / number
    return out
