"""Progress of a training command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from training.data.corpus import Corpus
from training.loop.alone import is_first

__all__ = ["SAID_EVERY_S", "Report", "Reporter", "Whole", "note", "progress"]

SAID_EVERY_S = 10.0
PACE_FROM = 0.05
"Share of the whole from which the time that is left follows from the pace so far."
LEAST_MINUTES_S = 90.0
"Seconds from which a time is given in minutes."
Report = Callable[[str, int, int], None]
"Called with the name of a part, the work done, and its total work."


class Whole:
    """How far a training as a whole is, by the expected seconds of its parts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._parts = clock, dict[str, float]()
        self._begun_s, self.share = 0.0, 0.0
        "Share of the whole that is done, 0 to 1. It never falls."

    def expect(self, parts: Mapping[str, float]) -> None:
        """Begin the whole: the expected seconds of the parts, in their order."""
        self._parts, self._begun_s, self.share = dict(parts), self._clock(), 0.0

    @property
    def known(self) -> bool:
        """Whether anything is expected."""
        return sum(self._parts.values()) > 0

    def at(self, part: str, done: int, of: int) -> None:
        """Note the progress of a part. Parts that were not expected, and whose name begins with none, change nothing."""
        before, total = 0.0, sum(self._parts.values())
        if not self.known:
            return
        for name, seconds in self._parts.items():
            if part.startswith(name):
                reached = (before + seconds * min(1.0, done / max(1, of))) / total
                self.share = max(self.share, reached)
                return
            before += seconds

    def left_s(self) -> float:
        """Seconds that the rest takes: at first as expected, later at the pace so far."""
        expected = sum(self._parts.values()) * (1.0 - self.share)
        if self.share < PACE_FROM:
            return expected
        return (self._clock() - self._begun_s) * (1.0 - self.share) / self.share

    def text(self) -> str:
        """Return the share in percent and the time that is left."""
        left = self.left_s()
        said = f"{left / 60:.0f} min" if left >= LEAST_MINUTES_S else f"{left:.0f} s"
        return f"{100 * self.share:.0f} % of all, about {said} left"


class Reporter:
    """Reports the progress of parts, and of the whole once its parts are expected. A `Report`."""

    def __init__(self, said: Callable[[str, int, int, Whole], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._said, self._whole = said, Whole(clock)

    def __call__(self, part: str, done: int, of: int) -> None:
        """Report that `done` of `of` of a part is done."""
        self._whole.at(part, done, of)
        self._said(part, done, of, self._whole)

    def expect(self, parts: Mapping[str, float]) -> None:
        """Set the parts that follow, in their order, with their expected seconds."""
        self._whole.expect(parts)


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Reporter]:
    """Report progress: a bar per part that stays on the screen, or without a terminal at most one line per `SAID_EVERY_S`.

    In a group of processes only the first reports.
    """
    if not is_first():
        yield Reporter(lambda part, done, of, whole: None, clock)  # noqa: ARG005
    elif console.is_terminal:
        yield from _bars(console, clock)
    else:
        yield Reporter(_lines(console, clock), clock)


def _bars(console: Console, clock: Callable[[], float]) -> Iterator[Reporter]:
    columns = (TextColumn("{task.description:36s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bar:
        every: list[TaskID] = []

        def said(part: str, done: int, of: int, whole: Whole) -> None:
            if whole.known and not every:
                every.append(bar.add_task("the whole", total=100))
            if part not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=bar.tasks[task].total)
                    bar.stop_task(task)
                tasks[part] = bar.add_task(part, total=of)
            bar.update(tasks[part], completed=done, total=of)
            if every:
                bar.update(every[0], completed=int(100 * whole.share), description=whole.text())

        yield Reporter(said, clock)


def _lines(console: Console, clock: Callable[[], float]) -> Callable[[str, int, int, Whole], None]:
    said = clock()

    def report(part: str, done: int, of: int, whole: Whole) -> None:
        nonlocal said
        if (now := clock()) - said >= SAID_EVERY_S:
            said = now
            rest = f" ({whole.text()})" if whole.known else ""
            console.print(f"{part}: {100 * done // max(1, of)} %{rest}", highlight=False)

    return report


def note(console: Console, corpus: Corpus) -> None:
    """Print the notes on the corpus."""
    if is_first():
        for line in corpus.notes:
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
