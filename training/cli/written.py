"""Progress of a training in a file, for the program that runs it: `riffle train` reports it on Kafka."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.cli.progress import Reporter, Whole
from training.loop.alone import is_first

__all__ = ["EVERY_S", "Written", "written"]

EVERY_S = 1.0
"Seconds between two writes about the same part."
VERSION = 1


class Written:
    """Keeps a file at the newest progress: one JSON object, which is replaced as a whole, so that no reader sees half of it.

    It has `version`, `part`, `done` and `of` (work of the part), `share` and `left_s` of the whole (null until they are known),
    and `parts`, the names and expected seconds of all parts. After a write that fails there is none, and the training goes on.
    """

    def __init__(self, path: Path, whole: Whole, clock: Callable[[], float] = time.monotonic) -> None:
        self._path: Path | None = path
        self._whole, self._clock = whole, clock
        self._lock = threading.Lock()
        self._part, self._due = "", 0.0

    def report(self, part: str, done: int, of: int) -> None:
        """Write, if the part is another one or a write is due."""
        with self._lock:
            now = self._clock()
            if self._path is None or (part == self._part and now < self._due):
                return
            self._part, self._due = part, now + EVERY_S
            known = self._whole.known
            facts = {
                "version": VERSION,
                "part": part,
                "done": done,
                "of": of,
                "share": round(self._whole.share, 4) if known else None,
                "left_s": round(self._whole.left_s(), 1) if known else None,
                "parts": [[name, round(seconds, 1)] for name, seconds in self._whole.parts.items()],
            }
            beside = self._path.with_name(f"{self._path.name}.new")
            try:
                beside.write_text(json.dumps(facts), encoding="utf-8")
                beside.replace(self._path)
            except OSError:
                self._path = None


@contextmanager
def written(path: Path | None, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> Iterator[Reporter]:
    """Also write to a file what is reported; None: do not. In a group of processes only the first writes."""
    if path is None or not is_first():
        yield reporter
        return
    newest = Written(path, reporter.whole, clock)

    def report(part: str, done: int, of: int) -> None:
        reporter(part, done, of)
        newest.report(part, done, of)

    yield Reporter(report, reporter.whole)
