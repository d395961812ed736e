"""Whether each partition gets on: what waits and does not move for too long is named, and the worker counts as not alive."""

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
    """Remembers when each thing last moved.

    `limit_s`: seconds that something with work waiting may stand still. `clock`: seconds, never set back.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._seen: dict[str, _Seen] = {}

    def observe(self, name: str, mark: Hashable, *, waiting: bool) -> None:
        """`name` stands at `mark`; `waiting` says whether there is anything left to do for it."""
        seen = self._seen.get(name)
        if seen is None or not waiting or seen.mark != mark:
            self._seen[name] = _Seen(mark, self._clock())

    def keep(self, names: set[str]) -> None:
        """Forget all but `names`."""
        for name in self._seen.keys() - names:
            del self._seen[name]

    def stuck(self) -> dict[str, float]:
        """What stands still for longer than the limit, and for how many seconds."""
        now = self._clock()
        return {name: round(now - seen.since, 1) for name, seen in self._seen.items() if now - seen.since > self._limit_s}
