"""librdkafka's reader and producer against a broker: each record once and in order, whatever happens in between."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from faust.types import TP
from native_reading import reading, until

from schemas.settings import Settings
from streams.kafka.native import clients
from streams.kafka.native.producer import NativeProducer
from streams.kafka.native.reader import UNREADABLE
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration

PARTITIONS = range(3)


class NoUtf8(str):
    """A header name that is sent as bytes that are not UTF-8."""

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


async def produced(settings: Settings, count: int, **options: str) -> None:
    """Send `count` records to each of the partitions."""
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, linger_ms=5, **options) as producer:
        sent = [
            await producer.send(settings.topic("requests"), b"%d" % n, key=b"k", partition=p, headers=[("h", b"%d" % n)])
            for n in range(count)
            for p in PARTITIONS
        ]
        await asyncio.gather(*sent)


async def test_each_partition_is_read_once_and_in_order_from_its_start(fresh: Settings) -> None:
    await ensure_topics(fresh)
    await produced(fresh, 100)
    async with reading(fresh) as made:
        made.reader.read({TP(made.topic, 0): 40, TP(made.topic, 1): None, TP(made.topic, 2): 100})
        await until(lambda: sum(map(len, made.offsets().values())) >= 160)
        await produced(fresh, 20, compression_type="lz4")
        await until(lambda: sum(map(len, made.offsets().values())) >= 220)
        assert made.offsets() == {0: list(range(40, 120)), 1: list(range(120)), 2: list(range(100, 120))}
        one = made.taken[TP(made.topic, 1)][-1]
        assert (one.key, one.value, list(one.headers)) == (b"k", b"19", [("h", b"19")])
        assert one.timestamp > 1_700_000_000_000
        assert not made.errors


async def test_what_was_read_for_an_earlier_assignment_is_not_taken(fresh: Settings) -> None:
    await ensure_topics(fresh)
    await produced(fresh, 300)
    async with reading(fresh) as made:
        starts = dict.fromkeys((TP(made.topic, p) for p in PARTITIONS), 0)
        for n in range(20):  # some of them while records are on their way
            made.taken.clear()
            made.reader.read(starts)
            await asyncio.sleep(n * 0.003)
        await until(lambda: sum(map(len, made.offsets().values())) >= 900)
        assert made.offsets() == {p: list(range(300)) for p in PARTITIONS}
        made.reader.read({})
        await produced(fresh, 1)
        await asyncio.sleep(0.3)
        assert made.offsets() == {p: list(range(300)) for p in PARTITIONS}


async def test_a_header_name_that_is_not_utf8_hides_the_headers_of_its_record_only(
    fresh: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ensure_topics(fresh)
    for module in ("producer", "message_accumulator"):
        monkeypatch.setattr(f"aiokafka.producer.{module}.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as producer:
        for names in (("a", "b"), ("a", NoUtf8("odd")), ("c", "d")):
            headers = [(name, b"v") for name in names]
            await producer.send_and_wait(fresh.topic("requests"), b"v", key=b"k", partition=0, headers=headers)
    async with reading(fresh) as made:
        tp = TP(made.topic, 0)
        made.reader.read({tp: None})
        await until(lambda: len(made.taken[tp]) == 3)
        first, odd, last = (record.headers for record in made.taken[tp])
        assert (list(first), odd, list(last)) == ([("a", b"v"), ("b", b"v")], UNREADABLE, [("c", b"v"), ("d", b"v")])


async def test_a_missing_topic_is_read_once_it_is_there(fresh: Settings) -> None:
    async with reading(fresh) as made:
        tp = TP(made.topic, 0)
        made.reader.read({tp: None})
        await asyncio.sleep(0.3)
        await ensure_topics(fresh)
        await produced(fresh, 5)
        await until(lambda: len(made.taken[tp]) == 5)


async def test_replies_are_stored_once_in_order_and_where_their_key_belongs(fresh: Settings) -> None:
    await ensure_topics(fresh)
    topic, native = fresh.topic("requests"), NativeProducer(fresh.kafka, clients.REPLIES)
    await native.start()
    keys = [b"user-%d" % (n % 7) for n in range(200)]
    sent = [await native.send(topic, b"%d" % n, key, [("name", b"value")]) for n, key in enumerate(keys)]
    await native.send(topic, b"there", b"user-0", partition=2)
    await asyncio.gather(*sent)
    last = await native.send(topic, b"last", b"user-1")
    await native.stop()
    assert last.done(), "what is queued is sent before the producer stops"

    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as producer:
        where = {key: (await producer.send_and_wait(topic, b"x", key=key)).partition for key in set(keys)}
    async with AIOKafkaConsumer(topic, bootstrap_servers=fresh.bootstrap_servers, auto_offset_reset="earliest") as consumer:
        found: list[tuple[int, bytes, bytes]] = []
        while len(found) < 202 + len(where):
            for tp, records in (await consumer.getmany(timeout_ms=1_000)).items():
                found += [(tp.partition, record.key, record.value) for record in records]
    found = [one for one in found if one[2] != b"x"]
    assert all(partition == where[key] for partition, key, value in found if value != b"there")
    assert (2, b"user-0", b"there") in found
    for key in set(keys):
        numbers = [int(value) for _, own, value in found if own == key and value.isdigit()]
        assert numbers == [n for n, own in enumerate(keys) if own == key]


async def test_a_topic_is_known_once_it_exists_and_until_a_record_to_it_fails(fresh: Settings) -> None:
    native, topic = (
        NativeProducer(fresh.kafka, {**clients.REPLIES, "topic.metadata.propagation.max.ms": 100}),
        fresh.topic("mine"),
    )
    admin = AIOKafkaAdminClient(bootstrap_servers=fresh.bootstrap_servers)
    await native.start()
    await admin.start()
    try:
        assert not await native.look_up(topic)
        assert not native.knows(topic)
        with pytest.raises(KafkaError):
            await (await native.send(topic, b"v"))
        await admin.create_topics([NewTopic(topic, 1, 1)])
        for _ in range(100):
            if await native.look_up(topic):
                break
            await asyncio.sleep(0.05)
        assert native.knows(topic)
        await (await native.send(topic, b"v"))
        await native.forget(topic)
        assert not native.knows(topic)
    finally:
        await native.stop()
        await admin.close()
    async with AIOKafkaConsumer(bootstrap_servers=fresh.bootstrap_servers) as consumer:
        assert list((await consumer.end_offsets([TopicPartition(topic, 0)])).values()) == [1]


async def test_a_record_that_is_too_large_fails_alone(fresh: Settings) -> None:
    await ensure_topics(fresh)
    topic, native = fresh.topic("requests"), NativeProducer(fresh.kafka, clients.REPLIES)
    await native.start()
    try:
        with pytest.raises(KafkaError):
            await (await native.send(topic, bytes(clients.REPLIES["message.max.bytes"] + 1), b"k"))
        await (await native.send(topic, b"v", b"k"))
    finally:
        await native.stop()
