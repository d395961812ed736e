"""Reader of the topics that every worker reads whole: the catalogue, statistics, neighbours, releases, trainings."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.chunks import Chunk
from streams.kafka.error_codes import Action, action_of, advice_of

__all__ = ["BroadcastReader"]

log = logging.getLogger(__name__)


RETRY_S = 0.5
"Seconds before a consumer that failed is replaced."
AT_ONCE, AT_MOST = 50, 4_000
"Records handled between two turns of the event loop after catching up, and records per fetch, handled at once until then."


class BroadcastReader:
    """Reads whole topics from their beginning, without a consumer group, and keeps following them.

    `handlers` maps a short topic name to a function that is called with each chunk, in partition order. Its result is awaited
    before the next chunk of any topic. A handler that raises stops the reader, and with it the worker, because a partial view
    of the catalogue must not look like a whole one. So handlers catch the errors that a single bad record may raise. An error
    from the broker only costs time: a new consumer continues at the position of the last one. `warn` is called with a
    description of the problem, or with an empty text.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Mapping[str, Callable[[Chunk], Awaitable[None] | None]],
        warn: Callable[[str, str], None] = lambda _name, _text: None,
        *,
        profile: connect.Profile = connect.BROADCAST,
        name: str = "broadcast",
        what: str = "the catalogue and statistics",
    ) -> None:
        """`name`: of the problem that is given to `warn`; `what`: the content of the topics, for its text."""
        self._settings = settings
        self._handlers = {settings.topic(name): handler for name, handler in handlers.items()}
        self._warn = warn
        self._profile, self._name, self._what = profile, name, what
        self.caught_up = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._position: dict[TopicPartition, int] = {}
        "The next offset of each partition that was read."
        self._again: set[str] = set()
        "Topics to be read from their beginning again."

    async def start(self, on_failure: Callable[[BaseException], None]) -> None:
        """Begin reading; `caught_up` is set when all records present at the start have been handled."""
        self._task = asyncio.create_task(self._run(), name=self._name)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                on_failure(error)

        self._task.add_done_callback(ended)

    async def wait(self) -> None:
        """Wait until `caught_up`.

        Raises:
            BaseException: the error that ended the reader, if that came first.
        """
        assert self._task is not None
        waiting = asyncio.create_task(self.caught_up.wait())
        await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Stop reading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def read_again(self, topics: frozenset[str]) -> None:
        """Read these topics from their beginning, because they were recreated. `topics`: full names; others are ignored."""
        self._again |= topics & self._handlers.keys()
        for tp in [tp for tp in self._position if tp.topic in self._again]:
            del self._position[tp]

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except KafkaError as error:
                if action_of(error) is Action.END:
                    raise
                log.warning("%s cannot be read: %s; trying again", self._what, advice_of(error))
                self._warn(self._name, f"{self._what} cannot be read: {advice_of(error)}")
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        consumer = connect.consumer(self._settings.kafka, self._profile)
        try:
            await consumer.start()
            partitions = [
                TopicPartition(topic, partition)
                for topic in self._handlers
                for partition in sorted(consumer.partitions_for_topic(topic) or await self._partitions(consumer, topic))
            ]
            consumer.assign(partitions)
            await self._seek(consumer, partitions)
            ends = await consumer.end_offsets(partitions)
            while True:
                fetched = await consumer.getmany(timeout_ms=100, max_records=AT_MOST)
                for tp, records in fetched.items():
                    # no request is answered until all is read: until then, handling the newest record per key is enough
                    size = AT_ONCE if self.caught_up.is_set() else len(records)
                    for start in range(0, len(records), size):
                        handled = self._handlers[tp.topic](Chunk.of(tp.topic, tp.partition, records[start : start + size]))
                        if handled is not None:
                            await handled
                        await asyncio.sleep(0)
                    self._position[tp] = records[-1].offset + 1
                self._warn(self._name, "")
                if self._again:
                    again = frozenset(self._again)
                    log.warning("reading again from their beginning: %s", ", ".join(sorted(again)))
                    await consumer.seek_to_beginning(*(tp for tp in partitions if tp.topic in again))
                    self._again -= again
                if not self.caught_up.is_set():
                    # `position` also passes transaction markers, which are never delivered
                    positions = {tp: await consumer.position(tp) for tp in partitions}
                    if all(positions[tp] >= ends[tp] for tp in partitions):
                        self.caught_up.set()
                        log.info("topics read: %s", {tp.topic: end for tp, end in ends.items()})
        finally:
            await consumer.stop()

    async def _seek(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        """Seek to the position that reading had reached, or to the beginning."""
        ends = await consumer.end_offsets(partitions)
        known = {tp: offset for tp in partitions if (offset := self._position.get(tp, -1)) >= 0 and offset <= ends[tp]}
        for tp, offset in known.items():
            consumer.seek(tp, offset)
        if new := [tp for tp in partitions if tp not in known]:
            await consumer.seek_to_beginning(*new)

    async def _partitions(self, consumer: AIOKafkaConsumer, topic: str) -> set[int]:
        await consumer._client.force_metadata_update()
        return consumer.partitions_for_topic(topic) or {0}
