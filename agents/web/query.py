"""Query strings of the HTTP interface, as request bodies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import uuid4

from multidict import MultiMapping

from schemas.errors import BadRequest
from schemas.records import Request
from schemas.validation import request_from

__all__ = ["MAX_DEADLINE_MS", "deadline_ms", "identifier", "integer", "request_from_query", "request_of"]

MAX_DEADLINE_MS = 60_000
MAX_ID_BYTES = 256
FLAGS = {"1": True, "true": True, "yes": True, "": True, "0": False, "false": False, "no": False}
PARAMETERS = frozenset({"k", "explain", "exclude", "category", "after", "deadline_ms", "request_id"})


def request_from_query(user_id: str, query: MultiMapping[str]) -> Request:
    """The request of `GET /v1/recommend/{user_id}`.

    `exclude` and `category` may repeat, and each may hold several values with commas between them; `after` is
    `partition:offset`; `context.<name>` sets a context value; `explain` is a flag.

    Raises:
        BadRequest: a parameter is unknown, repeated where it must not be, does not parse, or is out of bounds.
    """
    context: dict[str, str] = {}
    body: dict[str, object] = {"user_id": user_id, "context": context}
    for name in dict.fromkeys(query.keys()):
        values = query.getall(name)
        if name in {"exclude", "category"}:
            body["categories" if name == "category" else name] = _separated(values)
            continue
        if len(values) > 1:
            raise BadRequest("invalid_field", f"{name} is given {len(values)} times", name)
        if name.startswith("context."):
            context[name.removeprefix("context.")] = values[0]
        elif name not in PARAMETERS:
            raise BadRequest("invalid_field", f"there is no parameter {name[:100]!r}", name[:100])
        elif name == "k":
            body["k"] = integer(query, "k")
        elif name == "explain":
            body["explain"] = _flag(values[0], name)
        elif name == "after":
            body["after"] = _after(values[0])
        elif name == "request_id":
            body["request_id"] = values[0]
    return request_of(body)


def request_of(body: Mapping[str, object]) -> Request:
    """The request of a body; it gets a random `request_id` when it names none.

    Raises:
        BadRequest: a field is unknown, missing or out of bounds.
    """
    return request_from(body, request_id=uuid4().hex)


def deadline_ms(query: Mapping[str, str], headers: Mapping[str, str]) -> int | None:
    """Milliseconds from the parameter `deadline_ms` or the header `deadline-ms`; None when neither is given.

    Raises:
        BadRequest: it is not a whole number from 1 to `MAX_DEADLINE_MS`.
    """
    if "deadline_ms" in query:
        return integer(query, "deadline_ms", 1, MAX_DEADLINE_MS)
    return integer(headers, "deadline-ms", 1, MAX_DEADLINE_MS) if "deadline-ms" in headers else None


def integer(query: Mapping[str, str], name: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    """A whole number.

    Raises:
        BadRequest: it does not parse or is not within `low` and `high`.
    """
    text = query[name].strip()
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise BadRequest("invalid_field", f"{name} must be a whole number", name)
    if not low <= int(text) <= high:
        raise BadRequest("invalid_field", f"{name} must lie in {low}..{high}, is {int(text)}", name)
    return int(text)


def identifier(text: str, name: str) -> str:
    """An id from a path.

    Raises:
        BadRequest: it is empty or longer than 256 bytes of UTF-8.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise BadRequest("invalid_field", f"{name} must have 1 to {MAX_ID_BYTES} bytes", name)
    return text


def _separated(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _flag(text: str, name: str) -> bool:
    if text.lower() not in FLAGS:
        raise BadRequest("invalid_field", f"{name} must be 1 or 0", name)
    return FLAGS[text.lower()]


def _after(text: str) -> dict[str, int]:
    partition, colon, offset = text.partition(":")
    parts = {"partition": partition, "offset": offset}
    if not colon:
        raise BadRequest("invalid_field", "after must be partition:offset", "after")
    try:
        return {name: integer(parts, name) for name in parts}
    except BadRequest as exc:
        raise BadRequest(exc.code, f"after.{exc.message}", f"after.{exc.field}") from exc
