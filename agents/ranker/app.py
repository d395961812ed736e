"""The composition root and the life cycle of a ranking process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from agents.ending import end_within
from agents.findings import NOTED_S, Health, code_of, why
from agents.health.broker import BrokerProbe
from agents.health.looks import Reading
from agents.metrics import Metrics
from agents.ranker.answering import Answering
from agents.ranker.collecting import Collector
from agents.ranker.releases import Rankers, RankerSlot
from agents.ranker.status import Status
from agents.requests.clock import Clock
from agents.tasks import Tasks
from agents.web.access import Gate
from agents.web.server import Runner
from agents.web.server_tls import server_context
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.kafka.assignor import OWNER, HoldingAssignor
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.chunks import Chunk, ChunkedApp
from streams.kafka.native import clients
from streams.kafka.native.producer import NativeProducer
from streams.kafka.topics import ensure_topics
from streams.tracing import Tracing, tracing_of

__all__ = ["RankerApp", "create_ranker", "group_of"]

log = logging.getLogger(__name__)

COMMIT_S, LOOK_S = 0.25, 2.0
"Seconds between commits, which bound the lag that an idle group shows, and between checks."
LEAVE_S = 2.0
"Seconds within which tasks that were read are answered before their partitions go to another process."


def group_of(settings: Settings) -> str:
    """Return the name of the consumer group of ranking processes. Its lag on the topic is the signal to scale them.

    It is the topic's own name, so that all processes that read the topic share its tasks, whatever their app id.
    """
    return settings.topic("rank")


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a ranking process. Nothing connects before it is started."""

    settings: Settings
    metrics: Metrics
    health: Health
    tasks: Tasks
    producer: NativeProducer
    answering: Answering
    collector: Collector
    rankers: Rankers
    reader: BroadcastReader
    broker: BrokerProbe
    reading: Reading
    status: Status
    thread: ThreadPoolExecutor
    tracing: Tracing | None


class RankerApp(ChunkedApp):
    """The Faust app of a ranking process. It has no tables: whatever it loses, workers rank by themselves."""

    parts: Parts
    gate: Gate
    runner: Runner | None = None
    _taken: dict[TP, int]
    "Next offset to read of each partition, which is committed. Tasks are read once: another process must not answer them too."
    _committed: dict[TP, int]

    def stop_for(self, error: BaseException) -> None:
        """Stop the process because of an error from which it cannot recover."""
        log.critical("the ranking process stops: %s: %s", type(error).__name__, error, exc_info=error)
        asyncio.ensure_future(self.crash(error))  # noqa: RUF006 - the app keeps it

    async def on_start(self) -> None:
        """Start the parts before the consumer joins its group."""
        await super().on_start()
        parts = self.parts
        await ensure_topics(parts.settings)
        await parts.producer.start()
        await parts.reader.start(self.stop_for)
        await parts.reader.wait()
        await parts.rankers.take_up()
        parts.status.caught_up = True
        for name, work in (
            ("ranking", parts.collector.run()),
            ("releases", parts.rankers.follow()),
            ("broker", parts.broker.run()),
            ("commits", self._commit_forever()),
            ("watch", self._watch()),
        ):
            parts.tasks.start(name, work)
        self.gate.mount(self.web.web_app)
        self.web.web_app.add_routes(parts.status.routes())
        self.runner = Runner(self.web.web_app, parts.metrics)
        self.web._runner = self.runner

    async def on_stop(self) -> None:
        """Answer what was read, then leave the group."""
        end_within(self.parts.settings.stop_timeout_s)
        parts = self.parts
        parts.status.leaving = True
        self.consumer.stop_flow()
        self.flow_control.suspend()
        self.flow_control.clear()
        if not self.crashed:
            await self.let_go()
        if self.runner is not None:
            await self.runner.cleanup()
        await parts.tasks.cancel()
        await parts.reader.stop()
        await parts.producer.stop()
        parts.thread.shutdown(wait=False)
        if parts.tracing is not None:
            await asyncio.to_thread(parts.tracing.stop)
        await super().on_stop()

    async def take_in(self, chunk: Chunk) -> None:
        """Rank the tasks of a chunk, unless the partition may have gone to another process since it was read."""
        if chunk.generation != self.consumer_generation_id:
            return
        self._taken[TP(chunk.topic, chunk.partition)] = chunk.last_offset + 1
        await self.parts.collector.take_in(chunk)

    async def let_go(self) -> None:
        """Answer the tasks that were read, and commit, before another process may read on."""
        loop = asyncio.get_running_loop()
        until = loop.time() + LEAVE_S
        answered = await self.parts.collector.idle(LEAVE_S)
        if not (await self.parts.answering.settled(max(until - loop.time(), 0.0)) and answered):
            log.warning("tasks are still being answered while their partitions go to another process")
        if not await self._commit() and not await self._commit():
            log.warning("positions are not committed: another process may answer the last tasks once more")
        self._taken.clear()
        self._committed.clear()

    async def _commit(self) -> bool:
        """Commit the positions that are due; returns whether none is left."""
        due = {tp: offset for tp, offset in self._taken.items() if self._committed.get(tp) != offset}
        if not due:
            return True
        try:
            with self.parts.metrics.commit_seconds.timed(what="tasks"):
                await self.consumer.commit_offsets(due)
        except KafkaError as error:
            # if the partition moves before the next attempt, another process reads these tasks again, and answers once more
            # those that are not late by then
            self.parts.metrics.commits_failed.add(code=code_of(error))
            self.parts.health.warn("commits", f"positions cannot be committed: {why(error)}", for_s=NOTED_S)
            return False
        self._committed.update(due)
        return True

    async def _commit_forever(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            await self._commit()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.parts.reading.look()
            if self.consumer.over:
                self.stop_for(NotReady("not_ready", "the consumer's tasks have ended"))
                return
            try:
                async with asyncio.timeout(self.parts.settings.stuck_s):
                    progress = await self.consumer.progress()
            except (KafkaError, TimeoutError) as error:
                log.warning("the consumer's position is not known: %r", error)
                continue
            lags: dict[tuple[str, ...], float] = {
                (tp.topic, str(tp.partition)): at.end - at.position for tp, at in progress.items()
            }
            self.parts.metrics.lag.replace(lags)


def assemble(settings: Settings, app: RankerApp) -> Parts:
    """Create all parts."""
    metrics, health, clock = Metrics(), Health(), Clock()
    producer = NativeProducer(settings.kafka, clients.RANK_REPLIES)
    slot, thread = RankerSlot(), ThreadPoolExecutor(1, "ranking")

    async def aside(work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, work)

    answering = Answering(settings.topic("rank-acks"), slot.of, producer, metrics, clock, aside)
    tracing = tracing_of(settings, "riffle-ranking")
    collector = Collector(settings.rank_wait_ms / 1e3, answering.answer, answering.refuse, metrics, clock, tracing)
    rankers = Rankers(settings, slot, metrics)
    broker = BrokerProbe(settings)
    return Parts(
        settings=settings,
        metrics=metrics,
        health=health,
        tasks=Tasks(app.stop_for),
        producer=producer,
        answering=answering,
        collector=collector,
        rankers=rankers,
        reader=BroadcastReader(settings, {"models": rankers.on_models}, health.set),
        broker=broker,
        reading=Reading(app, metrics, health),
        status=Status(settings, slot, collector, broker, health, metrics, clock.monotonic),
        thread=thread,
        tracing=tracing,
    )


def create_ranker(settings: Settings) -> RankerApp:
    """Create a ranking process, with its agent registered. Of a worker's settings it needs those of Kafka and of releases."""
    own = replace(settings, app_id=group_of(settings), instance="", web_port=settings.rank_port)
    app: RankerApp = RankerApp.create(own)
    parts = app.parts = assemble(own, app)
    app.gate = Gate(own.http, parts.metrics)
    app.conf.web_ssl_context = server_context(own.http, parts.metrics)
    app._taken, app._committed = {}, {}
    app.holding = HoldingAssignor(lambda: dict.fromkeys(parts.status.assigned or (), OWNER), 0, own.partitions)
    app.on_reading_failed = parts.reading.failed

    async def ranking(stream: Any) -> None:
        async for chunk in stream:
            try:
                await app.take_in(chunk)
            except Exception:
                log.exception("tasks at %s-%d up to %d failed", chunk.topic, chunk.partition, chunk.last_offset)
                parts.metrics.request_chunks_failed.add()

    async def on_assigned(_app: Any, assigned: set[TP], **_kwargs: Any) -> None:
        parts.status.assigned = frozenset(tp.partition for tp in assigned)

    async def on_revoked(_app: Any, _gone: set[TP], **_kwargs: Any) -> None:
        await app.let_go()

    topic = app.topic(own.topic("rank"), key_serializer="raw", value_serializer="raw")
    app.agent(topic, name="riffle.rank")(ranking)
    app.on_partitions_assigned.connect(on_assigned)
    app.on_partitions_revoked.connect(on_revoked)
    return app
