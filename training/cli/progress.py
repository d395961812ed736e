"""Progress of a training command."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from training.data.corpus import Corpus
from training.loop.alone import is_first

__all__ = ["SAID_EVERY_S", "Lines", "Report", "Reporter", "Whole", "note", "progress"]

SAID_EVERY_S = 10.0
PACE_FROM = 0.05
"Share of the whole from which the time that is left follows from the pace so far."
LEAST_MINUTES_S = 90.0
"Seconds from which a time is given in minutes."
LOOK_S = 1.0
"Seconds between two looks at whether a line is due."
Report = Callable[[str, int, int], None]
"""Called with the name of a part, the work done, and its total work. A part of which nothing is done yet is shown by its time,
because many have no measure."""


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
    def parts(self) -> Mapping[str, float]:
        """Expected seconds of the parts, in their order."""
        return self._parts

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

    def __init__(self, report: Report, whole: Whole) -> None:
        self._report, self.whole = report, whole

    def __call__(self, part: str, done: int, of: int) -> None:
        """Report that `done` of `of` of a part is done."""
        self.whole.at(part, done, of)
        self._report(part, done, of)

    def expect(self, parts: Mapping[str, float]) -> None:
        """Set the parts that follow, in their order, with their expected seconds."""
        self.whole.expect(parts)


@contextmanager
def progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Reporter]:
    """Report progress: a bar per part that stays on the screen, or without a terminal a line every `SAID_EVERY_S`.

    In a group of processes only the first reports.
    """
    if not is_first():
        yield Reporter(lambda part, done, of: None, Whole(clock))  # noqa: ARG005
    elif console.is_terminal:
        yield from _bars(console, Whole(clock))
    else:
        yield from _lines(console, clock)


class _Done(ProgressColumn):
    """`done/total` of a part with a measure; empty for others."""

    def render(self, task: Task) -> Text:
        """Render the column."""
        return Text("" if task.total is None else f"{task.completed:.0f}/{task.total:.0f}")


def _bars(console: Console, whole: Whole) -> Iterator[Reporter]:
    columns = (TextColumn("{task.description:36s}"), BarColumn(), _Done(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    every: list[TaskID] = []
    "The bar of the whole, once its parts are expected."
    with Progress(*columns, console=console) as bar:

        def end(task: TaskID) -> None:
            total = bar.tasks[task].total or 1
            bar.update(task, completed=total, total=total)
            bar.stop_task(task)

        def report(part: str, done: int, of: int) -> None:
            if whole.known and not every:
                every.append(bar.add_task("", total=100))
            if every:
                bar.update(every[0], completed=int(100 * whole.share), description=whole.text())
            if part not in tasks:
                for task in tasks.values():
                    end(task)
                tasks[part] = bar.add_task(part, total=None)
            if done:  # without a total the bar moves to and fro
                bar.update(tasks[part], completed=done, total=of)

        yield Reporter(report, whole)
        for task in (*tasks.values(), *every):
            end(task)


class Lines:
    """Lines about the part under way, for output without a terminal, at most one every `SAID_EVERY_S`.

    `look` writes a line that is due though nothing is reported.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic, whole: Whole | None = None) -> None:
        """With `whole`, whose parts may be expected later, each line also says how far that is."""
        self._console, self._clock, self._whole = console, clock, whole
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
        rest = f" ({self._whole.text()})" if self._whole is not None and self._whole.known else ""
        self._console.print(f"{self._part}: {far}{rest}", highlight=False)


def _lines(console: Console, clock: Callable[[], float]) -> Iterator[Reporter]:
    whole = Whole(clock)
    lines, ended = Lines(console, clock, whole), threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            lines.look()

    watch = threading.Thread(target=look, name="progress", daemon=True)
    watch.start()
    try:
        yield Reporter(lines.report, whole)
    finally:
        ended.set()
        watch.join()


def note(console: Console, corpus: Corpus) -> None:
    """Print the notes on the corpus."""
    if is_first():
        for line in corpus.notes:
            console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
