"""Chunked consumption: Faust streams that deliver the records of one fetch of one partition as one event.

A stock Faust consumer makes two tasks and several objects per record. Here the consumer hands the conductor one `Chunk` per
fetched partition, so `async for chunk in stream` in an agent costs the same for 1 record as for 500. Faust's acknowledgements
do not drive commits: `streams.state.partitions` commits durable offsets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import aiokafka
import faust
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.tables import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

import streams.kafka.coordinator  # noqa: F401 - so that a member of a group goes on after errors of its group
from schemas.kafka_settings import KafkaSettings
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.assignor import HoldingAssignor
from streams.kafka.error_codes import Action, action_of, advice_of
from streams.kafka.native.reader import NativeReader
from streams.kafka.record_batches import Records, in_columns

__all__ = ["Chunk", "ChunkedApp", "Progress"]

log = logging.getLogger(__name__)

RETRY_S = 0.5
"Seconds before the consumer retries a request that the broker refused."
QUEUE_CHUNKS = 2
"Chunks that may wait for an agent. Besides them two may be in work, one on its way, and the rest of a fetch waits."
PREFETCH_BACKOFF_S = 0.005
YIELD_S = 0.0002
"""Seconds that the consumer's thread pauses after it has passed requests on. Otherwise it would build the next fetch at once,
and the event loop would wait for the interpreter meanwhile."""
SEEK_S = 5.0
"Seconds to wait for a seek to the beginning."
WAIT_S = 1.0
"Seconds that a fetch waits for records."


@dataclass(slots=True, frozen=True)
class Chunk:
    """Records of one fetch from one partition, oldest first; all columns have length `len(chunk)`."""

    topic: str
    partition: int
    offsets: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    timestamps: Sequence[int]
    "Record timestamps, epoch ms."
    headers: Sequence[Sequence[tuple[str, bytes]]]
    generation: int = 0
    "Group generation in which the records were fetched. A chunk of an earlier one is read again and must not be applied."

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def last_offset(self) -> int:
        """Offset of the newest record."""
        return self.offsets[-1]

    @classmethod
    def of(cls, topic: str, partition: int, records: Sequence[Any] | Records, generation: int = 0) -> Chunk:
        """Build a chunk from `Records`, or from records as aiokafka parsed them (at least one)."""
        if isinstance(records, Records):
            offsets, timestamps = records.offsets.tolist(), records.timestamps.tolist()
            return cls(topic, partition, offsets, records.keys, records.values, timestamps, records.headers, generation)
        return cls(
            topic,
            partition,
            [r.offset for r in records],
            [r.key for r in records],
            [r.value for r in records],
            [r.timestamp or 0 for r in records],
            [r.headers for r in records],
            generation,
        )


Batches = Sequence[tuple[TP, Sequence[Any] | Records]]
"Fetched records by partition, in the order of delivery."


@dataclass(slots=True, frozen=True)
class Progress:
    """Read progress of a partition, as next offsets."""

    position: int
    end: int
    delivered: int | None
    "Next offset after the newest record handed to an agent; None before the first."


def _as_parsed(_tp: object, record: Any) -> Any:
    """Return the parsed record, which is enough for a chunk. A `ConsumerRecord` costs more than the rest of a fetch."""
    return record


async def seek_to_committed(consumer: aiokafka.AIOKafkaConsumer) -> dict[Any, int | None]:
    """Seek every assigned partition to its committed offset, or to its beginning; returns the committed offsets.

    aiokafka does not move a partition that has no committed offset. Records that were fetched and then dropped, because a
    rebalance began, would never be read.
    """
    found: dict[Any, int | None] = await consumer.seek_to_committed()
    begun = [tp for tp, offset in found.items() if not offset and tp in consumer.assignment()]
    if begun:
        with contextlib.suppress(TimeoutError):  # the consumer retries; a partition without a leader must not block others
            async with asyncio.timeout(SEEK_S):
                await consumer.seek_to_beginning(*begun)
    return found


class ChunkedConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Consumer thread with bounded fetch waits, committed reads and assignment to the member that holds the rows."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:  # noqa: ARG002 - Faust's signature
        conf = self.app.conf
        # Both give partition n of every topic to the same member, so the worker that answers a user's requests holds that
        # user's record. A group falls back to range assignment while it has members that support no other.
        self._assignor = self.app.holding
        return connect.consumer(
            self.app.kafka,
            connect.STREAM,
            client_id=conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self.app.holding, RangePartitionAssignor],
            request_timeout_ms=int(conf.broker_request_timeout * 1000.0),
            session_timeout_ms=int(conf.broker_session_timeout * 1000.0),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000.0),
        )

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - Faust's signature
        max_records: int | None = None,
    ) -> Any:
        # While records of one partition wait to be taken, aiokafka does not fetch others from the same broker for 0.1 s:
        # requests would wait behind a backlog of events.
        for tp in consumer.assignment() - consumer.paused():
            if tp.topic in self.app.prompt:
                consumer.pause(tp)  # read by `ChunkedConsumer`'s native reader
        fetcher = consumer._fetcher
        fetcher._prefetch_backoff = PREFETCH_BACKOFF_S
        for tp, fetched in fetcher._records.items():
            if not isinstance(fetched, FetchResult) or not fetched.has_more():
                continue
            if tp.topic not in self.app.bulk or not in_columns(fetched):
                fetched._partition_records._consumer_record = _as_parsed
        taken = await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        if any(tp.topic not in self.app.bulk for tp in taken):
            # after the records were passed to the event loop, and before the next fetch is built
            self.thread_loop.call_soon(time.sleep, YIELD_S)
        for tp in taken:
            if tp in fetcher._records:  # moved to the end, so that chunks of two partitions are worked on at once
                fetcher._records[tp] = fetcher._records.pop(tp)
        return taken

    async def seek_to_committed(self) -> Any:
        """Call the function of this name, and retry while the broker does not answer or refuses."""
        while True:
            try:
                return await self.call_thread(seek_to_committed, self._ensure_consumer())
            except KafkaError as error:
                if action_of(error) is Action.END or self.should_stop:
                    raise
                self.app.reading_failed(error)
                await asyncio.sleep(RETRY_S)

    def over(self) -> bool:
        """Whether the consumer can no longer read because one of its tasks has ended."""
        consumer = self._consumer
        if consumer is None or consumer._coordinator is None or consumer._fetcher is None or consumer._closed:
            return False
        tasks = (consumer._coordinator._coordination_task, consumer._fetcher._fetch_task)
        return any(task.done() for task in tasks)

    def look_anew(self) -> None:
        """Make a fetch that waits for records look at its partitions again. Call it from any thread."""

        def wake(fetcher: Any) -> None:
            for waiter in list(fetcher._fetch_waiters):
                fetcher._notify(waiter)

        if self._consumer is not None:
            self.thread_loop.call_soon_threadsafe(wake, self._consumer._fetcher)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Do nothing: Faust's own livelock check reads acknowledgements that chunks do not make. Lag is a metric instead."""


class ChunkedConsumer(driver.Consumer):  # type: ignore[misc]
    """Delivers one `Chunk` per partition and fetch; never commits on its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deliveries: dict[str, asyncio.Task[None]] = {}
        "Deliveries that wait for room, by topic. Such topics are not fetched."
        self._asked: set[TP] = set()
        "Partitions of the fetch that waits for records. It may grow meanwhile."
        self._skipped: set[TP] = set()
        "Active partitions that this fetch leaves out, because their agent is behind."
        self._prompt = NativeReader(self.app.kafka, self.app.conf.id, self._take_prompt, self.app.reading_failed)

    async def on_stop(self) -> None:
        """Stop reading."""
        await super().on_stop()
        await asyncio.to_thread(self._prompt.close)

    async def perform_seek(self) -> None:
        """Read every partition from its committed offset on."""
        await super().perform_seek()
        starts = {
            tp: self._read_offset.get(tp) for tp in (TP(*one) for one in self.assignment()) if tp.topic in self.app.prompt
        }
        self._prompt.read(starts)

    def _take_prompt(self, tp: TP, records: Sequence[Any]) -> None:
        """Pass records to the function of their topic. While the flow is stopped they are dropped, to be read again."""
        if not self.flow_active:
            return
        chunk = Chunk.of(tp.topic, tp.partition, records, self.app.consumer_generation_id)
        self._read_offset[tp] = chunk.last_offset + 1
        self.app.prompt[tp.topic](chunk)

    def _new_consumer_thread(self) -> ChunkedConsumerThread:
        return ChunkedConsumerThread(self, loop=self.loop, beacon=self.beacon)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002
        """Do nothing on Faust's periodic commit: offsets are committed where their effect was made durable."""
        return False

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit `offsets` (next offset to read, per partition).

        Raises:
            aiokafka.errors.KafkaError: the broker refused; nothing is recorded as committed.
        """
        consumer = self._thread._ensure_consumer()
        plain = {driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        await self._thread.call_thread(consumer.commit, plain)

    async def progress(self) -> dict[TP, Progress]:
        """Read progress per assigned partition.

        Raises:
            aiokafka.errors.KafkaError: the broker does not answer.
        """
        consumer = self._thread._ensure_consumer()

        async def ask() -> dict[TP, Progress]:
            assigned = list(consumer.assignment())
            ends = await consumer.end_offsets(assigned) if assigned else {}
            return {TP(*tp): await progress_of(tp, int(ends[tp])) for tp in assigned}

        async def progress_of(tp: Any, end: int) -> Progress:
            delivered, position = self._read_offset.get(TP(*tp)), await consumer.position(tp)
            if tp.topic in self.app.prompt:  # aiokafka stays at its start
                position = max(position, delivered or 0)
            return Progress(position, end, delivered)

        found: dict[TP, Progress] = await self._thread.call_thread(ask)
        return found

    @property
    def over(self) -> bool:
        """Whether the consumer can no longer read because one of its tasks has ended; only a new process helps."""
        return bool(self._thread.over()) or self._prompt.over

    @property
    def trouble(self) -> BaseException | None:
        """The last error of the consumer group; None while it works."""
        consumer = self._thread._consumer
        coordinator = None if consumer is None else consumer._coordinator
        return None if coordinator is None else coordinator.trouble

    async def look_again(self) -> None:
        """Refresh the cluster's metadata now. Created, deleted or changed topics cause a reassignment."""
        consumer = self._thread._ensure_consumer()
        await self._thread.call_thread(consumer._client.force_metadata_update)

    async def rejoin(self) -> None:
        """Rejoin the group: everything is reassigned in a new generation and read from the committed offsets."""
        consumer = self._thread._ensure_consumer()

        async def ask() -> None:
            self.app.holding.turn += 1
            consumer._coordinator.request_rejoin()

        await self._thread.call_thread(ask)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Fetch and deliver records until stopped.

        A chunk is handed over at once if the agent's queue has room. Otherwise a delivery waits for room in the background, at
        most one for each topic, and meanwhile no more records of that topic are taken from the fetcher. So memory is bounded, a
        slow topic holds up no other, and requests never wait behind events.
        """
        deliveries = self._deliveries
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                generation = self.app.consumer_generation_id
                for topic in [topic for topic, task in deliveries.items() if task.done()]:
                    deliveries.pop(topic).result()
                records, active = await self._next_records()
                if not self._is_current(generation):
                    # a rebalance began during the fetch: its records are read again
                    await self.perform_seek()
                    continue
                if not records:
                    await asyncio.sleep(0)
                    continue
                mine = {tp: batch for tp, batch in records.items() if active is None or tp in active}
                for topic in sorted({tp.topic for tp in mine}, key=self.app.bulk.__contains__):  # requests first
                    batches = [(TP(*tp), batch) for tp, batch in mine.items() if tp.topic == topic]
                    if waiting := await self._hand_over(batches, generation):
                        deliveries[topic] = asyncio.create_task(self._deliver_all(waiting, generation))
                        deliveries[topic].add_done_callback(partial(self._read_again, topic))
                await asyncio.sleep(0)
        except self.consumer_stopped_errors:
            if not self.transport.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.transport.app.should_stop:
                raise
        finally:
            ended = list(deliveries.values())
            deliveries.clear()
            self._skipped = set()
            for task in ended:
                task.cancel()
            await asyncio.gather(*ended, return_exceptions=True)

    async def _next_records(self) -> Any:
        """Records, and the partitions that are read; no records when the broker refused something.

        aiokafka reports each fetch error once, when it is asked for records, and continues at the next call.
        """
        try:
            return await self._wait_next_records(timeout=WAIT_S)
        except KafkaError as error:
            if action_of(error) is Action.END or self._thread.over():
                raise
            self.app.reading_failed(error)
            await asyncio.sleep(RETRY_S)
            return {}, None

    def on_buffer_full(self, tp: TP) -> None:
        """Do nothing: a delivery waits for room by itself. Pausing the partition here too would delay it by one more fetch."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Do nothing, for the reason given at `on_buffer_full`."""

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's signature
        active_partitions = {tp for tp in active_partitions or () if tp.topic not in self.app.prompt}
        if not active_partitions:  # to aiokafka no partitions means all
            await asyncio.sleep(timeout)
            return {}
        behind = [task for task in self._deliveries.values() if not task.done()]
        if not behind:
            return await super()._getmany(active_partitions, timeout)
        topics = {topic for topic, task in self._deliveries.items() if not task.done()}
        self._skipped = {tp for tp in active_partitions if tp.topic in topics}
        self._asked = active_partitions - self._skipped
        if not self._asked:  # to aiokafka no partitions means all
            await asyncio.wait(behind, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            return {}
        return await super()._getmany(self._asked, timeout)

    def _read_again(self, topic: str, _delivered: object) -> None:
        """Let the fetch that waits for records take those of a topic again, because its agent has caught up."""
        if again := {tp for tp in self._skipped if tp.topic == topic}:
            self._skipped -= again
            self._asked |= again
            self._thread.look_anew()

    def _has_room(self, tp: TP) -> bool:
        """Whether a chunk can be handed over without waiting."""
        conductor = self.app.topics
        if not self.app.flow_control.is_active() or conductor._tp_to_callback_lock.locked():
            return False
        return not any(channel.queue.full() for channel in conductor._tp_index[tp])

    async def _hand_over(self, batches: Batches, generation: int) -> Batches:
        """Deliver batches while there is room, without giving way to other tasks; returns the rest."""
        for n, (tp, batch) in enumerate(batches):
            if not self._has_room(tp):
                return batches[n:]
            if not self._is_current(generation):
                return ()
            if (message := self._message(tp, batch, generation)) is not None:
                await self.callback(message)
                self._delivered(message)
        return ()

    async def _deliver_all(self, batches: Batches, generation: int) -> None:
        for tp, batch in batches:
            if not self._is_current(generation):
                return
            if (message := self._message(tp, batch, generation)) is not None:
                await self.wait_first(self.callback(message), self.suspend_flow.wait())
                self._delivered(message)

    def _is_current(self, generation: int) -> bool:
        """Whether records of a group generation still count. If not, the next assignment seeks to the committed offset."""
        return bool(self.flow_active and generation == self.app.consumer_generation_id)

    def _delivered(self, message: ConsumerMessage) -> None:
        if self._is_current(message.generation_id):
            self._read_offset[message.tp] = message.offset + 1

    def _message(self, tp: TP, batch: Sequence[Any] | Records, generation: int) -> ConsumerMessage | None:
        """Build the message that carries a batch as a chunk; None if all of it was delivered before."""
        read = self._read_offset.get(tp)
        chunk = Chunk.of(tp.topic, tp.partition, batch, generation)
        if read is not None and chunk.last_offset < read:
            return None
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            chunk.last_offset,
            chunk.timestamps[-1] / 1000.0,
            0,
            (),
            None,
            chunk,
            None,
            None,
            None,
            tp,
            generation_id=generation,
        )


class ChunkedTransport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport with the chunked consumer."""

    Consumer: ClassVar[type] = ChunkedConsumer


class NoTables(TableManager):  # type: ignore[misc]
    """Faust's table manager without the second that it waits for tables to be registered: there are none."""

    async def on_start(self) -> None:
        """Continue at once."""
        await self._update_channels()
        await self.recovery.start()


class ChunkedApp(faust.App):  # type: ignore[misc]
    """A Faust app whose streams deliver chunks."""

    kafka: KafkaSettings
    "Connection settings of the consumer."
    holding: HoldingAssignor
    "The partition assignor. Set before the app starts."
    on_reading_failed: Callable[[KafkaError], None] | None = None
    "Called with an error of the consumer, which then retries by itself."
    bulk: frozenset[str]
    "Topics whose chunks are read in columns, because they have many records in few batches."
    prompt: Mapping[str, Callable[[Chunk], None]] = MappingProxyType({})
    """Topics whose records must not wait, and the function that is called with their chunks in the event loop, at once. They
    are read with librdkafka. The group assigns their partitions like those of the other topics, so they need an agent, too."""

    def reading_failed(self, error: KafkaError) -> None:
        """Report an error of the consumer, which then continues."""
        log.warning("reading from Kafka: %s; trying again", advice_of(error))
        if self.on_reading_failed is not None:
            self.on_reading_failed(error)

    def _new_transport(self) -> ChunkedTransport:
        return ChunkedTransport(self.conf.broker_consumer, self)

    @classmethod
    def create(cls, settings: Settings) -> ChunkedApp:
        """Create the app from `settings`."""
        app = cls(
            settings.app_id,
            broker=f"kafka://{settings.bootstrap_servers.replace(',', ';')}",
            broker_credentials=connect.credentials(settings.kafka),
            store="memory://",
            TableManager=NoTables,
            datadir=str(settings.data_dir / "faust"),
            topic_partitions=settings.partitions,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=True,
            web_bind=settings.web_host,
            web_host=settings.web_host,
            web_port=settings.web_port,
            web_tables_enabled=False,
            web_router_enabled=False,
            stream_wait_empty=False,
            stream_buffer_maxsize=QUEUE_CHUNKS,
            stream_publish_on_commit=False,
            broker_session_timeout=settings.session_timeout_s,
            broker_heartbeat_interval=settings.session_timeout_s / 5,
            broker_request_timeout=40.0,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=settings.instance or None,
            autodiscover=False,
        )
        app.kafka = settings.kafka
        app.bulk = frozenset({settings.topic("interactions")})
        return app
