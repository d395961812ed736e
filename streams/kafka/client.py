"""Client side of the contract: sends events, items and requests, and matches replies by correlation id."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar
from uuid import uuid4

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from schemas.codec import Framing, Registry, decode, encode, header_of, look_up
from schemas.errors import BadRequest, DeadlineExceeded, NotReady, RiffleError, TransientError
from schemas.records import After, AsOf, Interaction, Item, Request, Slate, SlateItem, UserPage, UserQuery
from schemas.settings import Settings
from schemas.validation import request_from
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.healing_producer import Outgoing
from streams.kafka.writes import JSON_HEADERS, USERS, Writes
from streams.tracing import CLIENT, PRODUCER, TRACEPARENT, Tracing, incoming

__all__ = ["EventProducer", "RiffleClient", "page_from", "slate_from"]

log = logging.getLogger(__name__)

T = TypeVar("T")

REPLIES = "replies"
REPLY_RETENTION_MS = 600_000
MAX_TRAVEL_MS = 25
KINDS: Mapping[str, type[RiffleError]] = {
    "deadline_exceeded": DeadlineExceeded,
    "not_ready": NotReady,
    "registry_unavailable": NotReady,
}


class EventProducer:
    """Idempotent, acknowledged writes of events and items. Records are keyed, so that one user's events keep their order."""

    def __init__(self, settings: Settings, framing: Framing = Framing.SINGLE_OBJECT, registry: Registry | None = None) -> None:
        self._settings = settings
        self._framing = framing
        self._registry = registry
        self._writes = Writes(settings, framing, registry)
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            NotReady: there is no broker.
        """
        producer = connect.producer(self._settings.kafka, connect.CLIENT_EVENTS)
        await _started(producer)
        self._producer = producer

    async def stop(self) -> None:
        """Send queued records and disconnect."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def send_events(self, events: Sequence[Interaction]) -> list[After]:
        """Store `events`; returns one token per event, in order, once the broker has acknowledged all of them.

        Raises:
            BadEvent: an event does not fit the schema; none was sent.
            NotReady: the broker did not accept all of them; resending is safe, because `event_id` deduplicates. Or the schema
                registry gives no answer; none was sent.
        """
        await _registered("interaction", self._framing, self._registry)
        return await self._send([self._writes.event(event) for event in events])

    async def put_item(self, item: Item) -> After:
        """Store or replace a catalogue entry; returns when the broker has acknowledged it.

        Raises:
            NotReady: the broker did not accept it.
        """
        await _registered("item", self._framing, self._registry)
        return (await self._send([self._writes.item(item)]))[0]

    async def delete_item(self, item_id: str) -> After:
        """Remove a catalogue entry (an empty value under its key); returns when the broker has acknowledged it.

        Raises:
            NotReady: the broker did not accept it.
        """
        return (await self._send([self._writes.deletion(item_id)]))[0]

    async def _send(self, records: Sequence[Outgoing]) -> list[After]:
        producer = self._producer
        if producer is None:
            raise NotReady("not_started", "the producer is not started")
        try:
            futures = [
                await producer.send(record.topic, value=record.value, key=record.key, headers=list(record.headers))
                for record in records
            ]
            stored = await asyncio.gather(*futures)
        except KafkaError as exc:
            raise NotReady("broker_unavailable", f"the broker did not accept the records: {exc}") from exc
        return [After(meta.partition, meta.offset) for meta in stored]


Read = Callable[[bytes | None, Sequence[tuple[str, bytes]], Registry | None], T]
"Decodes the value of a reply with its headers; raises the error that it carries."


@dataclass(frozen=True, slots=True)
class _Asked(Generic[T]):
    """A record for the requests topic, and the reader of its reply."""

    value: Callable[[], Awaitable[bytes]]
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]
    read: Read[T]
    partition: int | None = None
    "Partition of the topic; None for the one that the key selects."
    stored: Callable[[], None] | None = None
    "Called when the broker has the record, or refuses it."


@dataclass(frozen=True, slots=True)
class _Waiting:
    answer: asyncio.Future[Any]
    read: Read[Any]


class RiffleClient:
    """Asks for slates over Kafka, and writes events and items.

    A request is registered before it is sent, waits at most until its deadline, and is then forgotten. At most `max_waiting`
    wait at once. All clients share one small reply topic, read from its end: a client keeps the replies with its own
    correlation ids and skips the rest, because a topic per client would leave a topic behind for each process that ever sent a
    request. `counters` counts `sent`, `answered`, `errors`, `deadline`, `late` (replies after their deadline), `foreign`
    (replies of other clients) and `unreadable`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        framing: Framing = Framing.SINGLE_OBJECT,
        registry: Registry | None = None,
        max_waiting: int = 10_000,
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing`: traces of this program, from `streams.tracing.tracing_of`; each request is then a span of it."""
        self._settings = settings
        self._tracing = tracing
        self._framing = framing
        self._registry = registry
        self._max_waiting = max_waiting
        self._events = EventProducer(settings, framing, registry)
        self._id = uuid4().hex
        self._sequence = 0
        self._waiting: dict[str, _Waiting] = {}
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._reader: asyncio.Task[None] | None = None
        self.counters: Counter[str] = Counter()

    async def __aenter__(self) -> RiffleClient:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    @property
    def reply_topic(self) -> str:
        """Topic of the replies."""
        return self._settings.topic(REPLIES)

    @property
    def waiting(self) -> int:
        """Number of requests without an answer so far."""
        return len(self._waiting)

    async def start(self) -> None:
        """Connect; returns when the reply consumer has its position, so that no reply can be missed.

        Raises:
            NotReady: there is no broker.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        partitions = await self._ensure_replies()
        producer = connect.producer(self._settings.kafka, connect.CLIENT_REQUESTS)
        await _started(producer)
        self._producer = producer
        await self._events.start()
        consumer = connect.consumer(self._settings.kafka, connect.CLIENT_REPLIES)
        await _started(consumer)
        self._consumer = consumer
        assigned = [TopicPartition(self.reply_topic, partition) for partition in range(partitions)]
        consumer.assign(assigned)
        await consumer.seek_to_end(*assigned)
        for tp in assigned:
            await consumer.position(tp)
        self._reader = asyncio.create_task(self._read(consumer), name="replies")

    async def stop(self) -> None:
        """Disconnect; requests still waiting fail with `NotReady`."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
            self._reader = None
        self._fail_all(NotReady("client_stopped", "the client was stopped"))
        for part in (self._consumer, self._producer):
            if part is not None:
                await part.stop()
        self._consumer = self._producer = None
        await self._events.stop()

    async def recommend(self, request: Request, deadline_ms: int | None = None) -> Slate:
        """The slate for `request`, at most `deadline_ms` milliseconds from now (default: the settings').

        The worker receives a slightly earlier deadline, so that a reply at its deadline still arrives.

        Raises:
            DeadlineExceeded: no answer came in time, here or at the worker.
            NotReady: the client is not started, too many requests are waiting, the broker is gone, or the worker is not ready.
            BadRequest: the worker refused the request.
            RiffleError: the worker answered with another error.
        """

        async def value() -> bytes:
            await _registered("request", self._framing, self._registry)
            return encode("request", _datum(request), self._framing, self._registry)

        headers = JSON_HEADERS if self._framing is Framing.JSON else []
        if self._tracing is None:
            return await self._answer(_Asked(value, request.user_id.encode(), headers, slate_from), deadline_ms)
        span = self._tracing.begin("recommend", CLIENT, incoming.get(), {"request_id": request.request_id})
        sending = None if span is None else span.child("send request", PRODUCER)
        parent = self._tracing.not_sampled() if sending is None else sending.traceparent
        traced = [*headers, (TRACEPARENT, parent.encode())]
        asked = _Asked(value, request.user_id.encode(), traced, slate_from, stored=None if sending is None else sending.end)
        error = "cancelled"
        try:
            slate = await self._answer(asked, deadline_ms)
            error = ""
        except RiffleError as exc:
            error = exc.code
            raise
        finally:
            if span is not None:
                span.end(error=error)
        return slate

    async def users(self, partition: int, query: UserQuery, deadline_ms: int | None = None) -> UserPage:
        """Users of a partition, from the worker that owns it.

        Raises:
            DeadlineExceeded, NotReady, RiffleError: as `recommend`.
            BadRequest: the worker refused the query.
        """

        async def value() -> bytes:
            return orjson.dumps(asdict(query))

        return await self._answer(_Asked(value, None, [*JSON_HEADERS, USERS], page_from, partition), deadline_ms)

    async def _answer(self, asked: _Asked[T], deadline_ms: int | None) -> T:
        """Send a record to the requests topic, and wait for its reply."""
        limit = self._settings.deadline_ms if deadline_ms is None else deadline_ms
        if limit < 1:
            raise BadRequest("invalid_field", "deadline_ms must be at least 1", "deadline_ms")
        if self._producer is None or self._reader is None or self._reader.done():
            raise NotReady("not_started", "the client is not reading replies")
        if len(self._waiting) >= self._max_waiting:
            raise NotReady("too_many_waiting", f"{self._max_waiting} requests already wait for their answer")
        self._sequence += 1
        correlation_id = f"{self._id}-{self._sequence}"
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[correlation_id] = _Waiting(answer, asked.read)
        self.counters["sent"] += 1
        try:
            async with asyncio.timeout(limit / 1000):
                await self._send(self._producer, correlation_id, asked, await asked.value(), limit)
                found = await answer
        except TimeoutError as exc:
            self.counters["deadline"] += 1
            raise DeadlineExceeded("deadline_exceeded", f"no answer within {limit} ms: is a worker up?") from exc
        except RiffleError:
            self.counters["errors"] += 1
            raise
        finally:
            self._waiting.pop(correlation_id, None)
        self.counters["answered"] += 1
        return found

    async def ask(self, body: Mapping[str, Any], deadline_ms: int | None = None) -> dict[str, Any]:
        """The slate for a request body of the contract, as JSON values, or `{"error": …}` when it is refused.

        Raises:
            DeadlineExceeded, NotReady: as `recommend`.
        """
        try:
            return (await self.recommend(request_from(body, request_id=uuid4().hex), deadline_ms)).to_json()
        except TransientError:
            raise
        except RiffleError as error:
            return {"error": error.to_json()}

    async def send_events(self, events: Sequence[Interaction]) -> list[After]:
        """See `EventProducer.send_events`."""
        return await self._events.send_events(events)

    async def put_item(self, item: Item) -> After:
        """See `EventProducer.put_item`."""
        return await self._events.put_item(item)

    async def delete_item(self, item_id: str) -> After:
        """See `EventProducer.delete_item`."""
        return await self._events.delete_item(item_id)

    async def _send(
        self, producer: AIOKafkaProducer, correlation_id: str, asked: _Asked[Any], value: bytes, limit_ms: int
    ) -> None:
        travel_ms = min(MAX_TRAVEL_MS, limit_ms // 5)
        headers = [
            ("Faust-Ag-ReplyTo", self.reply_topic.encode()),
            ("Faust-Ag-CorrelationId", correlation_id.encode()),
            ("deadline-ms", str(max(1, limit_ms - travel_ms)).encode()),
            *asked.headers,
        ]
        place = {} if asked.partition is None else {"partition": asked.partition}
        try:
            sent = await producer.send(self._settings.topic("requests"), value=value, key=asked.key, headers=headers, **place)
        except KafkaError as exc:
            raise NotReady("broker_unavailable", f"the request was not sent: {exc}") from exc

        def failed(future: asyncio.Future[Any]) -> None:
            if asked.stored is not None:
                asked.stored()
            if not future.cancelled() and (error := future.exception()) is not None:
                self._settle(correlation_id, NotReady("broker_unavailable", f"the request was not accepted: {error}"))

        sent.add_done_callback(failed)

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        try:
            while True:
                try:
                    fetched = await consumer.getmany(timeout_ms=1_000)
                except KafkaError as exc:
                    log.warning("reading replies: %s", exc)
                    await asyncio.sleep(0.1)
                    continue
                for records in fetched.values():
                    for record in records:
                        await look_up(self._registry, [record.value], [record.headers])
                        self._receive(record.value, record.headers)
        except Exception as exc:
            log.exception("the reply reader ended")
            self._fail_all(NotReady("reader_ended", f"replies are no longer read: {exc}"))
            raise

    def _receive(self, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        correlation_id = (header_of(headers, "Faust-Ag-CorrelationId") or b"").decode("utf-8", "replace")
        if not correlation_id.startswith(self._id):
            self.counters["foreign"] += 1
            return
        if correlation_id not in self._waiting:
            self.counters["late"] += 1
            return
        try:
            self._settle(correlation_id, self._waiting[correlation_id].read(value, headers, self._registry))
        except RiffleError as error:
            if error.code == "unreadable_reply":
                self.counters["unreadable"] += 1
            self._settle(correlation_id, error)

    def _settle(self, correlation_id: str, outcome: object) -> None:
        waiting = self._waiting.get(correlation_id)
        if waiting is None or waiting.answer.done():
            return
        if isinstance(outcome, RiffleError):
            waiting.answer.set_exception(outcome)
        else:
            waiting.answer.set_result(outcome)

    def _fail_all(self, error: RiffleError) -> None:
        for correlation_id in list(self._waiting):
            self._settle(correlation_id, error)

    async def _ensure_replies(self) -> int:
        admin = connect.admin(self._settings.kafka)
        try:
            await admin.start()
        except KafkaError as exc:
            await admin.close()
            raise NotReady(
                "broker_unavailable",
                f"no Kafka answers at {self._settings.bootstrap_servers}: run `riffle up`, or see `riffle doctor`",
            ) from exc
        try:
            configuration = {
                "cleanup.policy": "delete",
                "retention.ms": str(REPLY_RETENTION_MS),
                "segment.ms": "600000",
            }
            wanted = NewTopic(self.reply_topic, 1, self._settings.replication, topic_configs=configuration)
            if self.reply_topic not in await admin.list_topics():
                response = await admin.create_topics([wanted])
                code = response.topic_errors[0][1]
                if code not in (0, TopicAlreadyExistsError.errno):
                    raise NotReady("broker_unavailable", f"{self.reply_topic}: {for_code(code).__name__}")
            described = await admin.describe_topics([self.reply_topic])
            return max(1, len(described[0]["partitions"]))
        finally:
            await admin.close()


def slate_from(value: bytes | None, headers: Sequence[tuple[str, bytes]], registry: Registry | None = None) -> Slate:
    """Decode the slate of a reply, JSON or Avro.

    Raises:
        DeadlineExceeded, NotReady, BadRequest, RiffleError: the error that the reply carries.
        RiffleError: code `unreadable_reply`.
    """
    return _read(value, headers, registry, _slate)


def page_from(value: bytes | None, headers: Sequence[tuple[str, bytes]], registry: Registry | None = None) -> UserPage:
    """Decode the page of users of a reply, which is in JSON. Raises as `slate_from`."""
    return _read(value, headers, registry, _page)


def _read(
    value: bytes | None,
    headers: Sequence[tuple[str, bytes]],
    registry: Registry | None,
    build: Callable[[Mapping[str, Any]], T],
) -> T:
    try:
        body, framing = decode("slate", value or b"", headers, registry)
        if framing is Framing.JSON:
            body = body["value"]
        error = body.get("error")
        if error is None:
            return build(body)
        code, message, field = str(error["code"]), str(error["message"]), error.get("field")
    except TransientError:
        raise
    except Exception as exc:  # any client with access to the reply topic may have written it
        raise RiffleError("unreadable_reply", f"the reply cannot be read: {type(exc).__name__}: {exc}") from exc
    raise KINDS.get(code, RiffleError if code == "internal" else BadRequest)(code, message, field)


def _slate(body: Mapping[str, Any]) -> Slate:
    as_of = body.get("as_of")
    return Slate(
        body["request_id"],
        body["user_id"],
        tuple(
            SlateItem(entry["item_id"], float(entry["score"]), tuple(entry["sources"]), _explanation(entry))
            for entry in body["items"]
        ),
        body["release"],
        body["arm"],
        tuple(body.get("degraded", ())),
        None if as_of is None else AsOf(as_of["partition"], as_of["offset"], as_of["event_time"]),
        dict(body.get("timings_ms", {})),
    )


def _page(body: Mapping[str, Any]) -> UserPage:
    users = tuple(map(str, body["users"]))
    return UserPage(int(body["partition"]), int(body["partitions"]), users, None if body["next"] is None else str(body["next"]))


def _explanation(entry: Mapping[str, Any]) -> Mapping[str, object] | None:
    explanation = entry.get("explanation")
    if isinstance(explanation, str):  # Avro carries it as JSON text
        explanation = orjson.loads(explanation)
    return explanation if isinstance(explanation, dict) else None


def _datum(request: Request) -> dict[str, Any]:
    return {
        "request_id": request.request_id,
        "user_id": request.user_id,
        "k": request.k,
        "context": dict(request.context),
        "exclude": list(request.exclude),
        "categories": list(request.categories),
        "explain": request.explain,
        "after": None if request.after is None else asdict(request.after),
        "candidates": None if request.candidates is None else list(request.candidates),
        "repeats": request.repeats,
    }


async def _registered(name: str, framing: Framing, registry: Registry | None) -> None:
    """Register a schema before records are encoded with it; waits a bounded time."""
    if framing is Framing.CONFLUENT and registry is not None:
        await registry.ready({name})


async def _started(part: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    try:
        await part.start()
    except KafkaError as exc:
        await part.stop()
        raise NotReady("broker_unavailable", f"no broker: {exc}") from exc
