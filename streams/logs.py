"""Logging of long-running processes: without secrets, and without the libraries' messages about each step.

Messages that the Kafka client repeats while a broker is away, and the exporter of traces while a collector is, are written at
intervals, with a count.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType

from schemas.masking import masked

__all__ = ["NO_REQUEST", "Json", "Masking", "Seldom", "log_to_stderr", "request_facts"]

NO_REQUEST: Mapping[str, str] = MappingProxyType({})
request_facts: ContextVar[Mapping[str, str]] = ContextVar("request_facts", default=NO_REQUEST)
"`request_id` and `trace_id` of the request that this task answers."
FACTS = ("request_id", "trace_id")

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
    "opentelemetry",
    "s3transfer",
    "transformers",
    "urllib3",
)
"Loggers of libraries that write a line for each step, request or start."

EVERY_S = 10.0
MOST, LONGEST = 1_000, 300
"Messages that are remembered, and characters of each."
NUMBER = re.compile(r"\d+")
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def _without_controls(text: str) -> str:
    """Escape control characters but line breaks and tabs, as in JSON: names from outside must not command a terminal."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass(slots=True)
class _Written:
    at: float
    held_back: int = 0


class Seldom(logging.Filter):
    """Passes one in `every_s` of the warnings and errors that the named loggers repeat. Messages that differ only in numbers
    are equal.

    Otherwise twenty clients that look for their broker ten times a second write 500 lines a second, which hide all else.
    """

    def __init__(self, names: str, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(names)
        self._every_s, self._clock = every_s, clock
        self._written: dict[str, _Written] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record. A written one includes the count of similar records suppressed before it."""
        if record.levelno < logging.WARNING or not super().filter(record):
            return True
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the handler reports it
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
    """Masks logins and secret parameters of URLs in log lines, stack traces included."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, of a record."""
        return _without_controls(masked(super().format(record)))


class Json(logging.Formatter):
    """One JSON object on a line, masked: `at` (ISO 8601, UTC), `level`, `logger`, `message`, with an error also `error`.

    `request_id` and `trace_id` come from `extra` of the call, or from the request that the task answers.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname, "logger": record.name, "message": masked(record.getMessage())}
        if record.exc_info:
            line["error"] = masked(self.formatException(record.exc_info))
        known = request_facts.get()
        for name in FACTS:
            if value := getattr(record, name, None) or known.get(name):
                line[name] = str(value)
        return _without_controls(json.dumps(line, ensure_ascii=False))


def log_to_stderr(level: str, form: str = "text") -> None:
    """Set up logging for a long-running process. Libraries log only warnings, unless `level` is DEBUG. `form`: text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if form == "json" else Masking("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("aiokafka", "opentelemetry"):
        handler.addFilter(Seldom(name))
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
