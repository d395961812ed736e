"""The archive agent: a consumer group of its own that writes files before it commits offsets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from models.archive.files import NAMED, SCHEMAS, ArchiveFile, next_offsets, parquet
from models.archive.target import Target, open_target
from schemas.codec import Framing, Registry, decode, encode, look_up
from schemas.columns import Placed, check_place, event_of
from schemas.entries import entry_of
from schemas.errors import BadEvent, BadInput, ConfigError, TransientError
from schemas.kernels import partition_of
from schemas.records import Item
from schemas.settings import Settings
from schemas.validation import check_time
from streams.kafka import connect
from streams.kafka.dead_letters import letter_of
from streams.kafka.error_codes import advice_of

__all__ = ["Archiver"]

log = logging.getLogger(__name__)

POLL_MS = 500
LETTER_BYTES = 4 << 20
"Bytes of dead letters in a partition at which they are sent and its file is written at once."
STALLED_S = 60.0
"Seconds without an iteration of `run` after which the archiver counts as stalled."
WAIT_S = 5.0
"Seconds before a record is read again, after the registry could not return its schema."


@dataclass(slots=True)
class _Held:
    """Consumed records of one partition that are in no file yet, offsets first to last."""

    first: int
    first_timestamp_ms: int
    since: float
    "Monotonic time at which the first was consumed."
    last: int = -1
    rows: list[dict[str, Any]] = field(default_factory=list)
    letters: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    "Keys and values of dead letters."
    letter_bytes: int = 0

    def add_letter(self, key: bytes | None, value: bytes) -> None:
        """Keep a dead letter until it is sent."""
        self.letters.append((key, value))
        self.letter_bytes += len(value)


class Archiver(ConsumerRebalanceListener):  # type: ignore[misc]
    """Writes interactions, impressions and catalogue entries to the archive. Erasures of users and deletions of items are rows
    there, too.

    A file is durable before its offsets are committed, and a start continues after the highest offset found in files. So a
    crash at any point repeats no row and loses none. When a write fails, `run` raises, and the held records are read again.

    Every worker reads the whole catalogue, but each catalogue record is read by exactly one archiver. So bad catalogue records
    become dead letters here, before the file that covers them is written. They are sent at least once: a crash or a failed
    write between the two repeats them, as does an archive that starts over. While a registry does not answer, only the
    partition that needs it waits.
    """

    def __init__(self, settings: Settings, registry: Registry | None = None, target: Target | None = None) -> None:
        self._settings = settings
        self._registry = registry
        self._target = target or open_target(settings.archive_target)
        self._topics = {settings.topic(name): name for name in SCHEMAS}
        self._held: dict[TopicPartition, _Held] = {}
        self._failure: BaseException | None = None
        "Error of a rebalance: aiokafka only logs it, `run` raises it."
        self._starts: dict[TopicPartition, int] | None = None
        "Offsets to continue at after an assignment; None when there are none."
        self._placed = False
        "Whether every assigned partition is positioned at the end of its archive."
        self._waiting: dict[TopicPartition, float] = {}
        "Paused partitions, with the time at which each resumes."
        self._writing = asyncio.Lock()
        "Held while files are written: a rebalance waits, so that the next owner finds them."
        self._stopping = asyncio.Event()
        self._consumer: Any = None
        self._producer: Any = None
        self.last_loop_s = time.monotonic()
        "Monotonic time of the last iteration of `run`."
        self.counters: Counter[str] = Counter()
        "`records`, `bad`, `letters`, `waits`, `erasures`, `deletions`, `files`, `commits_lost`."

    async def run(self) -> None:
        """Archive until `stop`; then write the held records and leave the group.

        Raises:
            ConfigError: the archive is ahead of its topic, which was recreated.
        """
        self._consumer = connect.consumer(self._settings.kafka, connect.ARCHIVE, group_id=f"{self._settings.app_id}-archive")
        await self._consumer.start()
        try:
            self._consumer.subscribe(list(self._topics), listener=self)
            while not self._stopping.is_set():
                self.last_loop_s = time.monotonic()
                batches = await self._consumer.getmany(timeout_ms=POLL_MS)
                if self._failure is not None:
                    raise self._failure
                if self._starts is not None:
                    # here, so that no read is running; earlier reads began elsewhere, and are repeated
                    for partition, position in self._starts.items():
                        self._consumer.seek(partition, position)
                    self._starts, self._placed = None, True
                    continue
                self._resume_due()
                for partition, records in batches.items():
                    if not self._placed:
                        break
                    await look_up(self._registry, [r.value for r in records], [r.headers for r in records])
                    if self._placed:
                        self._take(partition, records)
                    await asyncio.sleep(0)
                await self._write_due()
            await self._write_due(everything=True)
        finally:
            try:
                await self._consumer.stop()
            finally:
                if self._producer is not None:
                    await self._producer.stop()

    def stalled(self) -> str:
        """Return the reason why the archive makes no progress; empty while it does."""
        trouble = getattr(self._consumer and self._consumer._coordinator, "trouble", None)
        if trouble is not None:
            return f"group membership cannot be kept: {advice_of(trouble)}"
        waiting = [f"{tp.topic}-{tp.partition}" for tp in self._waiting]
        if waiting:
            return f"{', '.join(sorted(waiting))} wait for the schema registry"
        if time.monotonic() - self.last_loop_s > STALLED_S:
            return f"it has not moved for {time.monotonic() - self.last_loop_s:.0f} s"
        return ""

    def stop(self) -> None:
        """Ask `run` to finish."""
        self._stopping.set()

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:  # noqa: ARG002
        """Drop the held records: the next owner reads them again. All partitions are revoked at once, whatever aiokafka
        reports.
        """
        self._starts, self._placed = None, False
        self._held.clear()
        self._waiting.clear()
        async with self._writing:
            pass

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        """Find the end of each partition's archive.

        aiokafka reads from the committed offsets in the meantime. `run` drops those records, and seeks.
        """
        try:
            self._starts = await self._ends(assigned)
        except Exception as exc:
            self._failure = exc
            raise

    async def _ends(self, assigned: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        starts = dict[TopicPartition, int]()
        ends = await self._consumer.end_offsets(list(assigned))
        for full in {partition.topic for partition in assigned}:
            archived = await asyncio.to_thread(next_offsets, self._target, self._topics[full])
            for partition in (p for p in assigned if p.topic == full):
                position = archived.get(partition.partition, 0)
                if position > ends[partition]:
                    raise ConfigError(
                        "archive_ahead",
                        f"the archive of {full} reaches offset {position}, the topic ends at {ends[partition]}: the topic "
                        "was recreated; move the archive away or set RIFFLE_ARCHIVE to a new place",
                        "archive",
                    )
                # without files the archive starts over, wherever the group was
                committed = await self._consumer.committed(partition) if position else None
                starts[partition] = max(position, committed or 0)
        return starts

    def _take(self, partition: TopicPartition, records: Sequence[Any]) -> None:
        held = self._held.get(partition)
        if held is None:
            held = _Held(records[0].offset, records[0].timestamp, time.monotonic())
        for record in records:
            try:
                row = self._row(record)
            except TransientError as exc:
                self._wait(partition, record.offset, exc)
                break
            except Exception as exc:
                self.counters["bad"] += 1
                if self._topics[record.topic] == "items":
                    held.add_letter(*_letter(record, exc))
                log.info("not archived: %s-%d@%d: %s", record.topic, record.partition, record.offset, exc)
            else:
                held.rows.append(row)
            held.last = record.offset
            self._held[partition] = held

    def _wait(self, partition: TopicPartition, offset: int, exc: TransientError) -> None:
        """Pause the partition and read it from this offset again later: the record there is not at fault."""
        self.counters["waits"] += 1
        log.warning("the archive waits at %s-%d@%d: %s", partition.topic, partition.partition, offset, exc)
        self._consumer.seek(partition, offset)
        self._consumer.pause(partition)
        self._waiting[partition] = time.monotonic() + WAIT_S

    def _resume_due(self) -> None:
        for partition, until in list(self._waiting.items()):
            if time.monotonic() >= until:
                del self._waiting[partition]
                self._consumer.resume(partition)

    def _row(self, record: Any) -> dict[str, Any]:
        """Convert a record to a row by the rules of the worker that reads it; deletions and erasures become removals."""
        topic = self._topics[record.topic]
        origin = {"_partition": record.partition, "_offset": record.offset, "_timestamp": record.timestamp}
        if topic == "interactions":
            event = event_of(record.value, record.key, record.headers, self._registry)
            if not isinstance(event, str):
                check_time(event.event_time, record.timestamp)
            partitions = self._settings.partitions
            check_place(partition_of(record.key, partitions), Placed(record.partition, partitions))
            if isinstance(event, str):
                self.counters["erasures"] += 1
                return {NAMED[topic]: event, **origin, "_removed": True}
            datum = asdict(event)
        elif topic == "items":
            entry = entry_of(record.value, record.key, record.headers, self._registry)
            if not isinstance(entry, Item):
                self.counters["deletions"] += 1
                return {NAMED[topic]: entry, **origin, "_removed": True}
            datum = asdict(entry)
            datum["categories"] = list(datum["categories"])
            datum["attributes"] = [{"key": key, "value": value} for key, value in datum["attributes"].items()]
        else:
            if record.value is None:
                raise BadEvent("null_value", "no value")
            datum, framing = decode(SCHEMAS[topic], record.value, record.headers, self._registry)
            if framing is Framing.JSON:
                datum = decode(SCHEMAS[topic], encode(SCHEMAS[topic], datum))[0]
        self.counters["records"] += 1
        return {**datum, **origin, **({"_removed": False} if topic in NAMED else {})}

    async def _write_due(self, *, everything: bool = False) -> None:
        now = time.monotonic()
        async with self._writing:
            for partition, held in list(self._held.items()):
                if self._held.get(partition) is not held:
                    continue  # revoked while the previous file was written
                full = len(held.rows) + len(held.letters) >= self._settings.archive_rows or held.letter_bytes >= LETTER_BYTES
                if everything or full or now - held.since >= self._settings.archive_interval_s:
                    del self._held[partition]
                    await self._write(partition, held)

    async def _write(self, partition: TopicPartition, held: _Held) -> None:
        await self._send(held.letters)
        # letters alone need a file, too: it covers their records, so that they are sent once
        if held.rows or held.letters:
            topic = self._topics[partition.topic]
            file = ArchiveFile.of(topic, partition.partition, held.first, held.last, held.first_timestamp_ms)
            data = await asyncio.to_thread(parquet, topic, held.rows)
            await asyncio.to_thread(self._target.write, file.path, data)
            self.counters["files"] += 1
        try:
            await self._consumer.commit({partition: held.last + 1})
        except (CommitFailedError, IllegalStateError):
            # another worker got the partition in the meantime; readers drop the duplicates
            self.counters["commits_lost"] += 1

    async def _send(self, letters: Sequence[tuple[bytes | None, bytes]]) -> None:
        if letters and self._producer is None:
            self._producer = connect.producer(self._settings.kafka, connect.DURABLE)
            await self._producer.start()
        topic = self._settings.topic("dead-letters")
        sent = [await self._producer.send(topic, value, key=key, partition=0) for key, value in letters]
        await asyncio.gather(*sent)
        self.counters["letters"] += len(letters)


def _letter(record: Any, exc: Exception) -> tuple[bytes | None, bytes]:
    if isinstance(exc, BadInput):
        code, reason = exc.code, exc.message
    else:
        code, reason = "invalid_key" if isinstance(exc, UnicodeDecodeError) else "internal", str(exc)
    origin = record.topic, record.partition, record.offset, record.timestamp
    return letter_of(origin, code, reason, record.key, record.value, record.headers)
