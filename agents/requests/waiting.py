"""Requests that wait for a schema, or for the event of their token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["MAX_WAITING", "Waiting"]

MAX_WAITING = 2_000
"Maximum number of waiting requests; further ones are answered without waiting."


class Waiting:
    """Tasks of waiting requests. Each ends with its event or schema, at its deadline, or by `wake`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: dict[asyncio.Task[None], asyncio.Event] = {}
        "By task, the event that ends its wait."

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def crowded(self) -> bool:
        """Return whether no further request may wait."""
        return len(self._tasks) > MAX_WAITING

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start the task of a waiting request; it must end by itself."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def until(self, reflected: Callable[[], Coroutine[Any, Any, bool]], then: Callable[[bool], None]) -> None:
        """Call `then` with the result of `reflected`, or with False if `wake` comes first."""
        wake = asyncio.Event()

        async def wait() -> None:
            wanted, ended = asyncio.create_task(reflected()), asyncio.create_task(wake.wait())
            await asyncio.wait({wanted, ended}, return_when=asyncio.FIRST_COMPLETED)
            reached = wanted.done() and wanted.result()
            wanted.cancel()
            ended.cancel()
            then(reached)

        task = self.spawn(wait())
        self._wakes[task] = wake
        task.add_done_callback(lambda done: self._wakes.pop(done, None))

    async def wake(self, timeout_s: float) -> None:
        """End all waits for events now, and wait until no request waits any more."""
        waiting = set(self._tasks)
        for wake in self._wakes.values():
            wake.set()
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
