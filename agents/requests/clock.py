"""Clocks that answering requests reads; tests pass their own and move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks, both in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    "Never set back: deadlines and durations."
    wall: Callable[[], float] = time.time
    "Since 1970: the clock that records are stamped by."
