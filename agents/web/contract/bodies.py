"""Schemas of what clients send: events, items, requests and rules. Bounds are those of `schemas.validation`."""

from __future__ import annotations

from collections.abc import Mapping

from agents.web.body import MAX_EVENTS
from agents.web.contract.shapes import Schema, listed, mapped, nullable, ref, structure
from agents.web.operator_routes import MAX_LETTERS
from agents.web.request_lists import MAX_REQUESTS
from schemas.parsing import MAX_TIME_MS
from schemas.rules import (
    FORMAT,
    MAX_DAYS,
    MAX_FACTOR,
    MAX_ITEMS,
    MAX_NAME_CHARS,
    MAX_NAMED,
    MAX_RULES,
    PER_CATEGORY,
    Kind,
)
from schemas.rules import (
    MAX_EVENTS as MOST_OF_FRESH,
)
from schemas.validation import (
    MAX_CANDIDATES,
    MAX_CATEGORIES,
    MAX_ENTRY_CHARS,
    MAX_EXCLUDE,
    MAX_ID_BYTES,
    MAX_IMAGE_CHARS,
    MAX_K,
    MAX_NUMBER,
    MAX_OFFSET,
    MAX_PAIRS,
    MAX_PARTITION,
    MAX_POSITION,
    MAX_TEXT_CHARS,
    MAX_VALUE_CHARS,
)

__all__ = ["BODIES", "identifier"]

WHOLE_64: Mapping[str, int] = {"minimum": -(2**63), "maximum": 2**64 - 1}
"Whole numbers that lose no digit when a body is read."


def identifier(text: str, *, optional: bool = False, empty: bool = False) -> Schema:
    """Return an id: text of at most `MAX_ID_BYTES` bytes, or a whole number, which is read as its digits."""
    kinds = ["string", "integer", *(["null"] if optional else [])]
    return {
        "type": kinds,
        "minLength": 0 if empty else 1,
        "maxLength": MAX_ID_BYTES,
        **WHOLE_64,
        "description": f"{text} At most {MAX_ID_BYTES} bytes in UTF-8; a whole number is read as its digits.",
    }


def _time(text: str) -> Schema:
    return {
        "type": ["integer", "string", "null"],
        "minimum": 0,
        "maximum": MAX_TIME_MS - 1,
        "description": f"{text} Epoch milliseconds as a whole number or its digits, or ISO 8601; without a zone it is in UTC.",
    }


def _text(text: str) -> Schema:
    return {"type": ["string", "number", "null"], "maxLength": MAX_TEXT_CHARS, "description": text}


def _flag(text: str, *, usual: bool) -> Schema:
    return {"type": ["boolean", "null"], "default": usual, "description": text}


def _strings(text: str, most: int, least: int = 0) -> Schema:
    entry = {"type": ["string", "integer"], "minLength": 1, "maxLength": MAX_ENTRY_CHARS, **WHOLE_64}
    bounds = {"minItems": least} if least else {}
    return {"type": ["array", "null"], "items": entry, "maxItems": most, **bounds, "description": text}


def _pairs(text: str, least: int = 0) -> Schema:
    return {
        "type": ["object", "null"],
        "maxProperties": MAX_PAIRS,
        "propertyNames": {"minLength": least, "maxLength": MAX_ENTRY_CHARS},
        "additionalProperties": {"type": ["string", "number", "boolean"], "maxLength": MAX_VALUE_CHARS},
        "description": text,
    }


def _number(text: str, low: float) -> Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": MAX_NUMBER, "description": text}


def _whole(low: int, high: int, text: str = "", *, optional: bool = False) -> Schema:
    kind: object = ["integer", "null"] if optional else "integer"
    return {"type": kind, "minimum": low, "maximum": high, **({"description": text} if text else {})}


def _closed(required: Mapping[str, Schema], optional: Mapping[str, Schema], text: str) -> Schema:
    """Return an object that has no other fields, because Riffle refuses a field that it does not know."""
    return {**structure(required, optional, text), "additionalProperties": False}


EVENT = _closed(
    {"user_id": identifier("Who did it."), "item_id": identifier("On which item.")},
    {
        "event_time": _time("When; without it, the time at which it arrives. At most one day after that."),
        "event_id": identifier(
            "An event counts once by its id. Without one it is derived from user, item, action and time.", optional=True
        ),
        "action": {**identifier("What was done; any word.", optional=True), "default": "view"},
        "value": _number("A rating, a price paid, seconds.", -MAX_NUMBER),
        "session_id": identifier("The session.", optional=True),
        "request_id": identifier("The slate that the event responds to.", optional=True),
        "position": _whole(0, MAX_POSITION, "The item's position in that slate, counted from 0.", optional=True),
    },
    "An event: what a user did with an item.",
)
ITEM_FIELDS: Mapping[str, Schema] = {
    "title": _text("Title."),
    "text": _text("Description."),
    "categories": _strings("Categories.", MAX_CATEGORIES),
    "image": {
        "type": ["string", "null"],
        "maxLength": MAX_IMAGE_CHARS,
        "description": "An http(s) URL, or the path that the entry already has.",
    },
    "price": _number("Price.", 0),
    "available": _flag("Whether the item may be shown.", usual=True),
    "published_at": _time("The item is not shown before."),
    "attributes": _pairs("Further attributes: names with plain values."),
}
ITEM = _closed(
    {}, {"item_id": identifier("The id in the path, if it is given.", optional=True), **ITEM_FIELDS}, "A catalogue entry."
)
AFTER = {
    **_closed(
        {"partition": _whole(0, MAX_PARTITION), "offset": _whole(0, MAX_OFFSET)},
        {},
        "The token of an event: the slate reflects it, or is marked `stale`.",
    ),
    "type": ["object", "null"],
}
REQUEST = _closed(
    {"user_id": identifier("Who is shown the slate. An unknown user gets popular and fresh items.")},
    {
        "request_id": identifier("Is returned, and belongs in the events that follow.", optional=True, empty=True),
        "k": {**_whole(1, MAX_K, "Number of items.", optional=True), "default": 10},
        "context": _pairs("Names with plain values, such as the device.", least=1),
        "exclude": _strings("Ids of items that must not be shown.", MAX_EXCLUDE),
        "categories": _strings("Only items of one of these.", MAX_CATEGORIES),
        "explain": _flag("Whether each item lists its scores.", usual=False),
        "repeats": _flag("Whether the slate may hold items that the user has interacted with.", usual=False),
        "after": AFTER,
        "candidates": _strings("Rank exactly these; without it Riffle retrieves.", MAX_CANDIDATES),
    },
    "A request for a slate.",
)


def _plain() -> Schema:
    return {"type": ["string", "number", "boolean"], "maxLength": MAX_VALUE_CHARS}


def _named(text: str) -> Schema:
    values = {"anyOf": [_plain(), listed(_plain(), 1, MAX_NAMED)]}
    names = {"minLength": 1, "maxLength": MAX_ENTRY_CHARS}
    return {
        **mapped(values, text),
        "type": ["object", "null"],
        "minProperties": 1,
        "maxProperties": MAX_NAMED,
        "propertyNames": names,
    }


WHERE = _closed(
    {},
    {
        "categories": _strings("The item has one of these.", MAX_CATEGORIES, 1),
        "price_from": _number("Lowest price.", 0),
        "price_to": _number("Highest price.", 0),
        "attributes": _named("Each named attribute has one of its values."),
        "items": _strings("The item is one of these ids.", MAX_ITEMS, 1),
        "published_within_days": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": MAX_DAYS,
            "description": "The item was published at most so many days ago.",
        },
    },
    "Conditions on an item; all given ones must hold.",
)
WHEN = _closed(
    {},
    {
        "context": _named("Each named value of the context is one of these."),
        "categories": _strings("The request asks for one of these.", MAX_CATEGORIES, 1),
    },
    "Conditions on a request; all given ones must hold.",
)
_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_NAME_CHARS, "description": "Unique within the set."}
_SHARED: Mapping[str, Schema] = {
    "when": nullable(ref("When")),
    "from": _time("The rule applies from then on."),
    "until": _time("The rule applies before then."),
}
_PIN = _closed({"item_id": identifier("The item."), "position": _whole(0, MAX_K - 1, "Its place, from 0.")}, {}, "")
_WHERE = nullable(ref("Where"))
KINDS: Mapping[Kind, tuple[Mapping[str, Schema], Mapping[str, Schema], str]] = {
    Kind.BOOST: (
        {"where": ref("Where"), "factor": {"type": "number", "exclusiveMinimum": 1, "maximum": MAX_FACTOR}},
        {},
        "Multiplies the scores of matching items.",
    ),
    Kind.BURY: (
        {"where": ref("Where"), "factor": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}},
        {},
        "Lowers the scores of matching items.",
    ),
    Kind.PIN: ({"pins": listed(_PIN, 1, MAX_K)}, {}, "Puts items at their places."),
    Kind.REQUIRE: (
        {"where": ref("Where"), "least": _whole(1, MAX_K), "first": _whole(1, MAX_K)},
        {},
        "At least `least` of the first `first` places hold a matching item.",
    ),
    Kind.CAP: (
        {"most": _whole(0, MAX_K)},
        {"where": _WHERE, "per": {"enum": [PER_CATEGORY, None]}},
        "At most `most` places hold a matching item or, with `per`, of each first category.",
    ),
    Kind.FRESH: (
        {"share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "fewer_than": _whole(1, MOST_OF_FRESH)},
        {"where": _WHERE},
        "Gives a share of the places to matching items with few events.",
    ),
}
"Of each kind: the fields that it needs, those that it may have, and what it does."


def _rule(kind: Kind) -> Schema:
    needed, more, text = KINDS[kind]
    found = _closed({"name": _NAME, "kind": {"const": str(kind)}, **needed}, {**more, **_SHARED}, text)
    return {**found, "anyOf": [{"required": ["where"]}, {"required": ["per"]}]} if kind is Kind.CAP else found


RULES = _closed(
    {"rules": listed(ref("Rule"), most=MAX_RULES)},
    {
        "format": _whole(1, FORMAT, "Version of this form."),
        "version": _whole(0, MAX_TIME_MS, "The author's number of the set.", optional=True),
    },
    "Merchandising rules that serve together. An earlier rule of a kind goes first.",
)
BODIES: Mapping[str, Schema] = {
    "Event": EVENT,
    "Events": {"anyOf": [ref("Event"), listed(ref("Event"), most=MAX_EVENTS)], "description": "One event, or a list."},
    "Item": ITEM,
    "Request": REQUEST,
    "TracedRequest": {
        **REQUEST,
        "properties": {
            **REQUEST["properties"],
            "release": {"type": ["string", "null"], "description": "Answers instead of the serving one."},
        },
        "description": "A request, and the release that answers it.",
    },
    "Requests": {
        "anyOf": [ref("Request"), listed(ref("Request"), 1, MAX_REQUESTS)],
        "description": "One request, or a list.",
    },
    "Where": WHERE,
    "When": WHEN,
    **{f"{kind.title()}Rule": _rule(kind) for kind in Kind},
    "Rule": {"oneOf": [ref(f"{kind.title()}Rule") for kind in Kind]},
    "Rules": RULES,
    "Preview": _closed(
        {"rules": ref("Rules")}, {"request": nullable(ref("Request"))}, "Rules, and a request to answer with them."
    ),
    "Expected": _closed(
        {},
        {"expected": {"type": ["string", "null"], "description": "Name of the champion that is replaced, `none` without one."}},
        "A condition of a promotion or rollback.",
    ),
    "Replay": {
        "oneOf": [
            _closed({"letters": listed({"type": "integer", "minimum": 0}, 1, MAX_LETTERS)}, {}, "By their numbers."),
            _closed({"code": {"type": "string", "minLength": 1}}, {}, "All of a code."),
        ],
        "description": "Which dead letters are meant.",
    },
}
