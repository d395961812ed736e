"""A worker killed in the middle of a replay loses nothing and counts nothing twice."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from reference import Tables

from models.state import hash64
from schemas.codec import encode
from schemas.records import Interaction
from streams.settings import Settings
from streams.topics import ensure_topics

pytestmark = pytest.mark.integration

ITEMS = [f"i{n}" for n in range(40)]


async def records(settings: Settings, topic: str) -> dict[int, dict[bytes, bytes]]:
    """What a compacted topic holds, per partition, as a committed reader sees it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    tps = [TopicPartition(settings.topic(topic), p) for p in range(settings.partitions)]
    consumer.assign(tps)
    ends = await consumer.end_offsets(tps)
    held: dict[int, dict[bytes, bytes]] = {tp.partition: {} for tp in tps}
    while any([await consumer.position(tp) < ends[tp] for tp in tps]):
        for tp, batch in (await consumer.getmany(timeout_ms=100)).items():
            for record in batch:
                if record.value is None:
                    held[tp.partition].pop(record.key, None)
                else:
                    held[tp.partition][record.key] = record.value
    await consumer.stop()
    return held


def recomputed(events: Mapping[int, list[Interaction]]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """The tables from the events alone, partition by partition, without Kafka: people and statistics, and neighbours."""
    rows: dict[bytes, bytes] = {}
    categories = {item: (f"c{n % 5}",) for n, item in enumerate(ITEMS)}
    together = Tables()
    for partition, stream in events.items():
        tables = Tables.after(stream, categories)
        rows |= {b"u" + user.encode(): person.record().encode() for user, person in tables.people.items()}
        rows |= {f"i{item}|{partition}".encode(): row.encode() for item, row in tables.statistics.items()}
        for item, others in tables.covisits.items():
            mine = together.covisits.setdefault(item, {})
            for other, weight in others.items():
                mine[other] = mine.get(other, 0.0) + weight
    neighbours = {hash64(item).to_bytes(8, "little"): row.encode() for item, row in together.neighbours().items()}
    return rows, neighbours


@pytest.mark.parametrize("instance", ["", "one"])
async def test_tables_equal_an_offline_recomputation_after_kills(fresh: Settings, worker_of: Any, instance: str) -> None:
    fresh = replace(fresh, instance=instance)
    rng = random.Random(11)
    await ensure_topics(fresh)
    producer = AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers, acks="all", linger_ms=5)
    await producer.start()
    for n, item in enumerate(ITEMS):
        datum = {"item_id": item, "title": item, "categories": [f"c{n % 5}"]}
        await producer.send_and_wait(fresh.topic("items"), encode("item", datum), key=item.encode())
    worker = worker_of(fresh).start()
    streams: dict[int, list[Interaction]] = {p: [] for p in range(fresh.partitions)}
    sent: list[Interaction] = []
    for kill in range(5):
        for n in range(1_500):
            event = Interaction(
                f"e{kill}-{n}",
                f"u{int(rng.paretovariate(0.8)) % 200}",
                rng.choice(ITEMS),
                1_700_000_000_000 + kill * 10_000_000 + n * 1_000 - rng.choice((0, 0, 0, 40_000_000)),
                rng.choice(("view", "like")),
                rng.choice((None, 1.0, 4.5)),
            )
            if n % 10 == 0 and sent:
                event = rng.choice(sent[-50:])  # a duplicate
            sent.append(event)
            value = {name: getattr(event, name) for name in Interaction.__dataclass_fields__}
            done = await producer.send(fresh.topic("interactions"), encode("interaction", value), key=event.user_id.encode())
            if n % 100 == 99:
                await done
            done.add_done_callback(lambda f, e=event: streams[f.result().partition].append(e))
        await producer.flush()
        if kill < 4:
            await asyncio.sleep(rng.random() * 0.6)
            worker.kill()
            if kill == 2:
                shutil.rmtree(fresh.data_dir / "tables" / "users" / "1")
            worker.start()
    await producer.flush()
    await producer.stop()
    expected, covisits = recomputed(streams)
    applied = {p: len(stream) for p, stream in streams.items()}

    async def settled() -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for partition, held in (await records(fresh, "users-changelog")).items():
            for key, value in held.items():
                if key[:1] == b"u":
                    found[key] = value
                elif key[:1] == b"i":
                    found[key + f"|{partition}".encode()] = value
        return found

    for _ in range(30):
        found = await settled()
        if found == expected:
            break
        await asyncio.sleep(0.5)
    assert sum(applied.values()) == 7_500
    assert found.keys() == expected.keys()
    assert found == expected
    for _ in range(30):
        tables = await records(fresh, "covisits-changelog")
        neighbours = {key[1:]: value for held in tables.values() for key, value in held.items() if key[:1] == b"\x01"}
        if neighbours == covisits:
            break
        await asyncio.sleep(0.5)
    assert neighbours == covisits
    # what is on disk after a clean stop is what the changelog says
    worker.stop()
    from streams.store import PartitionStore, block_cache

    local: dict[bytes, bytes] = {}
    for partition in range(fresh.partitions):
        store = PartitionStore(fresh.data_dir / "tables" / "users" / str(partition), block_cache(8))
        store.open()
        local |= dict(store.scan(b"u"))
        local |= {key + f"|{partition}".encode(): value for key, value in store.scan(b"i")}
        store.close()
    assert local == expected
