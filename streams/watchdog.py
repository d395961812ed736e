"""Detect partitions that make no progress: work that waits too long is named, and the worker counts as not alive."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

__all__ = ["Watchdog"]


@dataclass(slots=True)
class _Seen:
    mark: Hashable
    since: float


class Watchdog:
    """Remembers when each item of work last moved.

    `limit_s`: seconds without progress that are allowed while work waits. `clock`: monotonic, in seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def observe(self, name: str, mark: Hashable, *, waiting: bool) -> None:
        """Record that `name` is at `mark`. `waiting`: whether it has work left."""
        seen = self._seen.get(name)
        if seen is None or not waiting or seen.mark != mark:
            self._seen[name] = _Seen(mark, self._clock())

    def keep(self, names: set[str]) -> None:
        """Forget all but `names`."""
        for name in self._seen.keys() - names:
            del self._seen[name]

    def stuck(self) -> dict[str, float]:
        """Names without progress for longer than the limit, with the seconds for each."""
        now = self._clock()
        return {name: round(now - seen.since, 1) for name, seen in self._seen.items() if now - seen.since > self._limit_s}
