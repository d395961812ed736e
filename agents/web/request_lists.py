"""Lists of recommendation requests: one body, and one answer for each of its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson

from agents.web.error_replies import encoded, status_of, terminal_error
from agents.web.protocol import Service, Wanted, always
from agents.web.query import request_of
from schemas.errors import BadRequest
from schemas.records import Request

__all__ = ["MAX_REQUESTS", "answer_list"]

MAX_REQUESTS = 100
"Maximum number of requests in one body."


async def answer_list(
    service: Service, entries: Sequence[object], deadline_ms: int | None, wanted: Wanted = always
) -> list[orjson.Fragment]:
    """Answer each request of a list: a slate, or `{"error", "status"}` as the request alone would get.

    The answers are in the order of `entries`, encoded as JSON. All requests that need not wait for an event reach the service
    before any is answered, so that they are ranked in shared batches. `deadline_ms` (None: the service's default) and `wanted`
    apply to each.

    Raises:
        BadRequest: code `empty_list` or `list_too_long`; no request was answered.
    """
    if not entries:
        raise BadRequest("empty_list", f"the list is empty: it must hold 1 to {MAX_REQUESTS} requests")
    if len(entries) > MAX_REQUESTS:
        message = f"the list holds {len(entries)} requests, at most {MAX_REQUESTS} are answered at once"
        raise BadRequest("list_too_long", message)
    return await asyncio.gather(*(_answer(service, entry, deadline_ms, wanted) for entry in entries))


async def _answer(service: Service, entry: object, deadline_ms: int | None, wanted: Wanted) -> orjson.Fragment:
    """Answer one request. It is encoded as soon as it is ranked, which spreads the work over the batches."""
    try:
        body = encoded((await service.recommend(_request(entry), deadline_ms, wanted)).to_json())
        outcome = "slate"
    except Exception as exc:
        error = terminal_error(exc, "a request of a list")
        body, outcome = encoded({"error": error.to_json(), "status": status_of(error)}), error.code
    service.metrics.http_list_requests.add(outcome=outcome)
    return orjson.Fragment(body)


def _request(entry: object) -> Request:
    if not isinstance(entry, dict):
        raise BadRequest("invalid_body", "a request must be a JSON object")
    return request_of(entry)
