"""The tasks of a worker that ranking processes have not answered yet, and how long each may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["LEAST_S", "Outstanding", "Window"]

T = TypeVar("T")

ANSWER_SHARE, LOCAL_SHARE = 0.4, 0.65
"""Shares of the time until the deadline. Until the first one a ranking process may answer; at the second one the worker ranks
by itself. Between them the acknowledgement of an answer is on its way."""
MOST_ANSWER_S, MOST_LOCAL_S = 1.0, 1.5
"Maximum of both in seconds, because items that are withdrawn meanwhile may still be shown."
LEAST_S = 0.05
"Seconds before the deadline below which a request is not handed over."


@dataclass(frozen=True, slots=True)
class Window:
    """The times of one task, in seconds from its start."""

    answer_s: float
    "A ranking process answers before that, or not at all."
    local_s: float
    "The worker then ranks by itself, unless the acknowledgement has come."

    @classmethod
    def of(cls, left_s: float) -> Window:
        """Return the times of a task whose request has its deadline in `left_s` seconds."""
        return cls(min(ANSWER_SHARE * left_s, MOST_ANSWER_S), min(LOCAL_SHARE * left_s, MOST_LOCAL_S))


class Outstanding(Generic[T]):
    """Tasks by name. Each ends once: `take` returns it, or `over` is called with it when its time is over."""

    def __init__(self, over: Callable[[T], None]) -> None:
        self._over = over
        self._tasks: dict[bytes, tuple[T, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, name: bytes, task: T, seconds: float) -> None:
        """Add a task that may take that long. `name` is unique."""
        assert name not in self._tasks
        self._tasks[name] = task, asyncio.get_running_loop().call_later(seconds, self._end, name)

    def take(self, name: bytes) -> T | None:
        """Remove and return a task; None if it has ended, or never was."""
        found = self._tasks.pop(name, None)
        if found is None:
            return None
        found[1].cancel()
        return found[0]

    def _end(self, name: bytes) -> None:
        task, _ = self._tasks.pop(name)
        self._over(task)
