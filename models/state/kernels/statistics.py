"""Item statistics of one source partition: compiled loops over columns by item row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from models.state.kernels.decay import halved

__all__ = ["HEAD", "POPULARITY_HALF_LIFE_MS", "count_events", "write_rows"]

FORMAT = 2
HEAD = 48
POPULARITY_HALF_LIFE_MS = 14 * 86_400_000


@njit(cache=True, nogil=True)
def count_events(
    rows: Any, slots: Any, times: Any, values: Any, accepted: Any,
    counts: Any, value_sum: Any, value_count: Any, popularity: Any, updated: Any, first: Any, dirty: Any,
) -> None:  # fmt: skip
    """Add accepted events, in stream order, to the columns of their items; `slots`: their actions' columns of `counts`."""
    for e in range(len(rows)):
        if not accepted[e]:
            continue
        row, time = rows[e], times[e]
        if updated[row] == 0 and value_count[row] == 0 and popularity[row] == 0.0:
            first[row] = time
        counts[row, slots[e]] += 1
        if not np.isnan(values[e]):
            value_sum[row] += np.float64(values[e])
            value_count[row] += 1
        if time >= updated[row]:
            popularity[row] = halved(popularity[row], time - updated[row], POPULARITY_HALF_LIFE_MS) + 1.0
            updated[row] = time
        else:
            popularity[row] += halved(1.0, updated[row] - time, POPULARITY_HALF_LIFE_MS)
        first[row] = min(first[row], time)
        dirty[row] = 1


@njit(cache=True, nogil=True)
def write_rows(
    rows: Any, order: Any, name_starts: Any, names: Any,
    counts: Any, value_sum: Any, value_count: Any, popularity: Any, updated: Any, first: Any,
    out: Any, out_starts: Any,
) -> None:  # fmt: skip
    """Write `models.state.rows.ItemStatRow` for each of `rows` to `out` (uint8) at `out_starts` `(len(rows) + 1,)`.

    `order`: columns of `counts`, sorted by the hash of their action's name; `names[name_starts[c]:name_starts[c + 1]]` is the
    name of column c.
    """
    out16, out32, out64 = out.view(np.uint16), out.view(np.uint32), out.view(np.int64)
    floats = out.view(np.float64)
    at = 0
    out_starts[0] = 0
    for i in range(len(rows)):
        row = rows[i]
        w = at // 8
        out64[w] = 0
        floats[w + 1], out64[w + 2], floats[w + 3] = value_sum[row], value_count[row], popularity[row]
        out64[w + 4], out64[w + 5] = updated[row], first[row]
        held, size = 0, 0
        for c in order:
            if counts[row, c]:
                out64[w + 6 + held] = counts[row, c]
                held += 1
                size += name_starts[c + 1] - name_starts[c]
        out[at] = FORMAT
        out16[at // 2 + 1], out32[at // 4 + 1] = held, size
        q = 4 * (w + 6 + held)
        end = 2 * (q + held)
        for c in order:
            if counts[row, c]:
                out16[q] = name_starts[c + 1] - name_starts[c]
                q += 1
                for k in range(name_starts[c], name_starts[c + 1]):
                    out[end] = names[k]
                    end += 1
        while end & 7:
            out[end] = 0
            end += 1
        at = end
        out_starts[i + 1] = at
