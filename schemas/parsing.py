"""Strict parsers of numbers, flags and times. Every text that comes from outside is read by these, wherever it comes from.

Python's own `int()` and `float()` take underscores, surrounding blanks, a plus sign and the digits of every script, and
`float()` takes "nan" and "infinity". Text that means a number to one reader and not to the next is refused here instead.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from schemas.errors import ConfigError

__all__ = [
    "FLAGS",
    "MAX_TIME_MS",
    "demand",
    "epoch_ms",
    "finite_number",
    "flag",
    "shown",
    "shown_without_login",
    "variable",
    "whole_number",
]

MAX_TIME_MS = 2**53
"Times are whole milliseconds since 1970-01-01T00:00:00Z, below this."
FLAGS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
"Flags in text; upper and lower case are the same."
WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
DECIMAL = re.compile(r"-?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
MAX_SHOWN = 40
JSON_TYPES = (bool, int, float, list, tuple, dict, type(None))


def shown(value: object) -> str:
    """A value from outside as an error message shows it: escaped, at most `MAX_SHOWN` characters.

    Text is quoted, and so is what JSON has no spelling for. Anything else is spelled as in JSON: `true`, `null`, `[1]`.
    """
    if isinstance(value, JSON_TYPES):
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            spelled = _cut(json.dumps(value, ensure_ascii=False, default=_text))
            return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in spelled)
    return repr(_cut(_text(value)))


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def shown_without_login(text: str) -> str:
    """A value as an error shows it, unless it may be a login in the wrong variable."""
    return shown(text) if "@" not in text else "something with an @, which is not shown"


def variable(name: str) -> str:
    """Environment variable of the setting `name`."""
    return f"RIFFLE_{name.upper()}"


def demand(holds: bool, name: str, rule: str) -> None:
    """Refuse the setting `name` unless the rule, which completes "RIFFLE_NAME …", holds.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError("invalid_setting", f"{variable(name)} {rule}", name)


def whole_number(text: str) -> int:
    """A whole number of at most 19 ASCII digits, with an optional minus sign and nothing else.

    Raises:
        ValueError: the text is anything else; the message completes "NAME …".
    """
    if WHOLE.fullmatch(text) is None:
        raise ValueError(f"must be a whole number, is {shown(text)}")
    return int(text)


def finite_number(text: str) -> float:
    """A decimal number in ASCII, optionally with an exponent.

    Raises:
        ValueError: the text is anything else, or too large for a double; the message completes "NAME …".
    """
    value = float(text) if DECIMAL.fullmatch(text) is not None else math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a finite number, is {shown(text)}")
    return value


def flag(text: str) -> bool:
    """A flag of `FLAGS`.

    Raises:
        ValueError: the text is no flag; the message completes "NAME …".
    """
    found = FLAGS.get(text.lower())
    if found is None:
        raise ValueError(f"must be true or false, is {shown(text)}")
    return found


def epoch_ms(value: object) -> int:
    """Epoch milliseconds of a time: a whole number (as a number or as digits), ISO 8601 text, a date or a datetime.

    A time without a zone is UTC, and a date is its midnight in UTC. Parts of a millisecond are cut off (towards the past), so
    the same instant gives the same milliseconds in whatever form it comes.

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
