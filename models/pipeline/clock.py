"""What time it is for a catalogue whose items have a time of publication."""

from __future__ import annotations

import time
from collections.abc import Callable

from schemas.parsing import MAX_TIME_MS

__all__ = ["Clock", "after_all", "wall_ms"]

Clock = Callable[[], int]
"Epoch milliseconds."


def wall_ms() -> int:
    """The wall clock: what is to be published in an hour is shown in an hour, whether or not events come until then."""
    return int(time.time() * 1000)


def after_all() -> int:
    """Later than any publication: for a catalogue that items enter when they are published, as replayed history has it."""
    return MAX_TIME_MS
