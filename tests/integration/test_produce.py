"""Dataset folders are produced to a real broker."""

from __future__ import annotations

from collections import defaultdict

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.codec import decode
from schemas.errors import TransientError
from schemas.records import Interaction
from schemas.settings import Settings
from streams.kafka.produce import produce_events
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


def events(n: int) -> list[Interaction]:
    return [Interaction(f"e{k}", f"u{k % 97}é", f"i{k % 29}", k) for k in range(n)]


@pytest.mark.parametrize("rate", [None, 20_000.0])
async def test_events_arrive_once_in_order_where_other_clients_would_put_them(fresh: Settings, rate: float | None) -> None:
    await ensure_topics(fresh)
    topic, sent = fresh.topic("interactions"), events(7_001)
    last = await produce_events(fresh, sent, rate)
    assert sum(offset + 1 for offset in last.values()) == len(sent)
    async with AIOKafkaConsumer(bootstrap_servers=fresh.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(topic, p) for p in last])
        found: dict[str, list[int]] = defaultdict(list)
        homes: dict[str, int] = {}
        while sum(map(len, found.values())) < len(sent):
            for batch in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in batch:
                    event = decode("interaction", record.value, record.headers)[0]
                    assert record.key.decode() == event["user_id"]
                    found[event["user_id"]].append(event["event_time"])
                    homes[event["user_id"]] = record.partition
    expected: dict[str, list[int]] = defaultdict(list)
    for one in sent:
        expected[one.user_id].append(one.event_time)
    assert found == expected
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as other:
        for user_id in list(homes)[:5]:
            assert (await other.send_and_wait(topic, b"x", key=user_id.encode())).partition == homes[user_id]


async def test_no_broker_says_what_to_do() -> None:
    with pytest.raises(TransientError, match="riffle doctor"):
        await produce_events(Settings(bootstrap="127.0.0.1:1"), events(1))
