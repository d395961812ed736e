"""Kill the embedded broker while transactions end: after its restart each has ended, with the same result in all partitions."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from fault_trial import FIRST, TRIALS

from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import wait_until
from streams.kafka.topics import ensure_topics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(7_200)]
PRODUCERS = 6
TOPICS = ("users-changelog", "covisits", "item-stats")


class Ending:
    """A producer that ends one transaction after another, and records which ones were acknowledged."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings, self.name = settings, name
        self.begun = self.told = 0
        "Numbers of the newest transaction begun, and of the newest one whose commit was acknowledged."

    async def run(self) -> None:
        """Run transactions until the broker is gone."""
        producer = AIOKafkaProducer(bootstrap_servers=self.settings.bootstrap_servers, transactional_id=self.name)
        try:
            await producer.start()
            while True:
                self.begun += 1
                await producer.begin_transaction()
                for topic in TOPICS:
                    await producer.send(self.settings.topic(topic), b"%d" % self.begun, key=self.name.encode(), partition=0)
                await producer.commit_transaction()
                self.told = self.begun
        finally:
            # a producer with an interrupted transaction would wait for records that can no longer be sent
            stopping = asyncio.create_task(producer.stop())
            await asyncio.wait({stopping}, timeout=1)
            stopping.cancel()
            await asyncio.gather(stopping, producer.client.close(), return_exceptions=True)


async def ends(settings: Settings, isolation: str) -> list[int]:
    async with AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, isolation_level=isolation) as consumer:
        found = await consumer.end_offsets([TopicPartition(settings.topic(topic), 0) for topic in TOPICS])
    return list(found.values())


async def told(settings: Settings, topic: str) -> dict[str, list[int]]:
    """Return the numbers of committed transactions by producer, in the topic's order."""
    found: dict[str, list[int]] = {}
    tp = TopicPartition(settings.topic(topic), 0)
    async with AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    ) as consumer:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        while await consumer.position(tp) < end:
            for record in (await consumer.getmany(tp, timeout_ms=200)).get(tp, ()):
                found.setdefault(record.key.decode(), []).append(int(record.value))
    return found


async def test_transactions_that_were_ending_are_ended(stack: Settings, fresh: Settings) -> None:
    await ensure_topics(fresh)
    kafka = EmbeddedKafka(stack)
    producers = [Ending(fresh, f"{fresh.app_id}-{n}") for n in range(PRODUCERS)]
    for seed in range(FIRST, FIRST + TRIALS):
        rng = random.Random(seed)
        before = [producer.told for producer in producers]
        running = [asyncio.create_task(producer.run()) for producer in producers]
        async with asyncio.timeout(60):
            while any(producer.told <= last for producer, last in zip(producers, before, strict=True)):
                assert not any(task.done() for task in running), "a producer ended before the broker did"
                await asyncio.sleep(0.05)
        await asyncio.sleep(rng.random())
        assert kafka.daemon.pid() is not None
        kafka.daemon.signal(signal.SIGKILL)
        assert await asyncio.to_thread(wait_until, lambda: kafka.daemon.pid() is None, 10.0)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(kafka.start)

        # a producer that takes over an id aborts its open transaction; a transaction that was ending ends first
        for producer in producers:
            next_one = AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers, transactional_id=producer.name)
            await asyncio.wait_for(next_one.start(), 30)
            await next_one.stop()
        until = asyncio.get_running_loop().time() + 20
        while True:
            with contextlib.suppress(KafkaError):
                committed, newest = await ends(fresh, "read_committed"), await ends(fresh, "read_uncommitted")
                if committed == newest:
                    break
            assert asyncio.get_running_loop().time() < until, f"seed {seed}: transactions are open: {committed}, {newest}"
            await asyncio.sleep(0.2)
        first = await told(fresh, TOPICS[0])
        for topic in TOPICS[1:]:
            assert await told(fresh, topic) == first, f"seed {seed}: a transaction is in one topic and not in another"
        for producer in producers:
            numbers = first[producer.name]
            assert len(set(numbers)) == len(numbers)
            assert numbers[-1] >= producer.told, f"seed {seed}: a transaction that was committed is not there"
