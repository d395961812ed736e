"""Clocks that decide which items of the catalogue are published."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.parsing import MAX_TIME_MS

__all__ = ["Clock", "after_all", "wall_ms"]

Clock = Callable[[], int]
"Returns the time in epoch milliseconds."


def wall_ms() -> int:
    """Return the wall clock, because an item must appear at its time of publication even when no events arrive."""
    return int(time.time() * 1000)


def after_all() -> int:
    """Return a time later than any publication. For catalogues that items enter only once published, as in a replay."""
    return MAX_TIME_MS
