"""Copying topics to another number of partitions loses nothing; a user's events stay in order, in one partition."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from schemas.errors import ConfigError
from schemas.kernels import partition_of
from schemas.settings import Settings
from streams.kafka.copying import copy_topics
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


async def records(settings: Settings, name: str, partitions: int) -> dict[int, list[tuple[object, ...]]]:
    found: dict[int, list[tuple[object, ...]]] = {}
    async with AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        tps = [TopicPartition(settings.topic(name), number) for number in range(partitions)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for tp, batch in (await consumer.getmany(timeout_ms=100)).items():
                found.setdefault(tp.partition, []).extend((r.key, r.value, tuple(r.headers), r.timestamp) for r in batch)
    return found


async def test_a_copy_has_all_records_where_their_keys_belong(fresh: Settings) -> None:
    await ensure_topics(fresh)
    old, new = fresh, replace(fresh, topic_prefix=f"n{uuid.uuid4().hex[:8]}.", partitions=6)
    topic, sent = old.topic("interactions"), []
    async with AIOKafkaProducer(bootstrap_servers=old.bootstrap_servers) as producer:
        for n in range(300):
            if n == 150:  # from here on producers see eight partitions, and send the events of some users to other partitions
                admin = AIOKafkaAdminClient(bootstrap_servers=old.bootstrap_servers)
                await admin.start()
                await admin.create_partitions({topic: NewPartitions(8)})
                await admin.close()
                await producer.client.force_metadata_update()
            key, headers = b"u%d" % (n % 20), [("n", b"%d" % n)]
            await producer.send_and_wait(topic, b"%d" % n, key=key, headers=headers, timestamp_ms=1_700_000_000_000 + n)
            sent.append((key, b"%d" % n, tuple(headers), 1_700_000_000_000 + n))
        await producer.send_and_wait(old.topic("items"), b"an item", key=b"i1")
        await producer.send_and_wait(old.topic("items"), None, key=b"i2")
    seen: list[tuple[str, int, int]] = []
    counts = await copy_topics(old, new, lambda *told: seen.append(told))
    assert counts == {"items": 2, "item-vectors": 0, "models": 0, "rules": 0, "interactions": 300, "impressions": 0}
    assert ("interactions", 300, 300) in seen
    copied = await records(new, "interactions", 6)
    assert sorted(record for part in copied.values() for record in part) == sorted(sent)
    for number, part in copied.items():
        assert {partition_of(record[0], 6) for record in part} == {number}  # type: ignore[arg-type]
        for user in {record[0] for record in part}:
            assert [r for r in part if r[0] == user] == [r for r in sent if r[0] == user]
    assert [record[:2] for record in (await records(new, "items", 1))[0]] == [(b"i1", b"an item"), (b"i2", None)]


async def test_what_would_be_mixed_is_refused(fresh: Settings) -> None:
    await ensure_topics(fresh)
    with pytest.raises(ConfigError, match="another prefix"):
        await copy_topics(fresh, replace(fresh, partitions=8))
    new = replace(fresh, topic_prefix=f"n{uuid.uuid4().hex[:8]}.")
    await ensure_topics(new)
    async with AIOKafkaProducer(bootstrap_servers=new.bootstrap_servers) as producer:
        await producer.send_and_wait(new.topic("items"), b"x", key=b"i")
    with pytest.raises(ConfigError, match="holds records already"):
        await copy_topics(fresh, new)
