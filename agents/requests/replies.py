"""Replies: their address, and their bytes in the encoding of the request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import orjson

from agents.requests.outbox import Outbox, Queued
from schemas.codec import Framing, Registry, encode, encoding, prefix
from schemas.direct import slate_body
from schemas.errors import RiffleError
from schemas.records import Slate, UserPage

__all__ = ["Address", "Replies", "encoded_reply", "reply_body"]

log = logging.getLogger(__name__)

Answer = Slate | UserPage | RiffleError


@dataclass(frozen=True, slots=True)
class Address:
    """Destination and encoding of the answer to a request over Kafka."""

    topic: str
    correlation: bytes
    framing: Framing
    user_id: str
    "Key of the reply."

    def headers(self) -> list[tuple[str, bytes]]:
        """Return the headers of the reply."""
        headers = [("Faust-Ag-CorrelationId", self.correlation)]
        return [*headers, ("content-type", b"application/json")] if self.framing is Framing.JSON else headers


def reply_body(framing: Framing, user_id: str, answer: Answer, correlation_id: str, registry: Registry | None = None) -> bytes:
    """Encode a reply's value like the request: as JSON that Faust's `ask` can read, or as the Avro slate record.

    There is no Avro record of a page of users, because queries for users are in JSON.
    """
    if framing is Framing.JSON:
        value = {"error": answer.to_json()} if isinstance(answer, RiffleError) else answer.to_json()
        return orjson.dumps({"key": user_id, "value": value, "correlation_id": correlation_id})
    assert not isinstance(answer, UserPage)
    if isinstance(answer, Slate):
        with encoding("slate"):
            return prefix("slate", framing, registry) + slate_body(answer, correlation_id)
    datum = {"request_id": "", "user_id": user_id, "error": answer.to_json(), "correlation_id": correlation_id}
    return encode("slate", datum, framing, registry)


def encoded_reply(address: Address, answer: Answer, registry: Registry | None = None) -> bytes:
    """Encode the answer to a request from `address`, as `reply_body`."""
    named = address.correlation.decode(errors="replace")
    return reply_body(address.framing, address.user_id, answer, named, registry)


class Replies:
    """Encodes answers and queues them."""

    def __init__(self, outbox: Outbox, registry: Registry | None) -> None:
        self._outbox = outbox
        self._registry = registry

    def send(self, address: Address, answer: Answer, done: Callable[[], None]) -> None:
        """Queue the reply; `done` is called when it is acknowledged or given up."""
        try:
            body = encoded_reply(address, answer, self._registry)
        except RiffleError as exc:  # the registry does not answer; a reply in another encoding is better than none
            log.warning("a reply could not be encoded as %s: %s", address.framing, exc.message)
            address = replace(address, framing=Framing.JSON)
            body = encoded_reply(address, answer)
        self._outbox.put(Queued(address.topic, address.user_id.encode(), body, address.headers(), "reply", done))
