"""Copying the source topics to new topics with another number of partitions.

The tables of a running instance keep their number of partitions. With more, a user's events would lie in two partitions. So the
events are produced again to topics with another prefix, each to the partition of its key. Workers that are started on those
topics build their tables from them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from schemas.errors import ConfigError
from schemas.kernels import partition_of
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.metadata import describe_topics
from streams.kafka.topics import ensure_topics, partitions_of

__all__ = ["COPIED", "copy_topics"]

COPIED = ("items", "item-vectors", "models", "rules", "interactions", "impressions")
"Copied topics, in this order: items must be on their topic before their events. Everything else is derived from these."
READ_AHEAD = 1_000
UNACKNOWLEDGED = 5_000
"Records that may be unacknowledged at once."

Progress = Callable[[str, int, int], None]


async def copy_topics(old: Settings, new: Settings, progress: Progress = lambda *_: None) -> dict[str, int]:
    """Copy the topics of `old` to those of `new`, which are created; returns the number of records per short name.

    Key, value, headers and timestamp of a record are kept. Records of one key keep their order. Where they come from several
    partitions, these are merged by timestamp. `progress` is called with a short name, the records copied, and their total.

    Raises:
        ConfigError: both have the same prefix, or a topic of `new` already holds records.
        KafkaError: the broker does not answer, or refuses. Copied records remain: delete those topics and begin again.
    """
    if old.topic_prefix == new.topic_prefix:
        raise ConfigError("same_prefix", "the copies need another prefix than RIFFLE_TOPIC_PREFIX", "topic_prefix")
    await ensure_topics(new)
    consumer = connect.consumer(old.kafka, connect.COMMITTED)
    producer = connect.producer(new.kafka, connect.COPIES)
    try:
        await consumer.start()
        await producer.start()
        await _require_empty(consumer, new)
        return {name: await _copy(consumer, producer, old, new, name, progress) for name in COPIED}
    finally:
        await consumer.stop()
        await producer.stop()


async def _require_empty(consumer: AIOKafkaConsumer, new: Settings) -> None:
    for name in COPIED:
        partitions = [TopicPartition(new.topic(name), number) for number in range(partitions_of(name, new))]
        if any((await consumer.end_offsets(partitions)).values()):
            message = f"topic {new.topic(name)} holds records already: choose another prefix, or delete it first"
            raise ConfigError("topic_not_empty", message, "topic_prefix")


async def _copy(
    consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, old: Settings, new: Settings, name: str, progress: Progress
) -> int:
    facts = (await describe_topics(consumer._client, [old.topic(name)]))[old.topic(name)]
    partitions = [TopicPartition(old.topic(name), number) for number in range(facts.partitions)]
    if not partitions:
        return 0
    begins, ends = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    total, done = sum(ends[tp] - begins[tp] for tp in partitions), 0
    waiting: deque[asyncio.Future[Any]] = deque()
    wanted = partitions_of(name, new)
    async for record in _merged(consumer, partitions, ends):
        number = 0 if record.key is None else partition_of(record.key, wanted)
        waiting.append(
            await producer.send(
                new.topic(name),
                record.value,
                record.key,
                partition=number,
                timestamp_ms=record.timestamp,
                headers=list(record.headers),
            )
        )
        done += 1
        if len(waiting) >= UNACKNOWLEDGED:
            await waiting.popleft()
        if done % READ_AHEAD == 0:
            progress(name, done, total)
    await asyncio.gather(*waiting)
    progress(name, done, total)
    return done


async def _merged(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], ends: dict[TopicPartition, int]
) -> AsyncIterator[Any]:
    """Records of all partitions up to their ends, oldest first; records of one partition keep their order.

    At most `READ_AHEAD` records of each partition are held.
    """
    consumer.assign(partitions)
    await consumer.seek_to_beginning(*partitions)
    held: dict[TopicPartition, deque[Any]] = {tp: deque() for tp in partitions}
    left = set(partitions)
    while True:
        for tp in [tp for tp in left if not held[tp]]:
            while not held[tp] and await consumer.position(tp) < ends[tp]:
                fetched = await consumer.getmany(tp, timeout_ms=1_000, max_records=READ_AHEAD)
                held[tp].extend(record for record in fetched.get(tp, ()) if record.offset < ends[tp])
            if not held[tp]:
                left.discard(tp)
        if not left:
            return
        first = min(left, key=lambda tp: (held[tp][0].timestamp, tp.partition))
        yield held[first].popleft()
