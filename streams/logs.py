"""The log of a worker: without secrets, and without what libraries write of each step. What the Kafka client repeats while a
broker is away is written now and then, with how often it came."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from schemas.masking import masked

__all__ = ["Masking", "Seldom", "log_to_stderr"]

LIBRARIES = (
    "PIL",
    "aiohttp",
    "aiokafka",
    "asyncio",
    "boto3",
    "botocore",
    "faust",
    "httpcore",
    "httpx",
    "jgo",
    "mode",
    "numba",
    "s3transfer",
    "transformers",
    "urllib3",
)
"Loggers of libraries that write a line for each step, request or start."

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


class Masking(logging.Formatter):
    """Masks logins and secret parameters of URLs in what is written, stack traces included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of a record."""
        return masked(super().format(record))


def log_to_stderr(level: str) -> None:
    """Set up logging for a process that runs for long. Of libraries only warnings are written, unless `level` is DEBUG."""
    handler = logging.StreamHandler()
    handler.setFormatter(Masking("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(Seldom("aiokafka"))
    logging.basicConfig(level=level, handlers=[handler])
    if level != "DEBUG":
        for name in LIBRARIES:
            logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            shown(kind, error, trace)
        else:
            logging.getLogger(__name__).critical("the process ends: %s", kind.__name__, exc_info=(kind, error, trace))

    sys.excepthook = hook
