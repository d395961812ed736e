"""Records that were fetched and dropped are read again, whether or not the partition has a committed offset."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.settings import Settings
from streams.kafka.chunks import ChunkedConsumerThread, seek_to_committed
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


async def offsets(consumer: AIOKafkaConsumer, count: int) -> dict[int, list[int]]:
    """Return the offsets of the next `count` records, by partition."""
    found: dict[int, list[int]] = {}
    for _ in range(count):
        record = await asyncio.wait_for(consumer.getone(), 20)
        found.setdefault(record.partition, []).append(record.offset)
    return found


async def test_a_partition_without_a_commit_is_read_again_from_its_beginning(fresh: Settings) -> None:
    await ensure_topics(fresh)
    topic = fresh.topic("interactions")
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as producer:
        for n in range(30):
            await producer.send_and_wait(topic, b"%d" % n, partition=n % 3)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=fresh.bootstrap_servers,
        group_id=fresh.app_id,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    async with consumer:
        first = await offsets(consumer, 30)
        assert first == {p: list(range(10)) for p in range(3)}
        # one partition is committed, one is committed at its beginning, one never was
        await consumer.commit({TopicPartition(topic, 0): 4, TopicPartition(topic, 1): 0})
        committed = await seek_to_committed(consumer)
        assert {tp.partition: offset for tp, offset in committed.items()} == {0: 4, 1: 0, 2: None, 3: None}
        assert await offsets(consumer, 26) == {0: list(range(4, 10)), 1: list(range(10)), 2: list(range(10))}


async def test_the_consumers_thread_seeks_so() -> None:
    class Thread:
        asked: tuple[object, ...] = ()

        def _ensure_consumer(self) -> str:
            return "its consumer"

        async def call_thread(self, *asked: object) -> None:
            self.asked = asked

    thread = Thread()
    await ChunkedConsumerThread.seek_to_committed(cast("ChunkedConsumerThread", thread))
    assert thread.asked == (seek_to_committed, "its consumer")
