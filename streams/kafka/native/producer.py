"""A producer on librdkafka for records that must leave at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaError
from confluent_kafka import KafkaError as NativeError
from confluent_kafka import KafkaException, TopicCollection

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from streams.kafka.native import clients

__all__ = ["NativeProducer"]

log = logging.getLogger(__name__)

POLL_S, IDLE_S = 0.004, 1.0
"Seconds between two looks for acknowledgements while records are in flight, and while none is."
NO_PARTITION = -1
"Makes librdkafka select the partition, by the key."
CLOSE_S = 5.0
"Seconds in which queued records are sent when the producer stops."
PURGED_S = 0.5
"Seconds in which a stopping client reports the records that it could not send."
FORMER_S = 3.0
"""Seconds after which the present client sends what a former one has not sent: that one may be unable to log in, because its
password is the former one, too."""
LATE_S = 2.0
"Seconds after the timeout of records until a former client reports those that it still holds as failed."
RETRY_S = 10.0
"Seconds until a client is created again after its creation with changed files failed."
LOOK_S = 10.0
"Seconds that a look-up of a topic may take."
MISSING = frozenset({NativeError.UNKNOWN_TOPIC_OR_PART, NativeError._UNKNOWN_TOPIC, NativeError._UNKNOWN_PARTITION})


@dataclass(frozen=True, slots=True)
class _Record:
    """A record, and the future of its delivery."""

    future: asyncio.Future[None]
    topic: str
    value: bytes | None
    key: bytes | None
    partition: int
    headers: list[tuple[str, bytes]]


class NativeProducer:
    """Sends records without a turn of the event loop: `send` queues them, and librdkafka's thread writes them to the broker.

    It needs no replacement after an error: without sequence numbers, librdkafka reconnects and goes on by itself. Its client is
    created anew when the files of certificates or of the password change. The former client is kept until the delivery of each
    of its records is reported; what it cannot send, the present one sends. The future of each record ends, at the latest when
    the producer stops.
    """

    def __init__(self, kafka: KafkaSettings, profile: clients.Profile) -> None:
        self._kafka = kafka
        self._profile = profile
        self._files = clients.Files(kafka)
        self._producer: Any = None
        self._admin: Any = None
        self._former: list[tuple[Any, float, float]] = []
        """Former clients that hold records, and the monotonic times at which the present one takes over those that are not sent
        yet, and at which all are given up."""
        self._again: list[_Record] = []
        "Records that a former client has not sent."
        self._create_at = math.inf
        "Monotonic time at which the client is created anew."
        self._known: set[str] = set()
        self._ended: list[tuple[asyncio.Future[None], NativeError | None, str]] = []
        "Deliveries that librdkafka reported and whose futures are not done yet."
        self._in_flight = 0
        self._work = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Create the client. It connects by itself, however long that takes.

        Raises:
            ConfigError: the settings cannot be used.
        """
        await self._connect()
        self._polling = asyncio.create_task(self._poll_forever(), name="acknowledgements of replies")

    async def stop(self) -> None:
        """Send the queued records, for at most `CLOSE_S` seconds, and disconnect. Records that are not sent by then fail."""
        if self._polling is None:
            return
        self._polling.cancel()
        await asyncio.gather(self._polling, return_exceptions=True)
        self._polling = None
        await asyncio.to_thread(self._close)
        self._settle()
        self._producer = self._admin = None
        self._former = []

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[None]:
        """Call `send_at_once`."""
        return self.send_at_once(topic, value, key, headers, partition)

    def send_at_once(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[None]:
        """Queue one record; without `partition` the key decides. The future is done when the record is acknowledged.

        Raises:
            KafkaError: it cannot be queued. The future raises it if the record cannot be stored.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        record = _Record(future, topic, value, key, NO_PARTITION if partition is None else partition, list(headers))
        try:
            self._produce(record, self._former_ends)
        except KafkaException as exc:
            self._known.discard(topic)
            raise clients.error_of(exc.args[0]) from exc
        except BufferError as exc:
            raise KafkaError("too many replies wait for the broker") from exc
        self._in_flight += 1
        self._work.set()
        return future

    def _produce(self, record: _Record, purged: Callable[[_Record, NativeError], None]) -> None:
        """Queue a record in the present client. `purged` is called if a former client has not sent it."""

        def delivered(error: NativeError | None, _message: object) -> None:
            if error is not None and error.code() == NativeError._PURGE_QUEUE:
                purged(record, error)
            else:
                self._ended.append((record.future, error, record.topic))

        self._producer.produce(record.topic, record.value, record.key, record.partition, delivered, headers=record.headers)

    def _former_ends(self, record: _Record, error: NativeError) -> None:
        """Send a record again that a former client has not sent, unless the producer stops."""
        if self._polling is None:
            self._fails(record, error)
        else:
            self._again.append(record)

    def _fails(self, record: _Record, error: NativeError) -> None:
        self._ended.append((record.future, error, record.topic))

    def knows(self, topic: str) -> bool:
        """Whether the topic is known to exist."""
        return topic in self._known

    async def look_up(self, topic: str) -> bool:
        """Ask the cluster whether there is a topic of this name.

        Raises:
            KafkaError: the cluster does not answer, or refuses to.
        """
        admin, producer = self._admin, self._producer  # a client that goes away would not answer
        # not by the producer, which would remember every name
        (asked,) = admin.describe_topics(TopicCollection([topic]), request_timeout=LOOK_S).values()
        try:
            await asyncio.wrap_future(asked)
            # so that a producer that has met the topic before it existed looks again
            await asyncio.to_thread(producer.list_topics, topic, LOOK_S)
        except KafkaException as exc:
            error = exc.args[0]
            if error.code() in MISSING:
                return False
            raise clients.error_of(error) from exc
        self._known.add(topic)
        return True

    async def forget(self, topic: str) -> None:
        """Forget a topic that does not exist."""
        self._known.discard(topic)

    async def _connect(self) -> None:
        # in a thread, because librdkafka's client may ask for a token while it is created, and a source of tokens may block
        def made() -> tuple[Any, Any]:
            return clients.producer(self._kafka, self._profile), clients.admin(self._kafka)

        self._producer, self._admin = await asyncio.to_thread(made)

    async def _poll_forever(self) -> None:
        looked = time.monotonic()
        while True:
            if self._in_flight:
                await asyncio.sleep(POLL_S)
            else:
                self._work.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_S):  # `wait_for` of Python 3.11 may miss a cancellation
                        await self._work.wait()
            if time.monotonic() - looked >= IDLE_S:
                looked = time.monotonic()
                await self._follow_files()
            # a source of tokens may block, and is called by `poll`; the end of a former client blocks, too
            if self._kafka.uses_tokens or self._former:
                await asyncio.to_thread(self._poll)
            else:
                self._poll()
            self._settle()

    async def _follow_files(self) -> None:
        """Create the client anew if its files have changed. If that fails, the present one is used until it succeeds."""
        now = time.monotonic()
        if self._files.changed():
            self._create_at = now
        if now < self._create_at:
            return
        former = self._producer
        try:
            await self._connect()
        except (ConfigError, KafkaException) as exc:
            self._create_at = now + RETRY_S
            why = exc.message if isinstance(exc, ConfigError) else exc.args[0].str()
            log.warning("no client can be created with the changed files (%s); the present one is used", why)
            return
        self._create_at = math.inf
        until = now + self._profile["message.timeout.ms"] / 1e3 + LATE_S
        self._former.append((former, min(now + FORMER_S, until), until))
        self._known.clear()

    def _poll(self) -> None:
        """Collect the reports of all clients. Former clients without records end here."""
        self._producer.poll(0.0)
        if self._kafka.uses_tokens:
            self._admin.poll(0.0)
        held = []
        for client, queued_until, until in self._former:
            client.poll(0.0)
            if len(client) and (now := time.monotonic()) >= queued_until:
                client.purge(in_flight=now >= until)
                client.poll(0.0)
            if len(client):
                held.append((client, queued_until, until))
        self._former = held
        again, self._again = self._again, []
        for record in again:
            try:
                self._produce(record, self._fails)
            except KafkaException as exc:
                self._fails(record, exc.args[0])
            except BufferError:
                self._fails(record, NativeError(NativeError._QUEUE_FULL))

    def _close(self) -> None:
        """Send queued records and collect their reports."""
        until = time.monotonic() + CLOSE_S
        for client in (self._producer, *(former for former, *_ in self._former)):
            if client.flush(max(until - time.monotonic(), 0.0)):
                client.purge()
                client.flush(PURGED_S)
        for record in self._again:
            self._fails(record, NativeError(NativeError._PURGE_QUEUE))
        self._again = []

    def _settle(self) -> None:
        """Finish the futures of reported deliveries."""
        ended, self._ended = self._ended, []
        self._in_flight -= len(ended)
        for future, error, topic in ended:
            if error is not None and error.code() in MISSING:
                self._known.discard(topic)
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(clients.error_of(error))
