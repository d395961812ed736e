"""Progress of a training as lines of JSON in a file, for other programs: `riffle train` reports it on Kafka."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from training.cli.progress import Reporter, Whole
from training.loop.alone import is_first

__all__ = ["EVERY_S", "written"]

EVERY_S = 1.0
"Seconds between two lines about the same part."
VERSION = 1


class _Lines:
    """Writes lines. After a line that cannot be written none is, because the reader is gone, and the training goes on."""

    def __init__(self, out: TextIO, whole: Whole, clock: Callable[[], float]) -> None:
        self._out: TextIO | None = out
        self._whole, self._clock = whole, clock
        self._lock = threading.Lock()
        self._part, self._due = "", 0.0

    def report(self, part: str, done: int, of: int) -> None:
        """Write a line about the part, if it is another one or a line is due."""
        with self._lock:
            now = self._clock()
            if self._out is None or (part == self._part and now < self._due):
                return
            self._part, self._due = part, now + EVERY_S
            known = self._whole.known
            line = {
                "version": VERSION,
                "part": part,
                "done": done,
                "of": of,
                "share": round(self._whole.share, 4) if known else None,
                "left_s": round(self._whole.left_s(), 1) if known else None,
                "parts": [[name, round(seconds, 1)] for name, seconds in self._whole.parts.items()],
            }
            try:
                self._out.write(json.dumps(line) + "\n")
                self._out.flush()
            except OSError:
                self._out = None


@contextmanager
def written(path: Path | None, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> Iterator[Reporter]:
    """Also write what is reported to a file, one line of JSON at most every `EVERY_S` and for each new part; None: do not.

    A line has `version`, `part`, `done` and `of` (work of the part), `share` and `left_s` of the whole (null until they are known), and `parts`,
    the names and expected seconds of all parts. In a group of processes only the first writes.

    Raises:
        OSError: the file cannot be opened.
    """
    if path is None or not is_first():
        yield reporter
        return
    with path.open("a", encoding="utf-8") as out:
        lines = _Lines(out, reporter.whole, clock)

        def report(part: str, done: int, of: int) -> None:
            reporter(part, done, of)
            lines.report(part, done, of)

        yield Reporter(report, reporter.whole)
        with suppress(OSError):
            out.flush()
