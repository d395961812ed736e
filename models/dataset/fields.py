"""Conversion of a row's fields to the types that `schemas.validation` requires."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import orjson

from schemas.errors import BadInput
from schemas.parsing import epoch_ms, finite_number, flag, shown

__all__ = ["IDS", "TIMES", "as_list", "event_text", "nothing", "plain_text", "typed"]

NUMBERS = frozenset(("value", "price", "position"))
IDS = frozenset(("event_id", "user_id", "item_id", "action", "session_id", "request_id"))
TIMES = frozenset(("event_time", "published_at"))
EXACT = 2**53
"Bound from which on floats cannot represent every whole number, so that a float is not accepted as an id."


def nothing(value: object) -> bool:
    """Return whether a field is missing: absent, empty, or the NaN that data frames use for null. The text `NaN` is a value."""
    return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and math.isnan(value))


def typed(source: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the fields that have a value to the types that `schemas.validation` requires.

    Text files hold numbers, flags and times as text. Data frames with a null in a column of whole numbers hold floats, and NaN
    for the null. A value that cannot be converted is returned unchanged, and validation rejects it.
    """
    return {name: _typed(name, value) for name, value in source.items() if not nothing(value)}


def _typed(name: str, value: Any) -> Any:
    parse: Callable[[Any], Any] | None = None
    if name in TIMES:
        parse = epoch_ms
    elif name in NUMBERS and isinstance(value, str):
        parse = finite_number
    elif name == "available" and isinstance(value, str):
        parse = flag
    elif name == "available" and value in (0, 1):
        return bool(value)
    if parse is not None:
        try:
            value = parse(value)
        except ValueError:
            return value
    if isinstance(value, Decimal):
        value = int(value) if name in IDS and value == value.to_integral_value() else float(value)
    if name in IDS or name == "position":
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < EXACT else value
    return value


def event_text(name: str, value: object) -> str | None:
    """Format an event's field as text, which `typed` reads back; None if it has no value.

    Raises:
        BadInput: the value has no such text.
    """
    if nothing(value):
        return None
    if name in TIMES and isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, str):
        return value
    if not isinstance(value, bool) or name not in IDS:
        value = _typed(name, value) if name in IDS else value
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int) or (isinstance(value, float | Decimal) and name not in IDS):
            return str(value)
    what = "a string or a whole number" if name in IDS else "text or a number"
    raise BadInput("invalid_field", f"{name} must be {what}, is {shown(value)}", name)


def plain_text(value: object) -> str | None:
    """Format the value of an attribute as text; the entries of a list are joined by ", ".

    Returns None for an object, binary data, or a list of these.
    """
    if isinstance(value, list | tuple):
        entries = [entry for entry in value if not nothing(entry)]
        parts = [None if isinstance(entry, list | tuple) else plain_text(entry) for entry in entries]
        return None if None in parts else ", ".join(part or "" for part in parts)
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float | Decimal | date | time) else None


def as_list(text: str) -> list[Any] | None:
    """Parse the JSON array in a cell; None if it holds something else."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, list) else None
