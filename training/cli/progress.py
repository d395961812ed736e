"""Progress of a training command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from training.data.corpus import Corpus
from training.loop.alone import is_first

__all__ = ["SAID_EVERY_S", "Lines", "Report", "note", "progress"]

SAID_EVERY_S = 10.0
LOOK_S = 1.0
"Seconds between two looks at whether a line is due."
Report = Callable[[str, int, int], None]
"""Called with the name of a part, the work done, and its total work. A part of which nothing is done yet is shown by its time,
because many have no measure."""


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """Report progress: a bar per part that stays on the screen, or without a terminal a line every `SAID_EVERY_S`.

    In a group of processes only the first reports.
    """
    if not is_first():
        yield lambda part, done, of: None  # noqa: ARG005
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield from _lines(console, clock)


class _Done(ProgressColumn):
    """`done/total` of a part with a measure; empty for others."""

    def render(self, task: Task) -> Text:
        """Render the column."""
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


def _bars(console: Console) -> Iterator[Report]:
    columns = (TextColumn("{task.description:36s}"), BarColumn(), _Done(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bar:

        def end(task: TaskID) -> None:
            total = bar.tasks[task].total or 1
            bar.update(task, completed=total, total=total)
            bar.stop_task(task)

        def report(part: str, done: int, of: int) -> None:
            if part not in tasks:
                for task in tasks.values():
                    end(task)
                tasks[part] = bar.add_task(part, total=None)
            if done:  # without a total the bar moves to and fro
                bar.update(tasks[part], completed=done, total=of)

        yield report
        for task in tasks.values():
            end(task)


class Lines:
    """Lines about the part under way, for output without a terminal, at most one every `SAID_EVERY_S`.

    `look` writes a line that is due though nothing is reported.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._said = self._began = clock()
        self._part, self._done, self._of = "", 0, 0

    def report(self, part: str, done: int, of: int) -> None:
        """Report the work done of a part, and its total work."""
        with self._lock:
            if part != self._part:
                self._part, self._began = part, self._clock()
            self._done, self._of = done, of
            self._say()

    def look(self) -> None:
        """Write a line if one is due."""
        with self._lock:
            if self._part:
                self._say()

    def _say(self) -> None:
        now = self._clock()
        if now - self._said < SAID_EVERY_S:
            return
        self._said = now
        share = 100 * self._done // max(1, self._of)
        far = f"{share} %" if share else f"{now - self._began:.0f} s so far"
        self._console.print(f"{self._part}: {far}", highlight=False)


def _lines(console: Console, clock: Callable[[], float]) -> Iterator[Report]:
    lines, ended = Lines(console, clock), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            lines.look()

    watch = threading.Thread(target=look, name="progress", daemon=True)
    watch.start()
    try:
        yield lines.report
    finally:
        ended.set()
        watch.join()


def note(console: Console, corpus: Corpus) -> None:
    """Print the notes on the corpus."""
    if is_first():
        for line in corpus.notes:
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
