"""Item vectors as items arrive: follow the catalogue, and publish the encoders' vectors of new and changed items.

The encoders are a parameter, because they need torch, which nothing here imports. A batch's vectors and its offset are one
transaction, whose id belongs to the partition. So a process that is killed publishes nothing twice and omits nothing, and one
that slept through a rebalance cannot overwrite its successor's vectors.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from models.items.vectors import ItemVector, fingerprint, vectors_from, vectors_to
from schemas.codec import Registry, decode, encode, look_up
from schemas.entries import entry_of
from schemas.errors import BadEvent, BadInput, NotReady, TransientError
from schemas.records import Item
from schemas.settings import Settings
from streams.kafka import connect

__all__ = ["ItemEncoders", "ItemEncoding"]

log = logging.getLogger(__name__)

BATCH = 64
"Catalogue entries per transaction: few, so that the first entry of many is published early."
POLL_MS = 200
RETRY_S = 5.0
"Seconds until entries are read again whose schema the registry could not return."


class ItemEncoders(Protocol):
    """Encoders that turn items into vectors. Called in a thread; one call at a time."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Outcomes of content downloads, counted by reason."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the encoders. Vectors under other names come from other encoders. Called in a thread."""

    def fingerprints(self, items: Sequence[Item]) -> list[int]:
        """For each item, `models.items.vectors.fingerprint` of the inputs of its vectors."""

    def encode(self, items: Sequence[Item]) -> list[tuple[ItemVector, ...]]:
        """For each item, its vector in every modality."""


class ItemEncoding(ConsumerRebalanceListener):  # type: ignore[misc]
    """Follows the items topic in a consumer group of its own: one of several processes works, the others stand by."""

    def __init__(self, settings: Settings, encoders: ItemEncoders, registry: Registry | None = None) -> None:
        self._settings = settings
        self._encoders = encoders
        self._registry = registry
        self._group = f"{settings.app_id}-encoder"
        self._producers: dict[TopicPartition, AIOKafkaProducer] = {}
        self._published: dict[str, int] = {}
        "Fingerprint of each item's published vectors."
        self._names: frozenset[str] = frozenset()
        self._missed: dict[TopicPartition, int] = {}
        """Per partition, the first entry whose schema the registry could not return. Later entries are processed but not
        committed."""
        self._again = 0.0
        "Monotonic time at which to read from there again."
        self._failure: BaseException | None = None
        self._publishing = asyncio.Lock()
        "Held during a transaction, so that its producer is not stopped."
        self._stopping = asyncio.Event()
        self._consumer: Any = None
        self.counters: Counter[str] = Counter()
        "`items`, `encoded`, `unchanged`, `deleted`, `bad`, `waits`, `fenced`."

    def stop(self) -> None:
        """Ask `run` to finish."""
        self._stopping.set()

    async def run(self, *, once: bool = False) -> None:
        """Encode until `stop`; with `once`, until all entries present at the start are done.

        Raises:
            aiokafka.errors.KafkaError: the broker is gone. Nothing of the current batch is visible; run again.
            NotReady: with `once`, the schema registry gives no answer for an entry; all others are done.
        """
        # in a thread, because creating encoders takes seconds, in which this consumer must send heartbeats
        self._names = await asyncio.to_thread(lambda: frozenset(self._encoders.names))
        self._consumer = connect.consumer(self._settings.kafka, connect.ENCODER, group_id=self._group)
        await self._consumer.start()
        try:
            self._consumer.subscribe([self._settings.topic("items")], listener=self)
            while not self._stopping.is_set():
                batches = await self._consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH)
                if self._failure is not None:
                    raise self._failure
                for partition, records in batches.items():
                    await look_up(self._registry, [r.value for r in records], [r.headers for r in records])
                    await self._take(partition, records)
                if not once:  # a single round ends with the missed entries
                    self._read_missed()
                if once and not batches and await self._done():
                    return
        finally:
            await self._consumer.stop()
            await self._let_go()

    def _read_missed(self) -> None:
        """Seek back to the missed entries once their wait is over."""
        if self._missed and time.monotonic() >= self._again:
            for partition, offset in self._missed.items():
                self._consumer.seek(partition, offset)
            self._missed.clear()

    async def _done(self) -> bool:
        assigned = [partition for partition in self._consumer.assignment() if partition in self._producers]
        ends = await self._consumer.end_offsets(assigned)
        done = bool(assigned) and all([await self._consumer.position(tp) >= ends[tp] for tp in assigned])
        if done and self._missed and self._registry is not None:
            raise NotReady("registry_unavailable", f"entries are left out: {self._registry.trouble()}; run it again")
        return done

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:  # noqa: ARG002
        """Release the partitions: the current batch is dropped, and the next owner reads it again."""
        await self._let_go()

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Fence the former owner, read the published vectors, and continue after the committed offset.

        Records that arrive before this is done find no producer and are dropped. The seek makes them be read again.
        """
        try:
            producers = {partition: await self._producer(partition) for partition in assigned}
            committed = {partition: await self._consumer.committed(partition) for partition in assigned}
            others = await self._read_published() if assigned else False
            for partition in assigned:
                # vectors of other encoders are replaced: then the whole catalogue is checked again
                self._consumer.seek(partition, 0 if others else committed[partition] or 0)
            self._producers.update(producers)
        except Exception as exc:
            self._failure = exc  # aiokafka would only log it
            raise

    async def _producer(self, partition: TopicPartition) -> AIOKafkaProducer:
        producer = connect.producer(
            self._settings.kafka,
            connect.VECTOR_WRITES,
            transactional_id=f"{self._group}-{partition.topic}-{partition.partition}",
        )
        await producer.start()
        return producer

    async def _let_go(self) -> None:
        self._missed.clear()
        async with self._publishing:
            while self._producers:
                await self._producers.popitem()[1].stop()

    async def _read_published(self) -> bool:
        """Read the published vectors; returns whether some of them come from other encoders."""
        consumer = connect.consumer(self._settings.kafka, connect.PUBLISHED)
        await consumer.start()
        found: dict[str, int] = {}
        others = set[str]()
        try:
            partition = TopicPartition(self._settings.topic("item-vectors"), 0)
            consumer.assign([partition])
            await consumer.seek_to_beginning(partition)
            end = (await consumer.end_offsets([partition]))[partition]
            while await consumer.position(partition) < end:
                for record in (await consumer.getmany(timeout_ms=200)).get(partition, ()):
                    item_id = (record.key or b"").decode(errors="replace")
                    found.pop(item_id, None)
                    others.discard(item_id)
                    if record.value:
                        try:
                            _, vectors = vectors_from(decode("item_vectors", record.value)[0])
                        except BadEvent:
                            continue
                        found[item_id] = fingerprint((v.modality, v.encoder, v.content_sha256) for v in vectors)
                        if not self._names.issuperset(v.encoder for v in vectors):
                            others.add(item_id)
        finally:
            await consumer.stop()
        self._published = found
        return bool(others)

    def _newest(self, records: Sequence[Any]) -> dict[str, Item | None]:
        """The newest state of each item among these records; None for a deleted item."""
        newest: dict[str, Item | None] = {}
        for record in records:
            self.counters["items"] += 1
            try:
                entry = entry_of(record.value, record.key, record.headers, self._registry)
                newest[entry if isinstance(entry, str) else entry.item_id] = None if isinstance(entry, str) else entry
            except TransientError as exc:
                self._miss(record, exc)
            except BadInput as exc:
                # workers skip and count such a record too
                self.counters["bad"] += 1
                log.info("not encoded: %s-%d@%d: %s", record.topic, record.partition, record.offset, exc)
        return newest

    def _miss(self, record: Any, exc: TransientError) -> None:
        self.counters["waits"] += 1
        partition = TopicPartition(record.topic, record.partition)
        if partition not in self._missed:
            log.warning("not encoded until its schema is known: %s-%d@%d: %s", *partition, record.offset, exc)
            self._missed[partition] = record.offset
            self._again = time.monotonic() + RETRY_S

    async def _take(self, partition: TopicPartition, records: Sequence[Any]) -> None:
        if partition not in self._producers:
            return
        newest = self._newest(records)
        items = [item for item in newest.values() if item is not None]
        made = await asyncio.to_thread(self._encoders.fingerprints, items)
        new = {item.item_id: mark for item, mark in zip(items, made, strict=True) if self._published.get(item.item_id) != mark}
        todo = [item for item in items if item.item_id in new]
        vectors = await asyncio.to_thread(self._encoders.encode, todo) if todo else []
        gone = [item_id for item_id, item in newest.items() if item is None and item_id in self._published]
        values: list[tuple[str, bytes | None]] = [(item_id, None) for item_id in gone]
        for item, mine in zip(todo, vectors, strict=True):
            values.append((item.item_id, encode("item_vectors", vectors_to(item.item_id, mine))))
        if not await self._publish(partition, self._missed.get(partition, records[-1].offset + 1), values):
            return
        self._published.update(new)
        for item_id in gone:
            self._published.pop(item_id, None)
        self.counters["encoded"] += len(todo)
        self.counters["unchanged"] += len(items) - len(todo)
        self.counters["deleted"] += len(gone)

    async def _publish(self, partition: TopicPartition, offset: int, values: Sequence[tuple[str, bytes | None]]) -> bool:
        """Publish values and offset in one transaction; false when another process owns the partition and reads the batch
        again.
        """
        topic = self._settings.topic("item-vectors")
        async with self._publishing:
            producer = self._producers.get(partition)
            if producer is None:
                return False
            try:
                async with producer.transaction():
                    sent = [await producer.send(topic, value, key=item_id.encode(), partition=0) for item_id, value in values]
                    await producer.send_offsets_to_transaction({partition: OffsetAndMetadata(offset, "")}, self._group)
                    await asyncio.gather(*sent)
            except ProducerFenced:
                self.counters["fenced"] += 1
                log.warning("another process has taken over %s-%d", partition.topic, partition.partition)
                return False
        return True
