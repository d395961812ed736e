"""Simultaneous requests: each gets one answer, and none is delayed by a reply topic that does not exist."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections import Counter
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.records import Item
from schemas.settings import Settings
from streams.kafka.produce import produce_items

pytestmark = pytest.mark.integration


async def send(producer: AIOKafkaProducer, settings: Settings, topic: str, n: int, deadline_ms: int) -> set[bytes]:
    names = set()
    for k in range(n):
        name, user = uuid.uuid4().hex.encode(), f"u{k}"
        headers = [
            ("Faust-Ag-ReplyTo", topic.encode()),
            ("Faust-Ag-CorrelationId", name),
            ("deadline-ms", str(deadline_ms).encode()),
            ("content-type", b"application/json"),
        ]
        body = json.dumps({"user_id": user, "k": 5}).encode()
        await producer.send(settings.topic("requests"), body, key=user.encode(), headers=headers)
        names.add(name)
    await producer.flush()
    return names


async def make(settings: Settings, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()


async def answers(settings: Settings, topic: str, n: int) -> tuple[Counter[bytes], Counter[str]]:
    """Wait for n answers on a topic and one more second; return the number of answers by request and by outcome."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    by_name: Counter[bytes] = Counter()
    outcomes: Counter[str] = Counter()
    left_s = 30.0
    while left_s > 0:
        fetched = await consumer.getmany(timeout_ms=100)
        left_s = min(left_s - 0.1, 1.0) if by_name.total() >= n else left_s - 0.1
        for record in (record for records in fetched.values() for record in records):
            value: dict[str, Any] = json.loads(record.value)["value"]
            by_name[dict(record.headers)["Faust-Ag-CorrelationId"]] += 1
            outcomes[value["error"]["code"] if "error" in value else "slate"] += 1
    await consumer.stop()
    return by_name, outcomes


@pytest.fixture
async def producer(worker: Settings) -> Any:
    await produce_items(worker, (Item(f"i{n}", f"title {n % 7}") for n in range(50)))
    producer = AIOKafkaProducer(bootstrap_servers=worker.bootstrap_servers)
    await producer.start()
    yield producer
    await producer.stop()


async def test_each_of_a_burst_gets_one_answer_and_what_there_is_no_time_for_is_told_so(
    worker: Settings, producer: AIOKafkaProducer
) -> None:
    topic = f"replies-{uuid.uuid4().hex}"
    await make(worker, topic)
    names = await send(producer, worker, topic, 400, 150)
    by_name, outcomes = await answers(worker, topic, len(names))
    assert by_name == Counter(names)
    assert set(outcomes) <= {"slate", "deadline_exceeded"}
    patient = await send(producer, worker, topic, 200, 30_000)
    by_name, outcomes = await answers(worker, topic, len(names) + len(patient))
    assert by_name == Counter(names | patient)
    assert outcomes["slate"] >= len(patient)


async def test_a_reply_topic_that_is_made_late_gets_every_answer_and_one_that_never_is_holds_up_nobody(
    worker: Settings, producer: AIOKafkaProducer
) -> None:
    late, never, there = (f"{name}-{uuid.uuid4().hex}" for name in ("late", "never", "there"))
    await make(worker, there)
    lost = await send(producer, worker, never, 30, 20_000)
    names = await send(producer, worker, late, 60, 20_000)
    others = await send(producer, worker, there, 60, 20_000)
    await make(worker, late)
    for topic, asked in ((late, names), (there, others)):
        by_name, outcomes = await answers(worker, topic, len(asked))
        assert by_name == Counter(asked)
        assert outcomes == {"slate": len(asked)}
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            async with session.get(f"{worker.web}/metrics") as response:
                lines = [line for line in (await response.text()).splitlines() if "sends_failed" in line and "no_topic" in line]
            if lines and float(re.split(r"\s", lines[0])[1]) == len(lost):
                return
            await asyncio.sleep(0.1)
