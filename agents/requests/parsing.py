"""Parsing of requests over Kafka: each record is accepted, or refused with an error for its sender."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from typing import Any

import orjson

from agents.requests.clock import Clock
from agents.requests.replies import Address
from schemas.codec import Framing, Headers, Registry, decode, framing_of, header_of, schema_ids
from schemas.errors import BadRequest, RiffleError, TransientError
from schemas.parsing import json_fault, whole_number
from schemas.records import Request, UserQuery
from schemas.settings import Settings
from schemas.validation import MAX_ID_BYTES, request_from, user_query_from
from streams.kafka.chunks import Chunk
from streams.kafka.native.reader import UNREADABLE
from streams.kafka.topics import TOPICS
from streams.kafka.writes import USERS

__all__ = ["Accepted", "Listing", "Parser", "Refused", "asks_for_users"]

TOPIC_NAME = re.compile(rb"(?!__)(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
MAX_CORRELATION_BYTES = 1_024
MAX_DEADLINE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that this worker answers."""

    request: Request
    partition: int
    "Partition of the users table that holds the user."
    deadline: float
    "Deadline in seconds on the monotonic clock."
    address: Address


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that this worker refuses. Without an `address` no answer can reach its sender."""

    error: RiffleError
    address: Address | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A query of another worker for users of a partition."""

    query: UserQuery
    address: Address


def _reply_topic(headers: Headers, own: Collection[str]) -> bytes:
    """Return the topic for the answer; raises BadRequest if answers to it are not allowed."""
    topic = header_of(headers, "Faust-Ag-ReplyTo")
    if not topic:
        raise BadRequest("no_reply_to", "header Faust-Ag-ReplyTo is missing", "Faust-Ag-ReplyTo")
    if not TOPIC_NAME.fullmatch(topic) or topic.decode() in own:
        message = "not a topic for replies: it is one of Riffle's own, or its name is invalid"
        raise BadRequest("invalid_reply_to", message, "Faust-Ag-ReplyTo")
    if len(header_of(headers, "Faust-Ag-CorrelationId") or b"") > MAX_CORRELATION_BYTES:
        message = f"the correlation id must have at most {MAX_CORRELATION_BYTES:,} bytes"
        raise BadRequest("invalid_field", message, "Faust-Ag-CorrelationId")
    return topic


def asks_for_users(headers: Headers) -> bool:
    """Return whether a record of the requests topic asks for ids of users instead of a slate."""
    return header_of(headers, USERS[0]) == USERS[1]


def _json_object(value: bytes | None) -> dict[str, Any]:
    try:
        found = orjson.loads(value or b"")
    except orjson.JSONDecodeError as exc:
        code, what = json_fault(exc)
        raise BadRequest(code, f"the query is {what}") from exc
    if not isinstance(found, dict):
        raise BadRequest("invalid_body", "the query must be a JSON object")
    return found


def _budget_ms(headers: Headers, default_ms: int) -> int:
    given = header_of(headers, "deadline-ms")
    if not given:
        return default_ms
    try:
        budget = whole_number(given.decode(errors="backslashreplace"))
    except ValueError as exc:
        raise BadRequest("invalid_field", f"deadline-ms {exc}", "deadline-ms") from exc
    if not 1 <= budget <= MAX_DEADLINE_MS:
        raise BadRequest("invalid_field", f"deadline-ms must lie in 1..{MAX_DEADLINE_MS}, is {budget}", "deadline-ms")
    return budget


class Parser:
    """Parses and validates requests, and accepts or refuses them. It keeps no state of requests.

    `owned`: partitions of the users table that this worker owns. `partition_of`: returns the partition of a user.
    """

    def __init__(
        self,
        settings: Settings,
        owned: Container[int],
        registry: Registry | None,
        clock: Clock,
        partition_of: Callable[[str], int],
    ) -> None:
        self._partitions = settings.partitions
        self._default_ms = settings.deadline_ms
        self._own = frozenset(settings.topic(name) for name in TOPICS)
        self._owned = owned
        self._registry = registry
        self._clock = clock
        self._partition_of = partition_of

    def lacks_schema(self, chunk: Chunk, index: int) -> bool:
        """Return whether reading the request, or writing its answer, requires a schema from the registry."""
        if self._registry is None:
            return False
        wanted = schema_ids([chunk.values[index]], [chunk.headers[index]])
        try:
            for schema_id in wanted:
                self._registry.id_of("slate")
                self._registry.schema_of(schema_id)
        except TransientError:
            return True
        except KeyError:
            pass
        return False

    async def wait_for_schema(self, chunk: Chunk, index: int) -> None:
        """Wait until the schemas that the request needs are known, at most for half its deadline."""
        assert self._registry is not None
        try:
            budget_ms = _budget_ms(chunk.headers[index], self._default_ms)
        except BadRequest:
            return  # `parse` reports it
        wanted = schema_ids([chunk.values[index]], [chunk.headers[index]])
        left_s = budget_ms / 1000 - self._waited_s(chunk, index)
        await self._registry.ready({"slate", *wanted}, max(left_s / 2, 0.0))

    def parse(self, chunk: Chunk, index: int) -> Accepted | Refused:
        """Parse one record of a chunk: it is accepted, or refused with the error for its sender."""
        headers = chunk.headers[index]
        correlation = header_of(headers, "Faust-Ag-CorrelationId") or b""
        framing, reply_to, request = Framing.JSON, b"", None
        try:
            unanswerable: BadRequest | None = None
            try:
                reply_to = _reply_topic(headers, self._own)
            except BadRequest as exc:
                unanswerable = exc
            value = chunk.values[index]
            if headers is UNREADABLE:
                raise BadRequest("bad_headers", "the name of a header is not UTF-8")
            if value is None:
                raise BadRequest("null_value", "a request needs a body")
            framing = framing_of(value, headers)
            datum, _ = decode("request", value, headers, self._registry)
            named = correlation.decode(errors="replace").encode()[:MAX_ID_BYTES].decode(errors="ignore")
            request = request_from(datum, request_id=named or uuid.uuid4().hex)
            if unanswerable is not None:
                raise unanswerable
            budget_ms = _budget_ms(headers, self._default_ms)
            partition = self._partition_of(request.user_id)
            if partition != chunk.partition and partition not in self._owned:
                raise self._misplaced(chunk, index, request.user_id, partition)
        except RiffleError as error:
            if framing is Framing.CONFLUENT and self._registry is None:
                framing = Framing.JSON  # without a registry the answer cannot have a schema id
            key = request.user_id if request else (chunk.keys[index] or b"").decode(errors="replace")
            return Refused(error, Address(reply_to.decode(), correlation, framing, key) if reply_to else None)
        deadline = self._clock.monotonic() - self._waited_s(chunk, index) + budget_ms / 1000
        return Accepted(request, partition, deadline, Address(reply_to.decode(), correlation, framing, request.user_id))

    def parse_listing(self, chunk: Chunk, index: int) -> Listing | Refused:
        """Parse a record for which `asks_for_users`: a query for users of the record's partition, as JSON."""
        headers = chunk.headers[index]
        correlation, reply_to = header_of(headers, "Faust-Ag-CorrelationId") or b"", ""
        try:
            reply_to = _reply_topic(headers, self._own).decode()
            query = user_query_from(_json_object(chunk.values[index]))
        except BadRequest as error:
            return Refused(error, Address(reply_to, correlation, Framing.JSON, "") if reply_to else None)
        return Listing(query, Address(reply_to, correlation, Framing.JSON, ""))

    def _waited_s(self, chunk: Chunk, index: int) -> float:
        """Return the seconds since the request's timestamp. A clock that is ahead does not extend the deadline."""
        return max(self._clock.wall() - chunk.timestamps[index] / 1000, 0.0)

    def _misplaced(self, chunk: Chunk, index: int, user_id: str, partition: int) -> BadRequest:
        """Build the permanent error of a request that was sent to a partition other than its user's."""
        if chunk.keys[index] != user_id.encode():
            return BadRequest("key_mismatch", "the record's key must be the user_id: it selects the worker that answers", "key")
        message = (
            f"the user_id belongs to partition {partition} of {self._partitions}, the request arrived on "
            f"{chunk.partition}: configure the producer to partition by murmur2 (librdkafka: partitioner=murmur2_random)"
        )
        return BadRequest("wrong_partition", message, "key")
