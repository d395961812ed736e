"""The log of a worker: what the Kafka client repeats while a broker is away is written now and then, with how often it came."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Seldom", "log_to_stderr"]

EVERY_S = 10.0
MOST, LONGEST = 1_000, 300
"Messages that are remembered, and characters of each."
NUMBER = re.compile(r"\d+")


@dataclass(slots=True)
class _Written:
    at: float
    held_back: int = 0


class Seldom(logging.Filter):
    """Of warnings and errors that the named loggers repeat, apart from numbers, one in `every_s` is let through.

    Twenty clients that look for their broker ten times a second otherwise write 500 lines a second, and what matters is not
    found among them.
    """

    def __init__(self, names: str, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(names)
        self._every_s, self._clock = every_s, clock
        self._written: dict[str, _Written] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write it; says how many like it were not, since the last one that was."""
        if record.levelno < logging.WARNING or not super().filter(record):
            return True
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # for the handler to complain about
            return True
        what, now = NUMBER.sub("0", f"{record.levelno} {record.name} {text}")[:LONGEST], self._clock()
        last = self._written.get(what)
        if last is not None and now - last.at < self._every_s:
            last.held_back += 1
            return False
        if last is not None and last.held_back:
            record.msg, record.args = f"{text} ({last.held_back} more like it in {now - last.at:.0f} s)", ()
        if last is None and len(self._written) >= MOST:
            self._written.clear()
        self._written[what] = _Written(now)
        return True


def log_to_stderr(level: str) -> None:
    """Set up logging for a process that runs for long."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers[:1]:
        handler.addFilter(Seldom("aiokafka"))
