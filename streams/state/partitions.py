"""State of one partition: rows in memory until the flush, then changelog, outputs and offsets in one transaction, then disk.

Durability depends on this order. A flush sends changed rows, derived records and the source offset in one Kafka transaction.
Only after the commit are the rows written to RocksDB, together with the changelog offset that they include. So a crash at any
point leaves the disk at or behind the changelog, never ahead of it, and a restart replays the difference. The transactional id
belongs to the source partition: a worker that lost the partition without noticing is fenced by the epoch of its successor and
cannot overwrite anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation, KafkaError, ProducerClosed
from aiokafka.structs import OffsetAndMetadata

from schemas.errors import NotReady, StoreCorrupt
from schemas.parsing import shown
from schemas.settings import Settings
from streams.aside import aside
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.error_codes import Refused
from streams.kafka.metadata import NO_ID, describe_topics, differ
from streams.state.applied import APPLIED, pack_applied, unpack_applied
from streams.state.rocks import POSITION, PartitionStore
from streams.state.standby import open_or_rebuild

__all__ = ["APPLIED", "Flush", "Output", "PartitionState", "pack_applied", "unpack_applied"]

log = logging.getLogger(__name__)

MAX_BATCH_BYTES, MOST_BATCHES = 256 << 10, 8
"Bytes of a changelog batch, and number of batches built before they are sent."
YIELD_EVERY = 20
UNREACHABLE_MS = 45_000
"Milliseconds that a broker may be unreachable during a transaction; below the 60 s after which the transaction is aborted."
UNSETTLED_S = 90.0
"Seconds that a changelog transaction may stay open. Kafka aborts one after its timeout, 60 s for ours."
REFRESH_S = 6 * 3_600.0
"""Seconds without a transaction before an empty one is made, because a broker forgets a transactional id that is unused for
`transactional.id.expiration.ms` (a week by default)."""
REPUBLISHED_AT_ONCE = 2_000
"Rows per transaction when a changelog is rewritten."
MARKER_OFFSETS = 1
"Number of offsets that a transaction marker takes."
MAX_GAPS = 100
"Maximum number of offset gaps that are kept until they are checked."
CLOSE_S = 5.0
"Seconds that a producer may take to close. After a cut-off transaction it may wait for records that can no longer be sent."


@dataclass(slots=True, frozen=True)
class Output:
    """A record to be sent in the flush's transaction. `topic` is a full name."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()
    partition: int | None = None


@dataclass(slots=True)
class Flush:
    """The content of one flush: a consistent cut of the partition's state."""

    rows: dict[bytes, bytes | None] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    applied: int = -1
    "Source offset of the newest record that `rows` and `outputs` include."


def _mark_retrieved(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Mark a failure as retrieved, because after the first failed send of a transaction nothing awaits the other futures."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


class PartitionState:
    """Rows derived from one partition of one source topic.

    `take` is awaited at every flush and must return every change since its last call. It is called again only after the
    previous flush is durable. Code that changes rows holds `rows_lock` until the rows and `applied` agree; `take` is awaited
    under it too. After a failed flush the state is unusable, and `trouble` holds the reason. It must be closed and a new one
    opened, which reads the records again from the last committed offset. `timed` receives the name of a step and measures its
    time. `clock` is monotonic, in seconds.
    """

    def __init__(  # noqa: PLR0913 - what tables of users and of pairs differ in
        self,
        settings: Settings,
        store: PartitionStore,
        *,
        source: str,
        changelog: str,
        partition: int,
        group: str,
        take: Callable[[], Awaitable[Flush | None]],
        timed: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        clock: Callable[[], float] = time.monotonic,
        reports_missing: bool = True,
    ) -> None:
        """Create it. `reports_missing`: source records are kept until someone deletes them, so a gap is worth a report."""
        self._settings = settings
        self.reports_missing = reports_missing
        self._clock = clock
        self.store = store
        self.source = source
        self.changelog = changelog
        self.partition = partition
        self._group = group
        self._take = take
        self._timed = timed
        self._producer: AIOKafkaProducer | None = None
        self._lock = asyncio.Lock()
        self.rows_lock = asyncio.Lock()
        self._flush_failed = self._spoiled = False
        self._source_id = self._log_id = NO_ID
        self._republished_to: bytes | None = None
        "Id of a recreated changelog, to which all rows must be written; None otherwise."
        self._orphaned: set[bytes] = set()
        "Keys in a recreated changelog whose rows are inconsistent with the rows that it lacks."
        self._flushed_s = clock()
        self.trouble: BaseException | None = None
        "The reason why this state can no longer be used; None while it can."
        self.probe_reason = ""
        """Failure of the preceding state, until a transaction of this one succeeds. The next flush makes a transaction, an
        empty one if necessary."""
        self.missing: tuple[int, int] | None = None
        "Source offsets, first and end, that were deleted before they were applied."
        self.gaps: list[tuple[int, int]] = []
        "Offset gaps as (expected, received). The cause is deleted records, or only transaction markers."
        self.from_generation = 0
        """First group generation whose chunks may be applied. An earlier chunk may start after records that were dropped while
        the partition was being opened."""
        self.applied = -1
        "Newest source offset in memory. The owner sets it while it applies chunks."
        self.durable = -1
        "Newest source offset that is committed."
        self.held = -1
        """Source offset that the rows on disk include, also before they are `ready` and after they failed; -1 while there are
        no rows, or it is not known."""
        self.ready = asyncio.Event()
        self.restoring: tuple[int, int] | None = None
        """Offsets of the changelog that were read, and that are to be read, while rows are restored; None before their number
        is known."""
        self.restored_records = 0
        self.restore_seconds = 0.0
        self.flush_seconds = 0.0

    async def open(self, committed: int = -1) -> None:
        """Open the rows, fence the previous owner, and replay the changelog beyond the rows.

        A folder that RocksDB cannot read, or whose position lies beyond the changelog, is wiped and rebuilt. A recreated
        changelog lacks rows. If the local rows include everything that the group committed, they are kept and written to it.
        Otherwise the rows in the changelog are deleted, and the source is read again.

        `committed`: the group's offset of the source (the next to read), -1 when there is none.

        Raises:
            StoreCorrupt: the source must be read again; its committed offset was moved back.
        """
        # first, so that requests can be answered from these rows until they are complete
        open_or_rebuild(self.store, f"{self.changelog}-{self.partition}")
        local = self.held = self._stored_applied()[0]
        self._producer = connect.producer(
            self._settings.kafka,
            connect.TABLE_WRITES,
            transactional_id=f"{self._group}-{self.changelog}-{self.partition}",
            request_timeout_ms=UNREACHABLE_MS,
        )
        await self._producer.start()
        begin, end = await self._restore(complete=local >= 0 and local + 1 == committed)
        applied, source_id, log_id = self._stored_applied()
        if self._republished_to is None and differ(log_id, self._log_id):
            # the writer had opened another changelog: this one lacks the rows that have not changed since
            self._orphaned |= {key for key, _ in self.store.scan(b"") if key != POSITION}
            self._empty()
            self.store.log_id = self._log_id
            applied, source_id = -1, NO_ID
        if applied >= end and source_id == self._source_id != NO_ID:
            log.warning("%s-%d ends at %d, %d was applied: its end was lost", self.source, self.partition, end, applied)
            applied = end - 1
        elif applied >= end or differ(source_id, self._source_id):
            log.warning("%s-%d ends at %d, %d was applied: it was recreated", self.source, self.partition, end, applied)
            applied = -1
        if begin > applied + 1:
            if self.reports_missing and begin > applied + 1 + MARKER_OFFSETS:
                self.report_deleted(applied + 1, begin)
            applied = begin - 1
        self.applied = self.durable = self.held = applied
        self._flushed_s = self._clock()
        if self._orphaned:
            await self._commit(Flush(rows=dict.fromkeys(self._orphaned - {APPLIED}), applied=applied))
            raise StoreCorrupt(
                "changelog_replaced",
                f"{self.changelog}-{self.partition} was recreated and lacks rows: {self.source} is read again",
            )
        if self._republished_to is not None:
            await self._republish(self._republished_to)

    def _stored_applied(self) -> tuple[int, bytes, bytes]:
        """Source offset that the rows on disk include (-1 for none), id of its topic and id of its changelog."""
        stored = self.store.get_many([APPLIED])[0]
        return unpack_applied(stored) if stored else (-1, NO_ID, NO_ID)

    async def _republish(self, log_id: bytes) -> None:
        """Write all rows to a recreated changelog. If this is interrupted, the next `open` does it again."""
        log.warning("%s-%d was recreated: its rows are written again", self.changelog, self.partition)
        rows = (row for row in self.store.scan(b"") if row[0] not in {POSITION, APPLIED})
        while batch := await asyncio.to_thread(lambda: dict(islice(rows, REPUBLISHED_AT_ONCE))):
            await self._commit(Flush(rows=dict(batch), applied=self.applied))
        self.store.log_id = log_id
        await asyncio.to_thread(self.store.write, {}, self.store.position)

    async def rebuild(self, reason: StoreCorrupt) -> None:
        """Empty the folder and replay the changelog because rows are damaged. Only valid between `open` and `ready`."""
        log.warning("rebuilding %s-%d from its changelog: %s", self.changelog, self.partition, reason.message)
        self._empty()
        await self._restore(complete=False)

    def _empty(self) -> None:
        """Delete the rows on disk."""
        self.held = -1
        self.store.wipe()
        self.store.open()

    def report_deleted(self, first: int, end: int) -> None:
        """Report source records that were deleted before they were applied: offsets `first` to `end`, exclusive."""
        log.error(
            "%s-%d: records %d to %d were deleted before they were applied: their changes are missing from the tables",
            *(self.source, self.partition, first, end - 1),
        )
        self.missing = (min(first, self.missing[0]), end) if self.missing else (first, end)

    def check_gaps(self, begin: int) -> None:
        """Check the offset gaps for deleted records, given that the source begins at `begin`. Transaction markers take offsets
        too.
        """
        gaps, self.gaps = self.gaps, []
        deleted = [(first, min(begin, came)) for first, came in gaps]
        deleted.append((self.applied + 1, begin))
        for first, end in deleted:
            if self.reports_missing and end > first + MARKER_OFFSETS and (self.missing is None or end > self.missing[1]):
                self.report_deleted(first, end)

    def note_gap(self, offset: int) -> None:
        """Record a gap before `offset`, whose records are about to be applied. Called before `applied` is set."""
        if self.applied >= 0 and offset > self.applied + 1 + MARKER_OFFSETS and len(self.gaps) < MAX_GAPS:
            self.gaps.append((self.applied + 1, offset))

    async def move_back(self) -> None:
        """Move the group's committed offset back to `applied`, so that the source is read again: rows of later records are
        lost.
        """
        assert self._producer is not None
        async with self._producer.transaction():
            await self._producer.send_offsets_to_transaction(
                {TopicPartition(self.source, self.partition): OffsetAndMetadata(self.applied + 1, "")}, self._group
            )

    async def _restore(self, *, complete: bool) -> tuple[int, int]:
        """Bring the rows up to the changelog's end; returns the first and the end offset of the source partition.

        `complete`: the rows on disk include everything that the group committed.
        """
        started = time.perf_counter()
        tp = TopicPartition(self.changelog, self.partition)
        source = TopicPartition(self.source, self.partition)
        self.restoring = None
        consumer = connect.consumer(self._settings.kafka, connect.RESTORE)
        try:
            await consumer.start()
            consumer.assign([tp])
            end = await self._settled_end(consumer, tp)
            source_end = int((await consumer.end_offsets([source]))[source])
            source_begin = int((await consumer.beginning_offsets([source]))[source])
            facts = await describe_topics(consumer._client, [self.changelog, self.source])
            self._source_id, log_id = facts[self.source].topic_id, facts[self.changelog].topic_id
            self._log_id = log_id
            anew = differ(self.store.log_id, log_id)
            kept = anew and complete
            self._republished_to = log_id if kept else None
            if kept:
                self.store.position = -1
            elif self.store.position > end or anew:
                log.warning("%s-%d: rows at %d, changelog ends at %d: rebuilding", *tp, self.store.position, end)
                self._empty()
            if not kept and log_id != NO_ID:
                self.store.log_id = log_id
            self._orphaned = set[bytes]()
            if self.store.position >= 0:
                consumer.seek(tp, self.store.position)
            else:
                await consumer.seek_to_beginning(tp)
            first = await consumer.position(tp)
            while (position := await consumer.position(tp)) < end:
                self.restoring = position - first, end - first
                fetched = await consumer.getmany(tp, timeout_ms=200, max_records=5_000)
                records = fetched.get(tp, ())
                rows = {r.key: r.value for r in records}
                reached = records[-1].offset + 1 if records else await consumer.position(tp)
                if anew and not kept:
                    self._orphaned |= rows.keys()
                    rows = {}
                if rows or reached > position:
                    await asyncio.to_thread(self.store.write, rows, reached)
                self.restored_records += len(rows)
            if self.store.position < 0:
                self.store.write({}, 0)
        finally:
            await consumer.stop()
        self.restore_seconds = time.perf_counter() - started
        return source_begin, source_end

    async def _settled_end(self, consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
        """The end of the changelog's committed rows, once no transaction is open. Ours ended before the producer started.

        Raises:
            NotReady: a transaction stays open, so its rows are neither committed nor aborted. Reading on would count its events
                twice if it is committed later.
        """
        newest = connect.consumer(self._settings.kafka, connect.LOOK)
        try:
            await newest.start()
            open_at, until = -1, 0.0
            while True:
                last = (await newest.end_offsets([tp]))[tp]
                end = int((await consumer.end_offsets([tp]))[tp])
                if end >= last:
                    return end
                if end != open_at:
                    open_at, until = end, time.monotonic() + UNSETTLED_S
                elif time.monotonic() > until:
                    break
                await asyncio.sleep(0.1)
        finally:
            await newest.stop()
        if self.store.position > end:
            self.held = -1
            self.store.wipe()  # includes rows that may be aborted
        raise NotReady(
            "transaction_unfinished",
            f"{tp.topic}-{tp.partition}: a transaction is open from offset {end} on and does not end. Unless its producer "
            "lives, the broker lost its end. `kafka-transactions.sh find-hanging --broker-id N --max-transaction-timeout 1` "
            "names it in every partition, `kafka-transactions.sh abort "
            f"--topic {tp.topic} --partition {tp.partition} --start-offset {end}` ends it here, and so on for the others; "
            "the worker then continues by itself",
        )

    def opened(self) -> None:
        """Allow reading and changing rows: `open` has returned, and the owner has loaded its own data."""
        self.ready.set()

    def fail(self, trouble: BaseException) -> None:
        """Forbid reading and changing rows. The first `trouble` is kept."""
        self.ready.clear()
        self.trouble = self.trouble or trouble

    @property
    def spoiled(self) -> bool:
        """Whether rows are half changed or unreadable."""
        return self._spoiled

    def require_probe(self, reason: str) -> None:
        """Make the next flush run a transaction, an empty one if necessary, because the preceding state failed."""
        self.probe_reason = reason

    def take_from(self, generation: int) -> None:
        """Set the first group generation whose chunks may be applied; 0 for all."""
        self.from_generation = generation

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """Hold `rows_lock` while rows are changed. An error inside spoils the rows, because they may be half changed."""
        async with self.rows_lock:
            try:
                yield
            except BaseException as error:
                self.spoil(error)
                raise

    def spoil(self, trouble: BaseException | None = None) -> None:
        """Mark rows as half changed or unreadable. Nothing becomes durable from now on, whatever a running flush does."""
        self._spoiled = True
        self.trouble = (
            self.trouble or trouble or StoreCorrupt("spoiled", f"{self.changelog}-{self.partition}: rows are unusable")
        )

    async def flush(self) -> bool:
        """Make everything applied so far durable; returns whether there was anything to do.

        Raises:
            aiokafka.errors.KafkaError: the transaction failed or this owner was fenced. Nothing of this flush is visible to any
                reader, unless only the reply to the commit was lost. The state is unusable; `trouble` holds the reason.
            StoreCorrupt: an earlier flush failed, or rows were spoiled.
            NotReady: the rows cannot be written to the disk.
        """
        async with self._lock:
            async with self.rows_lock:
                if self._flush_failed or self._spoiled:
                    raise StoreCorrupt("flush_failed", f"{self.changelog}-{self.partition}: an earlier flush or chunk failed")
                # `take` hands changes over once: after a failure a later flush would commit past them
                self._flush_failed = True
                try:
                    taken = await self._take()
                except BaseException as error:
                    self.trouble = error
                    raise
            old = self.applied >= 0 and self._clock() - self._flushed_s > REFRESH_S
            if taken is None and (old or self.probe_reason):
                taken = Flush(applied=self.applied)
            if taken is None:
                self._flush_failed = False
                return False
            producer = self._producer
            try:
                await self._commit(taken)
            except BaseException as error:
                self.trouble = self._cause(producer, error)
                if self.trouble is error:
                    raise
                raise self.trouble from self.trouble.__cause__
            self._flush_failed = False
            return True

    @staticmethod
    def _cause(producer: Any, error: BaseException) -> BaseException:
        """The cause of a failed transaction, instead of the follow-up error that the producer can no longer be used."""
        task = producer._sender.sender_task
        waiter = producer._txn_manager._transaction_waiter
        found: BaseException | None = None
        if waiter is not None and waiter.done() and not waiter.cancelled():
            found = waiter.exception()
        if task is not None and task.done() and not task.cancelled():
            found = task.exception() or found
        if isinstance(error, IllegalOperation | AssertionError):  # the producer's state ended the transaction
            return found or KafkaError(f"the transaction was ended: {error}")
        return error if found is None or isinstance(error, Refused) else found

    async def _commit(self, taken: Flush) -> None:
        """Commit changelog, outputs and offset in one transaction; then write the rows to disk."""
        started = time.perf_counter()
        taken.rows[APPLIED] = pack_applied(taken.applied, self._source_id, self._log_id)
        with self._timed("transaction (waiting included)"):
            position = await self._transaction(taken)
        with self._timed("rocksdb (in a thread)"):
            await asyncio.to_thread(self.store.write, taken.rows, position)
        self.durable, self.held, self.probe_reason = taken.applied, taken.applied, ""
        self.flush_seconds = time.perf_counter() - started
        self._flushed_s = self._clock()

    async def _transaction(self, taken: Flush) -> int:
        producer = self._producer
        assert producer is not None
        async with producer.transaction():
            try:
                ends = await self._send_all(producer, taken)
            except (IllegalOperation, AssertionError) as error:
                cause = self._cause(producer, error)  # available only until the transaction is aborted
                raise cause from cause.__cause__
        # the commit marker takes one more offset than the last row
        return max(ends)

    async def _send_all(self, producer: AIOKafkaProducer, taken: Flush) -> list[int]:
        """Send rows, outputs and the offset, and wait for all; returns the changelog offset after each batch of rows."""
        rows = await self._send_rows(producer, taken.rows)
        sent: list[tuple[asyncio.Future[Any], str]] = []
        for n, output in enumerate(taken.outputs):
            if n % YIELD_EVERY == 0:
                await asyncio.sleep(0)  # so that requests do not wait for a whole flush
            future = await producer.send(
                output.topic,
                value=output.value,
                key=output.key,
                partition=output.partition,
                headers=list(output.headers),
            )
            sent.append((_mark_retrieved(future), output.topic))
        await producer.send_offsets_to_transaction(
            {TopicPartition(self.source, self.partition): OffsetAndMetadata(taken.applied + 1, "")}, self._group
        )
        for future, topic in [*((future, self.changelog) for future, _ in rows), *sent]:
            try:
                await future
            except KafkaError as exc:
                raise Refused(topic, exc) from exc
        return [int(future.result().offset) + count for future, count in rows]

    async def _send_rows(
        self, producer: AIOKafkaProducer, rows: Mapping[bytes, bytes | None]
    ) -> list[tuple[asyncio.Future[Any], int]]:
        """Send rows in batches; returns, per batch, its acknowledgement and its number of records."""
        sent, waiting = [], iter(rows.items())
        while batches := await aside(len(rows), self._batches, producer, waiting):
            for batch in batches:
                future = await producer.send_batch(batch, self.changelog, partition=self.partition)
                sent.append((_mark_retrieved(future), batch.record_count()))
        return sent

    def _batches(self, producer: AIOKafkaProducer, rows: Iterator[tuple[bytes, bytes | None]]) -> list[Any]:
        """The next batches of rows, at most MOST_BATCHES. A row that does not fit starts the last of them."""
        batches: list[Any] = []
        size = MAX_BATCH_BYTES
        for key, value in rows:
            length = len(key) + len(value or b"")
            fits = size + length <= MAX_BATCH_BYTES and batches[-1].append(key=key, value=value, timestamp=None) is not None
            if not fits:
                batches.append(producer.create_batch())
                size = 0
                if batches[-1].append(key=key, value=value, timestamp=None) is None:
                    raise StoreCorrupt("row_too_large", f"row {shown(key)} of {length} bytes does not fit into a batch")
            size += length
            if len(batches) == MOST_BATCHES and size >= MAX_BATCH_BYTES // 2:
                break
        for batch in batches:
            batch.close()
        return batches

    async def close(self) -> None:
        """Release the folder and the producer without a flush. A running flush fails."""
        self.ready.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            stopping = asyncio.create_task(producer.stop())
            _, late = await asyncio.wait({stopping}, timeout=CLOSE_S)
            if late:
                log.warning("the producer of %s-%d does not close; it is abandoned", self.changelog, self.partition)
                stopping.cancel()
                await asyncio.gather(producer.client.close(), return_exceptions=True)
            _release(producer)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._lock.acquire()
                self._lock.release()
        self.store.close()


def _release(producer: Any) -> None:
    """Fail the futures that wait for a transaction of a closed producer, because nothing else would resolve them."""
    manager = producer._txn_manager
    if manager._transaction_waiter is not None and not manager._transaction_waiter.done():
        with suppress(AssertionError):
            manager.fatal_error(ProducerClosed())
        _mark_retrieved(manager._transaction_waiter)
