"""How far a command of training is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.distributed import Group
from training.sources import Corpus

__all__ = ["SAID_EVERY_S", "Report", "note", "progress"]

SAID_EVERY_S = 10.0
Report = Callable[[str, int, int], None]
"Called with a part's name, how much of it is done, and of how much."


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """A bar per part, kept on the screen when it is done; a line every `SAID_EVERY_S` where there is no terminal.

    Of processes that train together the first alone says something.
    """
    if not Group.current().first:
        yield lambda part, done, of: None  # noqa: ARG005
        return
    columns = (TextColumn("{task.description:36s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    said = clock()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def report(part: str, done: int, of: int) -> None:
            nonlocal said
            if part not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=bar.tasks[task].total)
                    bar.stop_task(task)
                tasks[part] = bar.add_task(part, total=of)
                if not console.is_terminal:
                    console.print(f"{part} …")
                    said = clock()
            elif not console.is_terminal and clock() - said >= SAID_EVERY_S:
                said = clock()
                console.print(f"{part}: {100 * done // max(1, of)} %", highlight=False)
            bar.update(tasks[part], completed=done, total=of)

        yield report


def note(console: Console, corpus: Corpus) -> None:
    """Say what is to be known of the rows that were read."""
    if Group.current().first:
        for line in corpus.notes:
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
