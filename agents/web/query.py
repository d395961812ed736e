"""Query strings of the HTTP interface: checks of parameters, and requests built from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import uuid4

from multidict import CIMultiDictProxy, MultiMapping

from schemas.errors import BadRequest
from schemas.parsing import FLAGS, flag, shown, whole_number
from schemas.records import Request, UserQuery
from schemas.validation import request_from, user_query_from

__all__ = [
    "CONTEXT",
    "MANY",
    "MAX_DEADLINE_MS",
    "RECOMMEND",
    "check_parameters",
    "deadline_ms",
    "flag_of",
    "identifier",
    "integer",
    "request_from_query",
    "request_of",
    "user_query_of",
]

MAX_DEADLINE_MS = 60_000
MAX_ID_BYTES = 256
CONTEXT = "context."
"Prefix of parameters that set a context value."
MANY = frozenset({"exclude", "category", "id"})
"Parameters that may be repeated."
RECOMMEND = frozenset({"k", "explain", "repeats", "exclude", "category", "after", "deadline_ms", "request_id", CONTEXT})
"Parameters of `GET /v1/recommend/{user_id}`."


def check_parameters(query: MultiMapping[str], takes: frozenset[str]) -> None:
    """Refuse parameters that a route does not accept. `CONTEXT` in `takes` stands for all names with this prefix.

    Raises:
        BadRequest: a parameter is unknown, or is repeated and not one of `MANY`.
    """
    for name in dict.fromkeys(query.keys()):
        known = CONTEXT if name.startswith(CONTEXT) else name
        if known not in takes:
            what = ", ".join(f"{taken}NAME" if taken == CONTEXT else taken for taken in sorted(takes))
            rest = f"there are {what}" if takes else "this route has none"
            raise BadRequest("invalid_field", f"there is no parameter {shown(name)}; {rest}", name[:100])
        if name not in MANY and (times := len(query.getall(name))) > 1:
            raise BadRequest("invalid_field", f"{shown(name)} is given {times} times", name[:100])


def request_from_query(user_id: str, query: MultiMapping[str]) -> Request:
    """Build the request of `GET /v1/recommend/{user_id}` from a query that `check_parameters` has accepted.

    `exclude` and `category` may be repeated, and each may hold several values separated by commas, of which empty ones do not
    count; `after` is `partition:offset`; `context.<name>` sets a context value; `explain` and `repeats` are flags.

    Raises:
        BadRequest: a parameter does not parse or is out of bounds.
    """
    body: dict[str, object] = {
        "user_id": user_id,
        "context": {name.removeprefix(CONTEXT): value for name, value in query.items() if name.startswith(CONTEXT)},
    }
    if "k" in query:
        body["k"] = integer(query, "k")
    for name in ("explain", "repeats"):
        if name in query:
            body[name] = flag_of(query, name)
    if "after" in query:
        body["after"] = _after(query["after"])
    if "request_id" in query:
        body["request_id"] = query["request_id"]
    if "exclude" in query:
        body["exclude"] = _separated(query.getall("exclude"))
    if "category" in query:
        body["categories"] = _separated(query.getall("category"))
    return request_of(body)


def request_of(body: Mapping[str, object]) -> Request:
    """Build the request of a body, with a random `request_id` if the body has none.

    Raises:
        BadRequest: a field is unknown, missing or out of bounds.
    """
    return request_from(body, request_id=uuid4().hex)


def user_query_of(query: Mapping[str, str]) -> UserQuery:
    """Build the query for users from the parameters `after` and `limit`.

    Raises:
        BadRequest: a parameter is out of bounds.
    """
    return user_query_from(
        {
            "after": query.get("after"),
            "limit": integer(query, "limit") if "limit" in query else None,
        }
    )


def deadline_ms(query: Mapping[str, str], headers: CIMultiDictProxy[str]) -> int | None:
    """Return the milliseconds of the parameter `deadline_ms`, else of the header `deadline-ms`; None if neither is given.

    Raises:
        BadRequest: the value is not a whole number from 1 to `MAX_DEADLINE_MS`, or the header is repeated.
    """
    given = headers.getall("deadline-ms", ())
    if len(given) > 1:
        raise BadRequest("invalid_field", f"deadline-ms is given {len(given)} times", "deadline-ms")
    header = integer(headers, "deadline-ms", 1, MAX_DEADLINE_MS) if given else None
    return integer(query, "deadline_ms", 1, MAX_DEADLINE_MS) if "deadline_ms" in query else header


def integer(query: Mapping[str, str], name: str, low: int = -(2**63), high: int = 2**63 - 1, within: str = "") -> int:
    """Parse a whole number; `within` is prefixed to the name in errors.

    Raises:
        BadRequest: it is not a whole number, or not within `low` and `high`.
    """
    try:
        number = whole_number(query[name])
    except ValueError as exc:
        raise BadRequest("invalid_field", f"{within}{name} {exc}", within + name) from exc
    if not low <= number <= high:
        raise BadRequest("invalid_field", f"{within}{name} must lie in {low}..{high}, is {number}", within + name)
    return number


def flag_of(query: Mapping[str, str], name: str) -> bool:
    """Parse a flag of `schemas.parsing.FLAGS`; a name without a value is true.

    Raises:
        BadRequest: the value is not a flag.
    """
    try:
        return flag(query[name]) if query[name] else True
    except ValueError as exc:
        raise BadRequest("invalid_field", f"{name} must be one of {', '.join(FLAGS)}, is {shown(query[name])}", name) from exc


def identifier(text: str, name: str) -> str:
    """Check an id from a path.

    Raises:
        BadRequest: it is empty or longer than 256 bytes of UTF-8.
    """
    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise BadRequest("invalid_field", f"{name} must have 1 to {MAX_ID_BYTES} bytes", name)
    return text


def _separated(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _after(text: str) -> dict[str, int]:
    partition, colon, offset = text.partition(":")
    if not colon:
        raise BadRequest("invalid_field", f"after must be partition:offset, is {shown(text)}", "after")
    parts = {"partition": partition, "offset": offset}
    return {name: integer(parts, name, within="after.") for name in parts}
