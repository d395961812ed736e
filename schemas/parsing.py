"""Strict parsers of numbers, flags and times, used for all external text regardless of its origin.

Python's own `int()` and `float()` accept underscores, surrounding blanks, a plus sign and the digits of every script, and
`float()` accepts "nan" and "infinity". These parsers refuse text that other readers may not treat as a number.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import orjson

from schemas.errors import ConfigError

__all__ = [
    "FLAGS",
    "MAX_LEVELS",
    "MAX_TIME_MS",
    "demand",
    "epoch_ms",
    "finite_number",
    "flag",
    "json_fault",
    "shown",
    "shown_without_login",
    "variable",
    "whole_number",
]

MAX_TIME_MS = 2**53
"Exclusive upper bound of times, which are whole milliseconds since 1970-01-01T00:00:00Z."
FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
"Spellings of flags; case is ignored."
WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
DECIMAL = re.compile(r"-?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
MAX_SHOWN = 40
MAX_LEVELS = 1_024
"Levels of arrays and objects that the JSON parser reads."
TOO_DEEP = "depth limit exceeded"
"The parser's message about a text with more levels. A test holds it to this."
JSON_TYPES = (bool, int, float, list, tuple, dict, type(None))


def shown(value: object) -> str:
    """Format an external value for error messages: escaped, at most `MAX_SHOWN` characters.

    Text is quoted, and so are values that JSON cannot represent. Other values are formatted as JSON: `true`, `null`, `[1]`.
    """
    if isinstance(value, JSON_TYPES):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            spelled = _cut(json.dumps(value, ensure_ascii=False, default=_text))
            return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in spelled)
    return repr(_cut(_text(value)))


def json_fault(exc: orjson.JSONDecodeError, where: str = "") -> tuple[str, str]:
    """Return the code of a text that the JSON parser refuses, and the rest of a message about it, after "it is".

    `too_deep`: it is nested beyond what the parser reads, so that it may be JSON. Otherwise `not_json`. `where`: the place of
    the fault in the caller's terms; empty for line and column.
    """
    if exc.msg.startswith(TOO_DEEP):
        return "too_deep", f"nested more than {MAX_LEVELS:,} levels deep"
    return "not_json", f"not JSON: {exc.msg} ({where or f'line {exc.lineno}, column {exc.colno}'})"


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def shown_without_login(text: str) -> str:
    """Format a value for error messages as `shown` does, unless it may be a login in the wrong variable."""
    return shown(text) if "@" not in text else "something with an @, which is not shown"


def variable(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return f"RIFFLE_{name.upper()}"


def demand(holds: bool, name: str, rule: str) -> None:
    """Refuse the setting `name` unless its rule holds; `rule` completes "RIFFLE_NAME …".

    Raises:
        ConfigError: the rule does not hold.
    """
    if not holds:
        raise ConfigError("invalid_setting", f"{variable(name)} {rule}", name)


def whole_number(text: str) -> int:
    """Parse a whole number of at most 19 ASCII digits, with an optional minus sign and nothing else.

    Raises:
        ValueError: the text is anything else; the message completes "NAME …".
    """
    if WHOLE.fullmatch(text) is None:
        raise ValueError(f"must be a whole number, is {shown(text)}")
    return int(text)


def finite_number(text: str) -> float:
    """Parse a decimal number in ASCII, optionally with an exponent.

    Raises:
        ValueError: the text is anything else, or too large for a double; the message completes "NAME …".
    """
    value = float(text) if DECIMAL.fullmatch(text) is not None else math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, is {shown(text)}")
    return value


def flag(text: str) -> bool:
    """Parse a flag of `FLAGS`.

    Raises:
        ValueError: the text is not a flag; the message completes "NAME …".
    """
    found = FLAGS.get(text.lower())
    if found is None:
        raise ValueError(f"must be true or false, is {shown(text)}")
    return found


def epoch_ms(value: object) -> int:
    """Convert a time to epoch milliseconds: a whole number (as number or digits), ISO 8601 text, a date or a datetime.

    A time without a zone is in UTC, and a date means midnight in UTC. Fractions of a millisecond are rounded towards the past,
    so that the same instant gives the same milliseconds in every form.

    Raises:
        ValueError: the value is none of these, or lies outside 0..2^53 ms; the message completes "NAME …".
    """
    moment: object = value
    if isinstance(moment, float | Decimal):
        moment = int(moment) if math.isfinite(moment) and moment == int(moment) else None
    elif isinstance(moment, str):
        moment = int(moment) if WHOLE.fullmatch(moment) else _iso(moment)
    elif isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day, tzinfo=UTC)
    if isinstance(moment, datetime):
        try:
            moment = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MILLISECOND
        except OverflowError:
            moment = None
    if not isinstance(moment, int) or isinstance(moment, bool):
        raise ValueError(f"must be epoch milliseconds or ISO 8601, is {shown(value)}")
    if not 0 <= moment < MAX_TIME_MS:
        raise ValueError(f"must lie in 0..2^53 epoch milliseconds, is {shown(value)}")
    return moment


def _iso(text: str) -> datetime | None:
    if not text.isascii():
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
