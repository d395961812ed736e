"""Running a generator that yields work for another thread, such as `CandidatePipeline.steps`, to its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

__all__ = ["Aside", "run_aside", "run_here"]

T = TypeVar("T")
Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"Does yielded work and returns its result."


def run_here(steps: Generator[Callable[[], Any], Any, T]) -> T:
    """Do all the work in this thread; returns what `steps` returns."""
    try:
        work = next(steps)
        while True:
            try:
                done = work()
            except Exception as exc:
                work = steps.throw(exc)
            else:
                work = steps.send(done)
    except StopIteration as end:
        found: T = end.value
        return found


async def run_aside(steps: Generator[Callable[[], Any], Any, T], aside: Aside) -> T:
    """Run the steps in this task, and have `aside` do the work between them; returns what `steps` returns."""
    try:
        work = next(steps)
        while True:
            try:
                done = await aside(work)
            except Exception as exc:
                work = steps.throw(exc)
            else:
                work = steps.send(done)
    except StopIteration as end:
        found: T = end.value
        return found
