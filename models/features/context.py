"""Features of time and request: the same for all candidates of a query.

Alone they do not change the order of candidates; the ranker crosses them with features that differ between candidates. Time
is stream time in UTC; a user's local time is known only if the request's context contains it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.features.spec import Group
from models.state.rows import hash64
from models.units import DAY_MS
from schemas.records import Request

__all__ = ["BUCKETS", "CONTEXT", "WEEK_MS", "Moment", "context_of"]

WEEK_MS = 7 * DAY_MS
BUCKETS = 16


@dataclass(frozen=True)
class Moment:
    """Requests at one moment of stream time."""

    requests: Sequence[Request]
    now_ms: int
    "Stream time; 0 before the first event."

    def angle(self, period_ms: int) -> float | None:
        """Return the phase of the moment within a period, in radians; None before the first event."""
        return 2 * math.pi * (self.now_ms % period_ms) / period_ms if self.now_ms > 0 else None


CONTEXT = Group[Moment]()


@CONTEXT.feature("day_sin")
def day_sin(of: Moment) -> float | None:
    """Sine of the time of day."""
    return None if (angle := of.angle(DAY_MS)) is None else math.sin(angle)


@CONTEXT.feature("day_cos")
def day_cos(of: Moment) -> float | None:
    """Cosine of the time of day."""
    return None if (angle := of.angle(DAY_MS)) is None else math.cos(angle)


@CONTEXT.feature("week_sin")
def week_sin(of: Moment) -> float | None:
    """Sine of the time of the week."""
    return None if (angle := of.angle(WEEK_MS)) is None else math.sin(angle)


@CONTEXT.feature("week_cos")
def week_cos(of: Moment) -> float | None:
    """Cosine of the time of the week."""
    return None if (angle := of.angle(WEEK_MS)) is None else math.cos(angle)


@CONTEXT.feature("asked_categories")
def asked_categories(of: Moment) -> NDArray[np.bool_]:
    """Whether the request asks for categories."""
    return np.asarray([bool(request.categories) for request in of.requests], np.bool_)


@CONTEXT.feature("asked_candidates")
def asked_candidates(of: Moment) -> NDArray[np.bool_]:
    """Whether the request names its candidates."""
    return np.asarray([request.candidates is not None for request in of.requests], np.bool_)


@CONTEXT.feature(*(f"context{n}" for n in range(BUCKETS)))
def hashed_context(of: Moment) -> NDArray[np.float32]:
    """The context's names with their values, by signed feature hashing (Weinberger et al. 2009)."""
    out = np.zeros((len(of.requests), BUCKETS), np.float32)
    for row, request in zip(out, of.requests, strict=True):
        for name, value in request.context.items():
            # bypasses the cache, which is for ids, because context values may be long and different every time
            code = hash64.__wrapped__(f"{name}={value}")
            row[code % BUCKETS] += 1.0 if code >> 63 else -1.0
    return out


def context_of(requests: Sequence[Request], now_ms: int) -> NDArray[np.float32]:
    """Compute the features of requests at stream time `now_ms`: float32 `(q, len(CONTEXT.names))`."""
    out = np.zeros((len(requests), len(CONTEXT.features)), np.float32)
    CONTEXT.fill(out, Moment(requests, now_ms))
    return out
