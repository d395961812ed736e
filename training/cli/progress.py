"""Progress of a training command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.data.corpus import Corpus
from training.loop.alone import is_first

__all__ = ["SAID_EVERY_S", "Report", "note", "progress"]

SAID_EVERY_S = 10.0
Report = Callable[[str, int, int], None]
"Called with the name of a part, the work done, and its total work."


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Report progress: a bar per part that stays on the screen, or without a terminal at most one line per `SAID_EVERY_S`.

    In a group of processes only the first reports.
    """
    if not is_first():
        yield lambda part, done, of: None  # noqa: ARG005
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield _lines(console, clock)


def _bars(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description:36s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bar:

        def report(part: str, done: int, of: int) -> None:
            if part not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=bar.tasks[task].total)
                    bar.stop_task(task)
                tasks[part] = bar.add_task(part, total=of)
            bar.update(tasks[part], completed=done, total=of)

        yield report


def _lines(console: Console, clock: Callable[[], float]) -> Report:
    said = clock()

    def report(part: str, done: int, of: int) -> None:
        nonlocal said
        if (now := clock()) - said >= SAID_EVERY_S:
            said = now
            console.print(f"{part}: {100 * done // max(1, of)} %", highlight=False)

    return report


def note(console: Console, corpus: Corpus) -> None:
    """Print the notes on the corpus."""
    if is_first():
        for line in corpus.notes:
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
