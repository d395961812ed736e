"""Progress of a long step: a bar on a terminal, otherwise a line at intervals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.cli.screen import plain_console

__all__ = ["advance", "step", "with_progress"]

EVERY_S = 10.0
"Seconds between two lines."


@contextmanager
def advance(
    what: str, total: int, console: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int], None]]:
    """Create a function that reports how much of `total` is done."""
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
            # bad rows never count as done, so that no further progress is to come
            bar.update(task, total=bar.tasks[task].completed)
        return
    last = clock()

    def report(done: int) -> None:
        nonlocal last
        if clock() - last >= EVERY_S:
            last = clock()
            console.print(f"{what}: {100 * done // max(1, total)} % of {total}", highlight=False)

    yield report


def with_progress(what: str, total: int, work: Callable[[Callable[[int], None]], Awaitable[Any]]) -> Any:
    """Run `work` with a function that reports its progress on stderr."""

    async def run() -> Any:
        with advance(what, total, plain_console(stderr=True)) as report:
            return await work(report)

    return asyncio.run(run())


@contextmanager
def step(console: Console, what: str, clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[str], None]]:
    """Show the name of the current step while it runs; creates a function that shows details of a step that takes long."""
    last = clock()

    def is_due() -> bool:
        nonlocal last
        due = clock() - last >= EVERY_S
        last = clock() if due else last
        return due

    if console.is_terminal:
        with console.status(what) as shown:
            yield lambda detail: shown.update(f"{what}: {detail}") if is_due() else None
    else:
        console.print(f"{what} …", highlight=False)
        yield lambda detail: console.print(f"{what}: {detail}", highlight=False) if is_due() else None
