"""What the moment and the request say: features of a query, the same for all its candidates.

Alone they put no candidate before another; the ranker crosses them with what candidates differ in. The moment is stream time,
in UTC: a person's own time of day is known only where the request's context says it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.state.rows import hash64
from models.units import DAY_MS
from schemas.records import Request

__all__ = ["BUCKETS", "CONTEXT", "context_of", "hour_nearness"]

WEEK_MS = 7 * DAY_MS
BUCKETS = 16
MOMENT = ("day_sin", "day_cos", "week_sin", "week_cos")
ASKED = ("asked_categories", "asked_candidates")
CONTEXT = (*MOMENT, *ASKED, *(f"context{n}" for n in range(BUCKETS)))
"Names, in the order of the columns."


def context_of(requests: Sequence[Request], now_ms: int) -> NDArray[np.float32]:
    """Features of requests at stream time `now_ms`: float32 `(q, len(CONTEXT))`. The moment is 0 before the first event."""
    out = np.zeros((len(requests), len(CONTEXT)), np.float32)
    if now_ms > 0:
        out[:, : len(MOMENT)] = _moment(now_ms)
    for row, request in zip(out[:, len(MOMENT) :], requests, strict=True):
        row[0], row[1] = bool(request.categories), request.candidates is not None
        if request.context:
            row[len(ASKED) :] = _said(request)
    return out


def hour_nearness(times_ms: NDArray[np.int64], now_ms: int) -> NDArray[np.float64]:
    """How near times are to `now_ms` in their time of day: 1 the same, 0 from six hours on."""
    nearness: NDArray[np.float64] = np.maximum(np.cos((times_ms - now_ms) % DAY_MS * (2 * math.pi / DAY_MS)), 0.0)
    return nearness


def _moment(now_ms: int) -> tuple[float, ...]:
    angles = [2 * math.pi * (now_ms % period) / period for period in (DAY_MS, WEEK_MS)]
    return tuple(f(angle) for angle in angles for f in (math.sin, math.cos))


def _said(request: Request) -> NDArray[np.float32]:
    """Signed feature hashing of the context's names with their values (Weinberger et al. 2009)."""
    vector = np.zeros(BUCKETS, np.float32)
    for name, value in request.context.items():
        # past the cache, which is for ids: what requests say may be long, and different every time
        code = hash64.__wrapped__(f"{name}={value}")
        vector[code % BUCKETS] += 1.0 if code >> 63 else -1.0
    return vector
