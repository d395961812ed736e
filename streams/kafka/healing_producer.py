"""A producer that is replaced when it and the broker no longer agree.

An idempotent producer numbers the records of each partition. When one batch fails for good (too large for its topic, for
example), its numbers are missing, and the broker refuses every later batch of that partition with OUT_OF_ORDER_SEQUENCE_NUMBER.
Only a new producer can continue. The same holds for a producer whose sender task has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

from streams.kafka.error_codes import Action, action_of, advice_of

__all__ = ["HealingProducer", "Outgoing"]

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"Seconds that a producer may take to close: it may wait for records that can no longer be sent."


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to be sent. `topic` is a full name; without `partition` the key decides."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


class HealingProducer:
    """Sends records with the producer that `make` creates, and creates another when that one is broken.

    `replaced` is called with the reason each time. Use `deliver` for records that must be acknowledged, and `send` for records
    whose failure is only counted.
    """

    def __init__(self, make: Callable[[], AIOKafkaProducer], replaced: Callable[[str], None] = lambda _: None) -> None:
        self._make = make
        self._replaced = replaced
        self._producer: Any = None
        self._broken = ""
        "The reason why the current producer must be replaced before its next use; empty while it is sound."
        self._replacing = asyncio.Lock()
        self._starting: asyncio.Future[Any] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker can be reached, or the broker refuses this client.
        """
        self._producer = await self._started()

    async def stop(self) -> None:
        """Send the queued records, for at most `CLOSE_S` seconds, and disconnect."""
        if self._producer is not None:
            self._close(self._producer)
            self._producer = None
        if self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def knows(self, topic: str) -> bool:
        """Whether the topic is known to exist."""
        return bool(self._client.cluster.partitions_for_topic(topic))

    async def look_up(self, topic: str) -> bool:
        """Ask the cluster whether there is a topic of this name.

        Raises:
            KafkaError: the cluster does not answer.
        """
        client = self._client
        if topic in client._topics:  # adding a topic that the client already follows does not request its metadata again
            await client.force_metadata_update()
        else:
            await client.add_topic(topic)
        return self.knows(topic)

    async def forget(self, topic: str) -> None:
        """Forget a topic that does not exist, because any sender may put arbitrary names into a header."""
        client = self._client
        await client.set_topics({*client._topics} - {topic})

    @property
    def _client(self) -> Any:
        assert self._producer is not None
        return self._producer.client

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        """Queue one record; the future yields the record's metadata, or raises the error.

        Raises:
            KafkaError: it cannot be queued.
        """
        producer = await self._sound()
        try:
            sent: asyncio.Future[Any] = await producer.send(
                topic, value=value, key=key, partition=partition, headers=list(headers)
            )
        except KafkaError as error:
            if action_of(error) is Action.REPLACE and producer is self._producer:
                self._broken = self._broken or advice_of(error)
            raise
        sent.add_done_callback(lambda done: self._look(producer, done))
        return sent

    async def deliver(self, records: Sequence[Outgoing]) -> list[Any]:
        """Send records and wait until all are acknowledged; returns their metadata in order.

        If the producer turns out to be broken, all of them are sent again by a new one: some may then be stored twice.

        Raises:
            KafkaError: a record was refused, or the broker did not answer; some of the others may be stored.
        """
        try:
            return await self._deliver(records)
        except KafkaError as error:
            if action_of(error) is not Action.REPLACE:
                raise
            return await self._deliver(records)

    async def _deliver(self, records: Sequence[Outgoing]) -> list[Any]:
        sent = [await self.send(record.topic, record.value, record.key, record.headers, record.partition) for record in records]
        found = await asyncio.gather(*sent, return_exceptions=True)
        # from Python 3.12 on, futures that are done are gathered before their callbacks, `_look`, have run
        await asyncio.sleep(0)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return found

    def _look(self, producer: Any, done: asyncio.Future[Any]) -> None:
        """Mark the producer as broken: an idempotent one after any failure, because its sequence numbers then have a gap;
        another one only after an error that demands a replacement.
        """
        if done.cancelled() or (error := done.exception()) is None or producer is not self._producer:
            return
        if producer._txn_manager is not None or action_of(error) is Action.REPLACE:
            self._broken = self._broken or advice_of(error)

    async def _sound(self) -> Any:
        """The current producer, replaced first if it is broken."""
        producer = self._producer
        assert producer is not None, "start was not called"
        task = producer._sender.sender_task
        if not self._broken and (task is None or not task.done()):
            return producer
        async with self._replacing:
            if self._producer is producer:
                reason = self._broken or "its sender task has ended"
                log.warning("a producer is replaced: %s", reason)
                # shielded, because a caller that runs out of time must not cancel the start that all others wait for
                self._starting = self._starting or asyncio.ensure_future(self._started())
                try:
                    fresh = await asyncio.shield(self._starting)
                finally:
                    if self._starting.done():
                        self._starting = None
                if self._producer is None:  # stopped in the meantime
                    self._close(fresh)
                    raise ProducerClosed
                self._producer, self._broken = fresh, ""
                self._close(producer)
                self._replaced(reason)
            assert self._producer is not None
            return self._producer

    async def _started(self) -> Any:
        fresh = self._make()
        try:
            await fresh.start()
        except BaseException:
            await fresh.stop()
            raise
        return fresh

    def _close(self, producer: Any) -> None:
        async def stop() -> None:
            stopping = asyncio.create_task(producer.stop())
            _, late = await asyncio.wait({stopping}, timeout=CLOSE_S)
            if late:
                log.warning("a producer does not close; it is abandoned")
                stopping.cancel()
                await asyncio.gather(stopping, producer.client.close(), return_exceptions=True)
            elif (error := stopping.exception()) is not None:
                log.info("a replaced producer ended with %r", error)

        task = asyncio.create_task(stop())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
