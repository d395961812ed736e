"""Validation of external input of any encoding. Every input is bounded in size and number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from schemas.errors import BadEvent, BadInput, BadItem, BadRequest
from schemas.parsing import epoch_ms, shown
from schemas.records import After, Interaction, Item, Request, UserQuery

__all__ = [
    "FUTURE_MS",
    "Fields",
    "check_time",
    "event_id_of",
    "interaction_from",
    "item_from",
    "request_from",
    "user_query_from",
]

MAX_ID_BYTES = 256
MAX_TEXT_CHARS = 65_536
FUTURE_MS = 86_400_000
"""Maximum milliseconds by which an event time may exceed its record's timestamp. It allows for clock differences; an event far
in the future would make all earlier events decay."""
MAX_K = 500
MAX_EXCLUDE = 10_000
MAX_CATEGORIES = 100
MAX_CANDIDATES = 5_000
MAX_USERS = 500
"Maximum number of ids of a page of users. A page then fits into a Kafka message, however its characters are escaped."
MAX_PAIRS = 100
"Maximum number of pairs of a request's context, and of an item's attributes."
MAX_ENTRY_CHARS = 256
"Maximum length of an entry of a list (an id or a category) and of the name of a pair, in characters."
MAX_VALUE_CHARS = 4_096
MAX_IMAGE_CHARS = 4_096
MAX_NUMBER = 3e38
"Maximum size of a number, which single precision can hold."
MAX_POSITION = 1_000_000
MAX_PARTITION, MAX_OFFSET = 1 << 20, 1 << 62
MAX_NAME_CHARS = 100
"Maximum length, in an error message, of an unknown field's name, in characters."

INTERACTION_FIELDS = frozenset(Interaction.__dataclass_fields__)
ITEM_FIELDS = frozenset(Item.__dataclass_fields__)
REQUEST_FIELDS = frozenset(Request.__dataclass_fields__)
USER_QUERY_FIELDS = frozenset(UserQuery.__dataclass_fields__)


class Fields:
    """Typed access to the fields of an untrusted mapping; every failure names the field."""

    def __init__(self, source: Mapping[str, Any], known: frozenset[str], error: type[BadInput], within: str = "") -> None:
        self.source = source
        self.error = error
        self.within = within
        unknown = [name for name in source if name not in known]
        if unknown:
            name = self.within + str(unknown[0])
            names = ", ".join(self.within + field for field in sorted(known))
            raise error("invalid_field", f"unknown field {shown(name)}; known: {names}", name[:MAX_NAME_CHARS])

    def fail(self, field: str, message: str, code: str = "invalid_field") -> NoReturn:
        """Raise the error of a field; `message` begins with its name."""
        raise self.error(code, self.within + message, self.within + field)

    def identifier(self, field: str, default: str | None = None) -> str:
        """Return an id of 1 to MAX_ID_BYTES bytes; a whole number is read as its digits."""
        value = self.source.get(field)
        if value is None:
            if default is not None:
                return default
            self.fail(field, f"{field} is missing", "missing_field")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if _is_beyond_64_bits(value):
            self.fail(field, f"{field} is a number beyond 64 bits, of which digits are lost: send it as a string")
        if not isinstance(value, str):
            self.fail(field, f"{field} must be a string or a whole number, is {shown(value)}")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            self.fail(field, f"{field} is not valid Unicode")
        if not 0 < size <= MAX_ID_BYTES:
            self.fail(field, f"{field} must have 1 to {MAX_ID_BYTES} bytes, has {size}")
        return value

    def optional_identifier(self, field: str) -> str | None:
        """Return an id as `identifier` does, None without one."""
        return None if self.source.get(field) is None else self.identifier(field)

    def number(self, field: str, low: float = -MAX_NUMBER) -> float | None:
        """Return a finite number of at least `low`, None without one."""
        value = self.source.get(field)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            self.fail(field, f"{field} must be a finite number, is {shown(value)}")
        if not low <= value <= MAX_NUMBER:
            self.fail(field, f"{field} must lie in {low:g}..3e38, is {shown(value)}")
        return float(value)

    def integer(self, field: str, low: int, high: int) -> int | None:
        """Return a whole number within `low` and `high`, None without one. In JSON, 5.0 is the whole number 5."""
        value = self.source.get(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
        if _is_beyond_64_bits(value):
            self.fail(field, f"{field} must lie in {low}..{high}, is a number beyond 64 bits")
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(field, f"{field} must be a whole number, is {shown(value)}")
        if not low <= value <= high:
            self.fail(field, f"{field} must lie in {low}..{high}, is {value}")
        return value

    def time_ms(self, field: str) -> int | None:
        """Return a time in epoch ms, None without one."""
        value = self.source.get(field)
        if value is None:
            return None
        try:
            return epoch_ms(value)
        except ValueError as exc:
            self.fail(field, f"{field} {exc}")

    def text(self, field: str) -> str:
        """Return a text of at most MAX_TEXT_CHARS characters, empty without one."""
        value = self.source.get(field)
        if value is None:
            return ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
            self.fail(field, f"{field} must be text of at most {MAX_TEXT_CHARS} characters")
        return value

    def flag(self, field: str, *, default: bool) -> bool:
        """Return a flag."""
        value = self.source.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(field, f"{field} must be true or false, is {shown(value)}")
        return value

    def strings(self, field: str, most: int) -> tuple[str, ...]:
        """Return a list of at most `most` strings, empty without one."""
        value = self.source.get(field)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) > most:
            self.fail(field, f"{field} must be a list of at most {most} strings or whole numbers")
        if any(map(_is_beyond_64_bits, value)):
            self.fail(field, f"an entry of {field} is a number beyond 64 bits, of which digits are lost: send it as a string")
        found = tuple(str(entry) if isinstance(entry, int) and not isinstance(entry, bool) else entry for entry in value)
        if any(not isinstance(entry, str) or not 0 < len(entry) <= MAX_ENTRY_CHARS for entry in found):
            self.fail(field, f"every entry of {field} must be a string of 1 to {MAX_ENTRY_CHARS} characters, or a whole number")
        return found

    def strings_by_name(self, field: str, most: int) -> dict[str, str]:
        """Return an object of at most `most` plain values as text, empty without one."""
        value = self.source.get(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > most:
            self.fail(field, f"{field} must be an object of at most {most} entries")
        if any(not isinstance(k, str) or not isinstance(v, str | int | float | bool) for k, v in value.items()):
            self.fail(field, f"{field} must map names to plain values")
        found = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in value.items()}
        if any(len(k) > MAX_ENTRY_CHARS or len(v) > MAX_VALUE_CHARS for k, v in found.items()):
            self.fail(field, f"{field} must have names of at most {MAX_ENTRY_CHARS} characters, values of {MAX_VALUE_CHARS}")
        try:
            "".join((*found, *found.values())).encode()
        except UnicodeEncodeError:
            self.fail(field, f"an entry of {field} is not valid Unicode")
        return found


def _is_beyond_64_bits(value: object) -> bool:
    """Return whether a value is a whole number that JSON parsers read as a double because it has more than 64 bits."""
    return isinstance(value, float) and abs(value) >= 2**63 and math.isfinite(value)


def event_id_of(user_id: str, item_id: str, action: str, event_time: int) -> str:
    """Derive an id for an event without one. The same event always gets the same id, regardless of its origin."""
    # the constant last part stays, because without it every derived id would change
    text = "\x1f".join((user_id, item_id, action, str(event_time), "0"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def interaction_from(source: Mapping[str, Any], *, now_ms: int | None = None) -> Interaction:
    """Build an event from untrusted fields; impressions are events, too. `now_ms` replaces a missing `event_time`.

    Raises:
        BadEvent: `missing_field`, `invalid_field`; the field is named.
    """
    get = Fields(source, INTERACTION_FIELDS, BadEvent)
    user_id, item_id = get.identifier("user_id"), get.identifier("item_id")
    action = get.identifier("action", "view")
    event_time = get.time_ms("event_time")
    if event_time is None:
        if now_ms is None:
            get.fail("event_time", "event_time is missing", "missing_field")
        event_time = now_ms
    made = "" if source.get("event_id") is not None else event_id_of(user_id, item_id, action, event_time)
    return Interaction(
        get.identifier("event_id", made),
        user_id,
        item_id,
        event_time,
        action,
        get.number("value"),
        get.optional_identifier("session_id"),
        get.optional_identifier("request_id"),
        get.integer("position", 0, MAX_POSITION),
    )


def check_time(event_time: int, produced_ms: int) -> None:
    """Reject an event from the future, because the newest event time is the clock of all decay.

    Raises:
        BadEvent: `future_event_time`.
    """
    if event_time > produced_ms + FUTURE_MS:
        raise BadEvent("future_event_time", f"event_time {event_time} is more than a day after {produced_ms}", "event_time")


def item_from(source: Mapping[str, Any]) -> Item:
    """Build a catalogue entry from untrusted fields.

    Raises:
        BadItem: `missing_field`, `invalid_field`; the field is named.
    """
    get = Fields(source, ITEM_FIELDS, BadItem)
    image = source.get("image")
    if image is not None and (not isinstance(image, str) or len(image) > MAX_IMAGE_CHARS):
        get.fail("image", f"image must be a path or URL of at most {MAX_IMAGE_CHARS} characters")
    return Item(
        get.identifier("item_id"),
        get.text("title"),
        get.text("text"),
        get.strings("categories", MAX_CATEGORIES),
        image or None,
        get.number("price", 0.0),
        get.flag("available", default=True),
        get.time_ms("published_at"),
        get.strings_by_name("attributes", MAX_PAIRS),
    )


def request_from(source: Mapping[str, Any], *, request_id: str) -> Request:
    """Build a recommendation request from untrusted fields; `request_id` replaces a missing one.

    Raises:
        BadRequest: `missing_field`, `invalid_field`; the field is named.
    """
    get = Fields(source, REQUEST_FIELDS, BadRequest)
    after = source.get("after")
    token = None
    if after is not None:
        if not isinstance(after, Mapping):
            get.fail("after", 'after must be {"partition", "offset"}')
        inner = Fields(after, frozenset(("partition", "offset")), BadRequest, "after.")
        partition, offset = inner.integer("partition", 0, MAX_PARTITION), inner.integer("offset", 0, MAX_OFFSET)
        if partition is None or offset is None:
            get.fail("after", 'after must be {"partition", "offset"}')
        token = After(partition, offset)
    context = get.strings_by_name("context", MAX_PAIRS)
    if "" in context:
        get.fail("context", "context must name each value, but a name is empty")
    candidates = source.get("candidates")
    return Request(
        request_id if source.get("request_id") in (None, "") else get.identifier("request_id"),
        get.identifier("user_id"),
        get.integer("k", 1, MAX_K) or 10,
        context,
        get.strings("exclude", MAX_EXCLUDE),
        get.strings("categories", MAX_CATEGORIES),
        get.flag("explain", default=False),
        token,
        None if candidates is None else get.strings("candidates", MAX_CANDIDATES),
        get.flag("repeats", default=False),
    )


def user_query_from(source: Mapping[str, Any]) -> UserQuery:
    """Build a query for users from untrusted fields.

    Raises:
        BadRequest: `invalid_field`; the field is named.
    """
    get = Fields(source, USER_QUERY_FIELDS, BadRequest)
    after = "" if source.get("after") in (None, "") else get.identifier("after")
    return UserQuery(after, get.integer("limit", 1, MAX_USERS) or MAX_USERS)
