"""Background tasks of a worker, by name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

__all__ = ["Crash", "Tasks", "crash_on_error"]

log = logging.getLogger(__name__)

AGAIN_S = 3.0
"Seconds after which a task that has not ended is cancelled again."

Crash = Callable[[BaseException], None]
"A function that stops the worker, because of an error from which it cannot recover."


def crash_on_error(crash: Crash) -> Callable[[asyncio.Task[None]], None]:
    """Return a callback for tasks that must not end with an error."""

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            crash(error)

    return ended


class Tasks:
    """Tasks that run until they are cancelled. One that ends with an error stops the worker."""

    def __init__(self, crash: Crash) -> None:
        self._crash = crash
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task under a name that no other task has."""
        assert name not in self._running, name
        task = self._running[name] = asyncio.create_task(work, name=name)
        task.add_done_callback(crash_on_error(self._crash))

    async def wait(self, name: str, timeout_s: float | None = None) -> None:
        """Wait until this task ends by itself, if it was started, at most `timeout_s` seconds."""
        if name in self._running:
            await asyncio.wait([self._running[name]], timeout=timeout_s)

    async def cancel(self, *, but: Collection[str] = ()) -> None:
        """Cancel all tasks but these, and wait until they have ended.

        A task that goes on, because a library took its cancellation for something else, is cancelled again.
        """
        ending = {self._running.pop(name) for name in list(self._running) if name not in but}
        while ending:
            for task in ending:
                task.cancel()
            _, ending = await asyncio.wait(ending, timeout=AGAIN_S)
            if ending:
                log.warning("cancelled again, because they go on: %s", ", ".join(sorted(task.get_name() for task in ending)))
