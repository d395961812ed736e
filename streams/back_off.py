"""Waits that grow with each failure in a row."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["BackOff"]


class BackOff:
    """Seconds to wait before the next attempt: doubled with each failure, reset after a while without one.

    `clock`: monotonic, in seconds.
    """

    def __init__(self, first_s: float, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_s, self._most_s, self._clock = first_s, most_s, clock
        self._failures = 0
        self._last_s = -float("inf")

    def failed(self) -> float:
        """Record a failure; returns the seconds to wait."""
        now = self._clock()
        if now - self._last_s > 4 * self._most_s:
            self._failures = 0
        self._failures += 1
        self._last_s = now
        return float(min(self._first_s * 2.0 ** min(self._failures - 1, 30), self._most_s))
