"""The end of a worker, forced if it takes too long, which is then explained in the log."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
from types import FrameType
from typing import Any

__all__ = ["end_within", "pending"]

log = logging.getLogger(__name__)

SAID_BEFORE_S = 2.0
"Seconds before the forced exit at which the log says what the worker waits for."
MOST_TASKS, MOST_FRAMES = 40, 4


def end_within(seconds: float) -> None:
    """End the process after `seconds`. Before that, the tasks that have not ended are logged, with where they wait."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    asyncio.get_running_loop().call_later(max(seconds - SAID_BEFORE_S, 0.0), _say, seconds)


def _say(seconds: float) -> None:
    log.error("the stop takes %g s, and is forced then. It waits for:\n%s", seconds, "\n".join(pending()))


def pending() -> list[str]:
    """Describe the tasks of this loop that have not ended: each task's name, and its innermost frames, outermost first."""
    found = []
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name())[:MOST_TASKS]:
        frames = [f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" for frame in _frames(task)]
        asked = f", cancelled {task.cancelling()} times" if task.cancelling() else ""
        found.append(f"{task.get_name()}{asked}: {' > '.join(frames[-MOST_FRAMES:])}")
    return found


def _frames(task: asyncio.Task[Any]) -> list[FrameType]:
    """Return the frames of a task's coroutines. `Task.get_stack` returns only the outermost."""
    found: list[FrameType] = []
    at: Any = task.get_coro()
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
        if frame is not None:
            found.append(frame)
        at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None) or getattr(at, "ag_await", None)
    return found
