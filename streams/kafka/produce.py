"""Producing a dataset to the topics: every record is acknowledged, and a user's events keep their order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from schemas.codec import Framing
from schemas.errors import TransientError
from schemas.kernels import partition_of
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.error_codes import Action, action_of, advice_of
from streams.kafka.healing_producer import Outgoing
from streams.kafka.topics import partitions_of
from streams.kafka.writes import Writes

__all__ = ["produce", "produce_events", "produce_items"]

ROUND = 2_000
"Records after which every partition's batch is sent, full or not, so that partitions stay close in time."
BATCHES = 64
"Batches that may be unacknowledged at once."
BATCH_BYTES = 1 << 18
TICK_S = 0.01

Progress = Callable[[int], None]


class _Batches:
    """One batch in progress per partition; `last` is the newest acknowledged offset per partition.

    Keys go to the partition that every Kafka client's default partitioner (murmur2) gives them. Batches of one partition are
    sent in the order in which they were filled, so a key's records keep their order.
    """

    def __init__(self, producer: Any, topic: str, partitions: list[int]) -> None:
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._filling: dict[int, Any] = {}
        self._sent: list[tuple[int, int, Any]] = []
        self.last: dict[int, int] = {}

    async def add(self, record: Outgoing) -> None:
        """Queue a record that has a key and a value; waits while the broker is behind."""
        key, value = record.key, record.value
        assert key is not None
        assert value is not None
        partition = self._partitions[partition_of(key, len(self._partitions))]
        for _ in range(2):
            batch = self._filling.get(partition)
            if batch is None:
                batch = self._filling[partition] = self._producer.create_batch()
            if batch.append(key=key, value=value, timestamp=None) is not None:
                return
            await self._send(partition)
        raise MessageSizeTooLargeError(f"a record of {len(value)} bytes does not fit into a batch")

    async def _send(self, partition: int) -> None:
        batch = self._filling.pop(partition)
        if not batch.record_count():
            return
        batch.close()
        if len(self._sent) >= BATCHES:
            await self.acknowledged(len(self._sent) - BATCHES + 1)
        future = await self._producer.send_batch(batch, self._topic, partition=partition)
        self._sent.append((partition, batch.record_count(), future))

    async def send_all(self) -> None:
        """Send the queued records, in full batches or not."""
        for partition in list(self._filling):
            await self._send(partition)

    async def acknowledged(self, oldest: int | None = None) -> None:
        """Wait until the oldest batches, or all, are acknowledged."""
        due, self._sent = self._sent[:oldest], self._sent[len(self._sent) if oldest is None else oldest :]
        for partition, count, future in due:
            self.last[partition] = (await future).offset + count - 1


async def produce(
    settings: Settings,
    topic: str,
    records: Callable[[Writes], Iterator[Outgoing]],
    schema: str,
    rate: float | None = None,
    progress: Progress | None = None,
) -> dict[int, int]:
    """Send the records that `records` makes; returns the last offset per partition when all are acknowledged.

    `rate`: records per second, open loop: each is sent when it is due, regardless of earlier ones. None: as fast as
    acknowledgements allow.

    Raises:
        TransientError: the broker cannot be reached or refused a record; earlier records are stored. Or the schema registry
            gives no answer; nothing is stored.
    """
    registry = connect.registry(settings)
    if registry is not None:
        await registry.ready({schema})
        registry.id_of(schema)
    framing = Framing.CONFLUENT if registry else Framing.SINGLE_OBJECT
    producer = connect.producer(settings.kafka, connect.BULK, max_batch_size=BATCH_BYTES)
    try:
        await producer.start()
        # the cluster may list more partitions than the tables have, and no worker reads those
        wanted = partitions_of(topic.removeprefix(settings.topic_prefix), settings)
        batches = _Batches(producer, topic, sorted(await producer.partitions_for(topic))[:wanted])
        started, sent = time.perf_counter(), 0
        for record in records(Writes(settings, framing, registry)):
            if rate is not None and (wait := started + sent / rate - time.perf_counter()) > 0:
                await batches.send_all()
                if progress is not None:
                    progress(sent)
                await asyncio.sleep(max(wait, TICK_S))
            await batches.add(record)
            sent += 1
            if sent % ROUND == 0:
                await batches.send_all()
            if progress is not None and sent % 500 == 0:
                progress(sent)
        await batches.send_all()
        await batches.acknowledged()
        if progress is not None:
            progress(sent)
    except (KafkaError, KafkaTimeoutError) as exc:
        first = "see `riffle doctor`, " if action_of(exc) in {Action.RETRY, Action.REPLACE} else ""
        raise TransientError(
            "not_produced",
            f"the broker at {settings.bootstrap_servers} did not accept a record of {topic}: {advice_of(exc)}; "
            f"{first}then run the command again: repeated events are recognised by their ids",
        ) from exc
    finally:
        await producer.stop()
    return batches.last


async def produce_items(settings: Settings, items: Iterable[Item], progress: Progress | None = None) -> dict[int, int]:
    """Send catalogue entries."""
    return await produce(settings, settings.topic("items"), lambda writes: map(writes.item, items), "item", progress=progress)


async def produce_events(
    settings: Settings, events: Iterable[Interaction], rate: float | None = None, progress: Progress | None = None
) -> dict[int, int]:
    """Send events, keyed by user; returns the last offset per partition, a token for each."""
    topic = settings.topic("interactions")
    return await produce(settings, topic, lambda writes: map(writes.event, events), "interaction", rate, progress)
