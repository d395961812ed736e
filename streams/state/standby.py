"""Standby copies: rows of partitions that another worker owns, kept up to date from their changelogs.

When the owner leaves, the assignor gives its partitions to a standby, which replays only the last moments.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiokafka import TopicPartition
from rocksdict import Cache

from schemas.errors import StoreCorrupt
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.metadata import NO_ID, describe_topics, differ
from streams.kafka.topics import TOMBSTONES_MS
from streams.state.applied import APPLIED, unpack_applied
from streams.state.rocks import PartitionStore

__all__ = ["Reach", "Standby", "Times", "open_or_rebuild"]

log = logging.getLogger(__name__)

MAX_RECORDS = 5_000
RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Reach:
    """What the rows of a copy include."""

    applied: int
    "Source offset up to which the rows are complete."
    event_time_ms: int
    "Newest event time in the rows, epoch milliseconds; 0 if they have none."


@dataclass(frozen=True, slots=True)
class Times:
    """How the event time of a table's rows is read."""

    prefix: bytes
    "Prefix of the keys of rows that have an event time."
    of: Callable[[bytes], int]
    "Returns the event time of such a row, epoch milliseconds."


def open_or_rebuild(store: PartitionStore, name: str) -> None:
    """Open a store. One that is damaged, or so old that it may lack deletions, is emptied and refilled from its changelog."""
    try:
        store.open()
        if store.idle_s() > TOMBSTONES_MS / 2_000:
            raise StoreCorrupt("store_old", f"its rows are {store.idle_s() / 86_400:.1f} days old")
    except StoreCorrupt as exc:
        log.warning("rebuilding %s from its changelog: %s", name, exc)
        store.wipe()
        store.open()


class Standby:
    """Copies of table partitions. `follow` names the partitions; the next owner decides whether a copy can be used."""

    def __init__(
        self,
        settings: Settings,
        tables: Mapping[str, str],
        folder: Callable[[str, int], Path],
        cache: Cache,
        times: Mapping[str, Times],
    ) -> None:
        """`tables`: full name of the changelog topic per table. `folder`: path of a table's partition. `times`: how to read
        event times, for the tables that `reached` is wanted of."""
        self._times = times
        self._newest: dict[tuple[str, int], int] = {}
        "Newest event time in each copy's rows."
        self._settings = settings
        self._tables = tables
        self._folder = folder
        self._cache = cache
        self.stores: dict[tuple[str, int], PartitionStore] = {}
        "Copies by (table, partition number)."
        self.lag: dict[tuple[str, int], int] = {}
        "Changelog records (markers included) that each copy is behind, as of the last fetch."
        self.reached: dict[tuple[str, int], Reach] = {}
        """What each copy includes at least, as of the last moment at which it had reached the end of its changelog. Missing
        before the first such moment: until then, rows that the changelog's compaction moved may be missing."""
        self._noted: dict[tuple[str, int], int] = {}
        "Position of the copy's store at that moment."
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def numbers(self) -> frozenset[int]:
        """Partition numbers that are followed."""
        return frozenset(number for _, number in list(self.stores))  # called from the consumer's thread, too

    async def follow(self, numbers: frozenset[int]) -> None:
        """Follow these partition numbers of every table, and drop all others; on return the dropped ones are closed.

        A copy with a damaged block is rebuilt.
        """
        damaged = {key for key, store in self.stores.items() if store.damaged}
        wanted = {(table, number) for table in self._tables for number in numbers}
        followed = not self.stores or (self._task is not None and not self._task.done())
        if wanted == set(self.stores) and not damaged and followed:
            return
        await self._end()
        for key in [key for key in self.stores if key[1] not in numbers or key in damaged]:
            self.stores.pop(key).close()
            self._forget(key)
        for table in self._tables:
            for number in sorted(numbers):
                if (table, number) not in self.stores:
                    store = PartitionStore(self._folder(table, number), self._cache)
                    open_or_rebuild(store, f"the standby of {table}-{number}")
                    self.stores[table, number] = store
        if self.stores:
            self._stop.clear()
            self._task = asyncio.create_task(self._run(), name="standby")

    def _forget(self, key: tuple[str, int]) -> None:
        for known in (self.lag, self.reached, self._newest, self._noted):
            known.pop(key, None)

    def damaged(self) -> bool:
        """Whether a copy has a damaged block; `follow` rebuilds it."""
        return any(store.damaged for store in self.stores.values())

    async def stop(self) -> None:
        """Drop all copies."""
        await self._end()
        for store in self.stores.values():
            store.close()
        for key in list(self.stores):
            self._forget(key)
        self.stores.clear()

    async def _end(self) -> None:
        self._stop.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        """Follow until stopped. A failure makes the copies less fresh but never affects the worker."""
        while not self._stop.is_set():
            try:
                await self._follow()
            except Exception:
                log.exception("standby copies are not followed; trying again in %.0f s", RETRY_S)
                await asyncio.wait({asyncio.create_task(self._stop.wait())}, timeout=RETRY_S)

    async def _follow(self) -> None:
        consumer = connect.consumer(self._settings.kafka, connect.STANDBY)
        try:
            await consumer.start()
            of = {TopicPartition(self._tables[table], number): (table, number) for table, number in self.stores}
            consumer.assign(list(of))
            await self._seek(consumer, of)
            while not self._stop.is_set():
                fetched = await consumer.getmany(timeout_ms=100, max_records=MAX_RECORDS)
                for tp, records in fetched.items():
                    rows = {record.key: record.value for record in records}
                    await asyncio.to_thread(self._write, of[tp], rows, records[-1].offset + 1)
                for tp, key in of.items():
                    position, stable = await consumer.position(tp), consumer.last_stable_offset(tp)
                    self.lag[key] = max((consumer.highwater(tp) or 0) - position, 0)
                    if key[0] in self._times and stable is not None and position >= stable >= 0:
                        await self._note(key)
        finally:
            await consumer.stop()

    def _write(self, key: tuple[str, int], rows: Mapping[bytes, bytes | None], position: int) -> None:
        """Write rows to a copy, in a thread."""
        self.stores[key].write(rows, position)
        times = self._times.get(key[0])
        if times is not None and key in self._newest:
            found = (times.of(row) for name, row in rows.items() if row and name.startswith(times.prefix))
            self._newest[key] = max(self._newest[key], max(found, default=0))

    async def _note(self, key: tuple[str, int]) -> None:
        """Set what a copy includes, because it has reached the end of its changelog."""
        store, times = self.stores[key], self._times[key[0]]
        if self._noted.get(key) == store.position:
            return
        if key not in self._newest:
            self._newest[key] = await asyncio.to_thread(
                lambda: max((times.of(row) for _, row in store.scan(times.prefix)), default=0)
            )
        applied = store.get_many([APPLIED])[0]
        if applied is not None:
            self.reached[key] = Reach(unpack_applied(applied)[0], self._newest[key])
        self._noted[key] = store.position

    async def _seek(self, consumer: AIOKafkaConsumer, of: Mapping[TopicPartition, tuple[str, int]]) -> None:
        ends = await consumer.end_offsets(list(of))
        facts = await describe_topics(consumer._client, sorted({tp.topic for tp in of}))
        for tp, key in of.items():
            store, log_id = self.stores[key], facts[tp.topic].topic_id
            if store.position > ends[tp] or differ(store.log_id, log_id):
                log.warning("standby of %s-%d belongs to another changelog, or is ahead of its own: rebuilding", *key)
                self._forget(key)
                store.wipe()
                store.open()
            if log_id != NO_ID:
                store.log_id = log_id
            if store.position >= 0:
                consumer.seek(tp, store.position)
            else:
                await consumer.seek_to_beginning(tp)
