"""Clocks for answering requests. Tests pass their own clock and move it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Two clocks, both in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    "Clock for deadlines and durations, never set back."
    wall: Callable[[], float] = time.time
    "Seconds since 1970, comparable with records' timestamps."
