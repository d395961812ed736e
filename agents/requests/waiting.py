"""Requests that wait for something else than their turn: for a schema, or for the event of their token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["MAX_WAITING", "Waiting"]

MAX_WAITING = 2_000
"Requests that may wait at once; more are answered without."


class Waiting:
    """Tasks of requests that wait, each until what it waits for comes, its deadline, or `wake`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: dict[asyncio.Task[None], asyncio.Event] = {}
        "What ends the wait for an event."

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def crowded(self) -> bool:
        """Whether so many wait that no more may."""
        return len(self._tasks) > MAX_WAITING

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have a request wait, which ends by itself."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def until(self, reflected: Callable[[], Coroutine[Any, Any, bool]], then: Callable[[bool], None]) -> None:
        """Call `then` with what `reflected` returns; with False when `wake` comes first."""
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
        """Let all who wait for an event go on now, and wait until none waits any more."""
        waiting = set(self._tasks)
        for wake in self._wakes.values():
            wake.set()
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
