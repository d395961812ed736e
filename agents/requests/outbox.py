"""A queue of records before a producer. One task sends them in order, without waiting for each; to a producer that never waits,
records go at once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agents.findings import why
from agents.metrics import Metrics

__all__ = ["AtOnce", "Outbox", "Producer", "Queued"]

log = logging.getLogger(__name__)

TOPIC_TRIES, TOPIC_WAIT_S = 5, 0.3
AT_ONCE = 16
"Records that are sent before other tasks have a turn."


def _nothing() -> None:
    pass


AtOnce = Callable[..., "asyncio.Future[Any]"]
"Queues one record, given by topic, value, key and headers as for `Producer.send`, without waiting; returns the same future."


class Producer(Protocol):
    """The part of `streams.kafka.healing_producer.HealingProducer` and of `NativeProducer` that an `Outbox` uses."""

    def knows(self, topic: str) -> bool:
        """Whether the topic is known to exist."""

    async def look_up(self, topic: str) -> bool:
        """Ask the cluster for the topic; returns whether it exists. Raises KafkaError if the cluster does not answer."""

    async def forget(self, topic: str) -> None:
        """Forget a topic that does not exist."""

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> asyncio.Future[Any]:
        """Queue one record; the future returns its metadata, or raises. Raises KafkaError if it cannot be queued."""


@dataclass(slots=True)
class Queued:
    """A record that waits to be sent."""

    topic: str
    key: bytes | None
    value: bytes | Callable[[], bytes]
    "A function is called when the record is sent."
    headers: Sequence[tuple[str, bytes]]
    what: str
    "Kind of record, for the counter of failures."
    done: Callable[[], None] = _nothing
    "Called once, when the record is acknowledged or given up."
    put_s: float = 0.0
    "Time at which it was queued, on the outbox's clock."

    def encoded(self) -> bytes:
        """Return the record's value."""
        return self.value if isinstance(self.value, bytes) else self.value()


class Outbox:
    """A queue before a producer. Failed records are counted and given up. A missing topic does not delay other records."""

    def __init__(
        self,
        producer: Producer,
        metrics: Metrics,
        took: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        *,
        pause_s: float = 0.0,
        at_once: AtOnce | None = None,
    ) -> None:
        """`took` is called with the seconds from `put` to the acknowledgement of each record to a known topic.

        `clock`: seconds, never set back. `pause_s`: seconds that records wait for others before they are sent. `at_once`: sends
        a record to a known topic within `put`, if no other waits. The event loop's next turn may hold a batch of requests.
        """
        self._at_once = at_once
        self._clock = clock
        self._producer = producer
        self._metrics = metrics
        self._took = took
        self._pause_s = pause_s
        self._queue: deque[Queued] = deque()
        self._work = asyncio.Event()
        self._empty = asyncio.Event()
        "Set while no record is queued or in flight."
        self._empty.set()
        self._under_way = 0
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._unknown: dict[str, list[Queued]] = {}
        "Records to topics that are being looked up."

    def put(self, record: Queued) -> None:
        """Send or queue a record without waiting."""
        record.put_s = self._clock()
        self._under_way += 1
        self._empty.clear()
        if self._at_once is not None and not self._queue and self._sends_at_once(record):
            return
        self._queue.append(record)
        self._work.set()

    def _sends_at_once(self, record: Queued) -> bool:
        if self._at_once is None or record.topic in self._unknown or not self._producer.knows(record.topic):
            return False
        try:
            future = self._at_once(record.topic, record.encoded(), record.key, list(record.headers))
        except Exception as exc:
            self._failed(record, "refused", exc)
        else:
            self._ends_with(record, future, timed=True)
        return True

    def expect(self, topic: str) -> None:
        """Look a topic up in advance if it is unknown, because records to it will follow."""
        if topic not in self._unknown and not self._producer.knows(topic):
            self._unknown[topic] = []
            self._looking[topic] = asyncio.create_task(self._look_up(topic))

    async def run(self) -> None:
        """Send queued records until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            if self._pause_s:
                await asyncio.sleep(self._pause_s)
            sent = 0
            while self._queue:
                record = self._queue.popleft()
                self.expect(record.topic)
                if record.topic in self._unknown:
                    self._unknown[record.topic].append(record)
                else:
                    await self._send(record, timed=True)
                sent += 1
                if sent % AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no record is queued or in flight; returns whether that is so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def _send(self, record: Queued, *, timed: bool = False) -> None:
        try:
            value, headers = record.encoded(), list(record.headers)
            future = await self._producer.send(record.topic, value, key=record.key, headers=headers)
        except Exception as exc:
            self._failed(record, "refused", exc)
        else:
            self._ends_with(record, future, timed=timed)

    def _ends_with(self, record: Queued, future: asyncio.Future[Any], *, timed: bool) -> None:
        def acknowledged(sent: asyncio.Future[object]) -> None:
            if not sent.cancelled() and (error := sent.exception()) is not None:
                self._failed(record, "refused", error)
            else:
                if timed:
                    self._took(self._clock() - record.put_s)
                self._end(record)

        future.add_done_callback(acknowledged)

    async def _look_up(self, topic: str) -> None:
        """Look an unknown topic up a few times, because it may just be being created, then send its waiting records."""
        reason = "no_topic"
        error: Exception | None = None
        try:
            for _ in range(TOPIC_TRIES):
                if await self._producer.look_up(topic):
                    break
                await asyncio.sleep(TOPIC_WAIT_S)
            else:
                error = LookupError("there is no such topic")
                await self._producer.forget(topic)
        except Exception as exc:
            reason, error = "refused", exc
        records = self._unknown.pop(topic)
        del self._looking[topic]
        for record in records:
            if error is None:
                await self._send(record)
            else:
                self._failed(record, reason, error)

    def _failed(self, record: Queued, reason: str, error: BaseException) -> None:
        log.warning("%s to %s failed: %s", record.what, record.topic, why(error))
        self._metrics.sends_failed.add(what=record.what, reason=reason)
        self._end(record)

    def _end(self, record: Queued) -> None:
        record.done()
        self._under_way -= 1
        if not self._under_way:
            self._empty.set()
