"""The composition root: everything a worker is made of, put together once."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import time
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from faust.types import TP
from faust.web.base import Web

from agents.broadcast.item_stream import Catalogue
from agents.broadcast.releases import Releases
from agents.health import Health, code_of, heals, why
from agents.memory import GIVE_BACK_S, give_back
from agents.metrics import Metrics
from agents.partitions.covisits import CovisitPartition
from agents.partitions.ownership import Ownership
from agents.partitions.recovery import FIRST_S, MOST_S, Recovery
from agents.partitions.users import UserPartition
from agents.requests.recommend import Recommend
from agents.service import Service, summary
from agents.web.routes import attach
from agents.web.server import Runner
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from schemas.errors import NotReady, RiffleError, StoreCorrupt
from schemas.settings import Settings
from streams.back_off import BackOff
from streams.kafka.assignor import HoldingAssignor
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.chunks import METADATA_MAX_AGE_MS, Chunk, ChunkedApp, Progress
from streams.kafka.healing_producer import HealingProducer
from streams.kafka.metadata import answers
from streams.kafka.topic_watch import TopicWatch
from streams.kafka.topics import ensure_topics
from streams.mirror.redis import UserMirror
from streams.watchdog import Watchdog

if TYPE_CHECKING:
    from schemas.codec import Registry
    from streams.archive.archiver import Archiver

__all__ = ["Worker", "create_app"]

log = logging.getLogger(__name__)

MIRRORED_AT_ONCE, MIRRORED_WHEN_BUSY = 25, 2
BUSY_CHUNK = 100
"Records of a chunk that tell of a replay or a backlog: summaries then wait, and change less often before they are written."
MIRROR_INTERVAL_S = 0.05
MIRROR_CAPACITY = 100_000
ARCHIVE_RETRY_S = 10.0
REJOIN_S, REJOIN_LOOK_S = 60.0, 0.05
"Seconds that joining the group again may take, and between two looks whether it is done."
NO_SCHEMA = 0
"An id that no registry gives."
READING_S = 5.0
"Seconds without another failure after which reading counts as right again."
NOTED_S = 120.0
"Seconds that a finding about something that is over is shown."
WATCH_INTERVAL_S, WATCH_TIMEOUT_S = 2.0, 60.0
APPLIED_AT_ONCE = 2
"Chunks being applied at once, of different partitions: what compiled loops do in threads is shared out over two cores."
BACKLOG_PER_S, BACKLOG_INTERVALS = 5_000, 2.0
"""Events a second that tell of a backlog, and commit intervals between flushes then: a row that changes all the time is written
less often, and of what is read from memory nothing is later for it."""
SPREAD = 0.75
"Share of the commit interval over which partitions begin their flushes."


class Worker:
    """One worker's parts and their life."""

    def __init__(self, settings: Settings, app: ChunkedApp) -> None:
        self._settings = settings
        self.stop_timeout_s = settings.stop_timeout_s
        self._app = app
        self.metrics = Metrics()
        self.items = ItemStore(settings.partitions)
        self.slot = ModelSlot()
        self.pipeline = CandidatePipeline(self.items, slot=self.slot)
        self._registry, self._probe = _registry(settings), _registry(settings)
        self.ownership = Ownership(settings, self.items, self.metrics, self._registry)
        self.users, self.covisits = self.ownership.users, self.ownership.covisits
        self._tasks: list[asyncio.Task[None]] = []
        self._flushing: asyncio.Task[None] | None = None
        self._ranking: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._misplaced: dict[str, float] = {}
        "Records seen on wrong partitions, per short name of a topic, as of the last look."
        self._read_failed_s, self._read_failure = -READING_S, ""
        self._archiver: Archiver | None = None
        self._archiving: asyncio.Task[None] | None = None
        self._archived = Counter[str]()
        "What the archivers of this process counted."
        self._mirror = UserMirror(settings.redis, prefix=settings.topic_prefix)
        self._changed: dict[str, int] = {}
        "People whose summary is to be mirrored, and their partitions."
        self._applied = 0
        "Chunks of many events applied since the mirror's last turn."
        self._applying: dict[tuple[str, int], asyncio.Task[None]] = {}
        "Chunks being applied, by topic and partition."
        self._taken_in = 0
        "Events handed to partitions so far, replayed ones too."
        self._assignments = 0
        self._restoring: list[asyncio.Task[None]] = []
        self._settled = asyncio.Event()
        "Set while the partitions of the current group generation are open."
        self._generation = 0
        self._broken = False
        "A chunk could not be applied: memory is not to be trusted any more."
        self._watchdog = Watchdog(settings.stuck_s)
        self.health = Health()
        self._taking = asyncio.Lock()
        self.recovery = Recovery(self.ownership, self.metrics, self._taking, lambda: self._generation, self._rejoin)
        self.recommend: Recommend | None = None
        self.service: Service | None = None
        self._replies: HealingProducer | None = None
        self._events: HealingProducer | None = None
        self._reader: BroadcastReader | None = None

    async def start(self) -> None:
        """Check topics, start producers, begin to read the broadcast topics; before the consumer joins its group."""
        settings = self._settings
        self.ownership.lock()
        await ensure_topics(settings)
        servers = settings.bootstrap_servers
        self._replies = HealingProducer(
            lambda: AIOKafkaProducer(bootstrap_servers=servers, linger_ms=0, acks=1, metadata_max_age_ms=METADATA_MAX_AGE_MS),
            self._replaced,
        )
        self._events = HealingProducer(
            lambda: AIOKafkaProducer(
                bootstrap_servers=servers,
                linger_ms=2,
                acks="all",
                enable_idempotence=True,
                max_request_size=2 << 20,
                metadata_max_age_ms=METADATA_MAX_AGE_MS,
            ),
            self._replaced,
        )
        await self._replies.start()
        await self._events.start()
        catalogue = Catalogue(self.items, self.metrics, self._registry)
        releases = Releases(settings, self.slot, self.items, self.metrics)
        self._reader = BroadcastReader(
            settings,
            {
                "items": catalogue.on_items,
                "item-vectors": catalogue.on_vectors,
                "item-stats": catalogue.on_statistics,
                "neighbours": catalogue.on_neighbours,
                "models": releases.on_models,
            },
            self.health.set,
        )
        self.recommend = Recommend(settings, self.pipeline, self.users, self._replies, self.metrics, self._registry)
        self.service = Service(
            settings,
            self.items,
            self.pipeline,
            self.recommend,
            self.users,
            self._events,
            self.metrics,
            self._mirror,
            self.ownership.tables,
            self._watchdog.stuck,
            self.health,
        )
        await self._reader.start(self._crash)
        await self._reader.wait()
        # a worker that is ready serves what is announced, or says why not
        await releases.take_up()
        self.service.caught_up = True
        await self._mirror.start()
        self._flushing = asyncio.create_task(self._flush_forever())
        self._ranking = asyncio.create_task(self.recommend.run())
        self._ranking.add_done_callback(self._ended)
        watch = TopicWatch(settings, self.health.set, self._made_anew, self.ownership.sources, self._begun)
        self._tasks = [
            asyncio.create_task(self.recovery.run()),
            asyncio.create_task(watch.run()),
            asyncio.create_task(self._mirror_forever()),
            asyncio.create_task(releases.follow()),
            asyncio.create_task(self._watch_forever()),
            asyncio.create_task(self._look_for_the_broker()),
            asyncio.create_task(self._give_back_forever()),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        if settings.archive != "off":
            self._archiving = asyncio.create_task(self._archive_forever())

    async def stop(self) -> None:
        """Flush what is applied, answer what is under way, let go of everything."""
        if self._archiver is not None:
            self._archiver.stop()
        if self._archiving is not None:
            await asyncio.wait([self._archiving], timeout=10.0)
            self._archiving.cancel()
            await asyncio.gather(self._archiving, return_exceptions=True)
        self._stopping.set()
        self._settled.set()  # chunks that wait are left to the next owner, those in work are ended
        if self._applying:
            await asyncio.wait(self._applying.values())
        for task in self._restoring:
            task.cancel()
        await asyncio.gather(*self._restoring, return_exceptions=True)
        if self._flushing is not None:
            # never cut a transaction off: what it had queued can neither be sent nor dropped, and would hold up the end
            await asyncio.gather(self._flushing, return_exceptions=True)
        others = [*self._tasks, *([self._looking] if self._looking is not None else [])]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._mirror.stop()
        if self.service is not None:
            await self.service.stop()
        if self.recommend is not None:
            await self.recommend.drain()
        if self._ranking is not None:
            self._ranking.cancel()
            await asyncio.gather(self._ranking, return_exceptions=True)
        await self.ownership.close()
        if self._reader is not None:
            await self._reader.stop()
        for producer in (self._replies, self._events):
            if producer is not None:
                await producer.stop()

    def _crash(self, error: BaseException) -> None:
        log.critical("the worker stops: %s: %s", type(error).__name__, error, exc_info=error)
        asyncio.ensure_future(self._app.crash(error))  # noqa: RUF006 - the app keeps it

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crash(error)

    def _replaced(self, reason: str) -> None:
        self.metrics.count("producers_replaced")
        self.health.warn("producer", f"a producer was replaced: {reason}", for_s=NOTED_S)

    def reading_failed(self, error: KafkaError) -> None:
        """The consumer could not do something, and tries again."""
        self.metrics.count("reads_failed", code=code_of(error))
        self._read_failed_s, self._read_failure = time.monotonic(), why(error)

    def _note_misplaced(self) -> None:
        """Records on partitions that are not their keys': a producer has another partitioner than the default."""
        for topic in ("interactions", "requests"):
            misplaced = self.metrics.value("wrong_partition", topic=topic)
            if misplaced > self._misplaced.get(topic, 0):
                self._misplaced[topic] = misplaced
                text = (
                    f"{misplaced:.0f} records of {self._settings.topic(topic)} came on another partition than their key's: "
                    "set the producer's partitioner to murmur2 (librdkafka: partitioner=murmur2_random); see `riffle dlq list`"
                )
                self.health.warn(f"wrong partitions of {topic}", text, for_s=NOTED_S)

    def _covisit_troubles(self) -> list[str]:
        found = [(number, part.state.trouble) for number, part in self.covisits.items()]
        return [f"partition {number} is opened anew: {why(trouble)}" for number, trouble in found if trouble is not None]

    def _reading(self) -> str:
        """Why events and requests cannot be read; empty while they can."""
        trouble = self._app.consumer.trouble
        if trouble is not None:
            return f"the group cannot be followed: {why(trouble)}"
        if time.monotonic() - self._read_failed_s < READING_S:
            return f"events and requests cannot be read: {self._read_failure}"
        return ""

    async def _rejoin(self) -> int:
        """Join the group again; returns the generation in which partitions were then opened."""
        before = self._assignments
        await self._app.consumer.rejoin()
        until = time.monotonic() + REJOIN_S
        while self._assignments == before or not self._settled.is_set():
            if time.monotonic() > until:
                return -1
            await asyncio.sleep(REJOIN_LOOK_S)
        return self._generation

    def _made_anew(self, topics: frozenset[str]) -> None:
        """These topics have other contents now, whatever their length: what was read of them counts for nothing."""
        for part in self.ownership.parts():
            if topics & {part.state.source, part.state.changelog} and part.state.ready.is_set():
                which = " and ".join(sorted(topics & {part.state.source, part.state.changelog}))
                message = f"{which} was made anew: the partition is opened again, and lacks nothing that the other topic holds"
                self.recovery.failed(part, NotReady("not_ready", message))
        if self._reader is not None:
            self._reader.read_again(topics)
        self._looking = asyncio.create_task(self._look_again(anew=self._settings.topic("requests") in topics))

    async def _begin_requests_anew(self) -> None:
        """Read the requests topic from its beginning: what is committed, and what would be committed next, is of the old."""
        topic = self._settings.topic("requests")
        if self.recommend is not None:
            for number in range(self._settings.partitions):
                self.recommend.forget(number)
        await self._app.consumer.commit_offsets({TP(topic, number): 0 for number in range(self._settings.partitions)})
        await self._app.consumer.rejoin()

    async def _look_again(self, *, anew: bool) -> None:
        try:
            await self._app.consumer.look_again()
            if anew:
                await self._begin_requests_anew()
        except KafkaError as error:
            log.info("metadata cannot be asked for now: %s", why(error))

    def _begun(self, begins: Mapping[tuple[str, int], int]) -> None:
        """Source partitions begin at these offsets: whether records were deleted before they were applied."""
        for part in self.ownership.parts():
            state, before = part.state, part.state.missing
            begin = begins.get((state.source, part.partition))
            if begin is not None and state.ready.is_set():
                state.look_into(begin)
            if state.missing and state.missing != before:
                known = before[1] if before else state.missing[0]
                self.ownership.count_missing(part, state.missing[1] - known)
        missing = [
            f"{part.state.source}-{part.partition}: records {part.state.missing[0]} to {part.state.missing[1] - 1}"
            for part in self.ownership.parts()
            if part.state.missing
        ]
        text = "deleted before they were applied, so the tables lack what they said: "
        self.health.set("events_missing", text + "; ".join(missing) if missing else "")

    async def assigned(self, partitions: set[TP]) -> None:
        """Open what is new among the assigned partitions, keep what came back, let go of the rest."""
        self._assignments += 1
        users, covisits = (
            {tp.partition for tp in partitions if tp.topic == self._settings.topic(name)}
            for name in ("interactions", "covisits")
        )
        # not awaited: while a long restore held the assignment, the group would hear no heartbeat and give the worker up
        restoring = self._restore(users, covisits, self._assignments, self._app.consumer_generation_id)
        self._restoring = [task for task in self._restoring if not task.done()] + [asyncio.create_task(restoring)]

    async def _restore(self, users: set[int], covisits: set[int], number: int, generation: int) -> None:
        """Own these partitions; chunks wait until then. An assignment that another one has followed is left to that one."""
        back_off = BackOff(FIRST_S, MOST_S)
        while True:
            try:
                async with self._taking:
                    if number != self._assignments:
                        return
                    await self.ownership.take(users, covisits, self._app.holding.standby)
                    self.health.clear("assignment")
                    break
            except Exception as error:
                if not heals(error):
                    self._crash(error)
                    return
                log.warning("partitions cannot be taken now: %s", why(error))
                self.health.warn("assignment", why(error))
                await asyncio.sleep(back_off.failed())
        if number == self._assignments:
            self._generation = generation
            self._settled.set()
            if self.ownership.troubled():
                self.recovery.due.set()

    async def apply(self, parts: Mapping[int, UserPartition | CovisitPartition], chunk: Chunk) -> None:
        """Have a chunk applied after those of its partition that came before; returns when another one may be.

        It is applied to its end, whoever is cancelled meanwhile: half a chunk must not be left behind. One of an earlier
        generation is dropped, because it is read again.
        """
        lane = chunk.topic, chunk.partition
        while lane in self._applying or len(self._applying) >= APPLIED_AT_ONCE:
            await asyncio.wait(self._applying.values(), return_when=asyncio.FIRST_COMPLETED)
        task = self._applying[lane] = asyncio.create_task(self._apply(parts, chunk))

        def done(task: asyncio.Task[None]) -> None:
            del self._applying[lane]
            self._ended(task)

        task.add_done_callback(done)

    async def _apply(self, parts: Mapping[int, UserPartition | CovisitPartition], chunk: Chunk) -> None:
        while True:
            await self._settled.wait()
            if self._broken or self._stopping.is_set():
                return
            part = parts.get(chunk.partition)
            if part is None or chunk.generation < max(self._generation, part.state.from_generation):
                self.metrics.count("chunks_dropped", reason="earlier generation")
                return
            if not part.state.ready.is_set():
                self.metrics.count("chunks_dropped", reason="partition in trouble")
                return  # it is read again once the partition is open
            if part.full:
                try:
                    await part.flush()  # what is not durable stays bounded, also when events come faster than flushes
                except Exception as error:
                    if not heals(error):
                        raise
                    self.recovery.failed(part, error)
                    continue
            if isinstance(part, UserPartition):
                await part.look_up(chunk)
            try:
                async with part.state.changing():
                    due = max(self._generation, part.state.from_generation)
                    still_mine = parts.get(chunk.partition) is part and chunk.generation >= due
                    usable = still_mine and part.state.ready.is_set()
                    if not usable or self._broken or self._stopping.is_set() or not self._settled.is_set():
                        continue  # a rebalance began while this waited, or the end
                    self._applied += len(chunk) >= BUSY_CHUNK
                    self._taken_in += len(chunk)
                    await part.apply(chunk)
            except BaseException as error:
                # half applied: nothing of it may become durable, and no later chunk may be applied over it
                if isinstance(error, RiffleError) and heals(error):
                    self.recovery.failed(part, error)
                    return
                self._broken = True
                raise
            return

    async def revoked(self, partitions: set[TP]) -> None:
        """Flush, and answer what can be answered, before another worker may open these partitions; `assigned` closes them."""
        self._settled.clear()
        if self.recommend is not None:
            await self.recommend.drain()
        await self.flush()
        for tp in partitions:
            if tp.topic == self._settings.topic("requests") and self.recommend is not None:
                self.recommend.forget(tp.partition)

    async def flush(self, *, now: bool = True) -> None:
        """Make everything applied durable, and commit what requests are answered.

        Without `now` neighbours may wait, and partitions begin one after the other over the commit interval: each holds up the
        event loop for some milliseconds when its rows are listed, all at once would hold up requests for a tenth of a second.
        """
        if self._broken:
            return
        parts = [part for part in self.ownership.parts() if part.state.ready.is_set()]
        step = 0.0 if now else SPREAD * self._settings.commit_interval_s / max(len(parts), 1)
        ends = await asyncio.gather(
            *(self._flush_part(part, n * step, now=now) for n, part in enumerate(parts)), return_exceptions=True
        )
        for part, end in zip(parts, ends, strict=True):
            if isinstance(end, BaseException):
                if not isinstance(end, Exception) or not heals(end):
                    raise end
                if self.ownership.parts().count(part):
                    self.recovery.failed(part, end)
        for number, part in self.users.items():
            changed, erased = part.take_flushed()
            for user in erased:
                self._mirror.remove(user)
                self._changed.pop(user, None)
            if len(self._changed) < MIRROR_CAPACITY:
                self._changed.update(dict.fromkeys(changed, number))
            else:
                self.metrics.count("mirror_dropped", len(changed))
        if self.recommend is not None and (answered := self.recommend.committable()):
            topic = self._settings.topic("requests")
            try:
                await self._app.consumer.commit_offsets({TP(topic, p): offset for p, offset in answered.items()})
            except KafkaError as error:
                # the next flush commits them; until then a restart would answer them again
                self.metrics.count("commits_failed", code=code_of(error))
                self.health.warn("commits", f"answered requests cannot be committed: {why(error)}", for_s=NOTED_S)

    async def _flush_part(self, part: UserPartition | CovisitPartition, wait_s: float, *, now: bool) -> None:
        if not now:
            await asyncio.sleep(wait_s)
            if self._app.rebalancing or not self._settled.is_set() or not part.state.ready.is_set():
                return  # whoever takes, lets go of or opens partitions flushes them
        if isinstance(part, UserPartition):
            await part.flush()
        else:
            await part.flush(now=now)

    async def _mirror_forever(self) -> None:
        """Queue summaries of changed people, a few at a time, so that a replay does not hold up requests."""
        while True:
            await asyncio.sleep(MIRROR_INTERVAL_S)
            most = MIRRORED_WHEN_BUSY if self._applied else MIRRORED_AT_ONCE
            self._applied = 0
            for user in list(islice(self._changed, most)):
                part = self.users.get(self._changed.pop(user))
                if part is None or not part.state.ready.is_set():
                    continue
                try:
                    record = part.lookup([user])[0]
                except RiffleError:
                    continue  # a damaged block, which the watch will find
                if record is None:
                    self._mirror.remove(user)
                else:
                    self._mirror.put(user, {"user_id": user, **summary(record, self.items)})
            for outcome, n in self._mirror.counters.items():
                self.metrics.gauge("mirrored_users", n, outcome=outcome)

    async def _archive_forever(self) -> None:
        """Archive; a failure is counted and retried from the last durable file, and serving goes on."""
        while True:
            try:
                self._archiver = await asyncio.to_thread(_archiver, self._settings, self._registry)
                self._archiver.counters = self._archived
                await self._archiver.run()
            except Exception as error:
                log.exception("the archive failed; it is tried again in %.0f s", ARCHIVE_RETRY_S)
                self.metrics.count("archive_failures")
                text = why(error) if heals(error) or isinstance(error, RiffleError) else f"{type(error).__name__}: {error}"
                self.health.warn("archive", f"the archive stands still: {text}", for_s=ARCHIVE_RETRY_S * 3)
                self._archiver = None
                await asyncio.sleep(ARCHIVE_RETRY_S)
            else:
                return

    async def _give_back_forever(self) -> None:
        while True:
            await asyncio.sleep(GIVE_BACK_S)
            await asyncio.to_thread(give_back)

    async def _look_for_the_broker(self) -> None:
        """Whether any bootstrap server answers, for readiness: what needs the broker fails while none does."""
        assert self.service is not None
        while True:
            found = False
            for server in self._settings.bootstrap_servers.split(","):
                host, _, port = server.rpartition(":")
                if await answers(host.strip("[]"), int(port), WATCH_INTERVAL_S):
                    found = True
                    break
            self.service.broker = found
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def _watch_forever(self) -> None:
        """Notice partitions that have work waiting and stand still. An unreachable broker is no fault of this worker."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for what, n in self._archived.items():
                self.metrics.gauge("archived", n, what=what)
            if self._archiver is not None and (text := self._archiver.standing()):
                self.health.warn("archive", f"the archive stands still: {text}", for_s=2 * WATCH_INTERVAL_S)
            for part in self.ownership.parts():
                if part.state.store.damaged and part.state.trouble is None:
                    message = f"a damaged block was met in {part.state.store.folder}: it is rebuilt from the changelog"
                    error = StoreCorrupt("store_unreadable", message)
                    part.state.spoil(error)
                    self.recovery.failed(part, error)
            if self.ownership.standby.damaged():
                self.recovery.due.set()  # joining the group again makes damaged copies anew
            if self._app.consumer.over:
                self._crash(NotReady("not_ready", "the consumer's tasks have ended"))
                return
            self.health.set("reading", self._reading())
            self.health.set("covisits", "; ".join(self._covisit_troubles()))
            if self._registry is not None and self._probe is not None:
                # one that nobody needed lately is asked, too; by another client, so that records wait as long as ever
                await self._probe.ready({NO_SCHEMA}, 0.0)
                self.health.set("registry", self._registry.trouble() or self._probe.trouble())
            self._note_misplaced()
            try:
                progress = await asyncio.wait_for(self._app.consumer.progress(), WATCH_TIMEOUT_S)
            except TimeoutError:
                self._watchdog.observe("the consumer's thread", None, waiting=True)
                continue
            except Exception as error:
                log.warning("where reading stands is not known: %s", error)
                continue
            for tp, at in progress.items():
                self._observe(tp, at)
                self.metrics.gauge("lag", at.end - at.position, topic=tp.topic, partition=str(tp.partition))
            self._watchdog.keep({f"{tp.topic}-{tp.partition}" for tp in progress})

    def _observe(self, tp: TP, at: Progress) -> None:
        tables: dict[str, Mapping[int, UserPartition | CovisitPartition]] = {
            self._settings.topic("interactions"): self.users,
            self._settings.topic("covisits"): self.covisits,
        }
        part = tables.get(tp.topic, {}).get(tp.partition)
        waiting, mark = at.end > at.position, (at.position, at.delivered, -1, -1)
        if part is not None and not part.state.ready.is_set():
            waiting = False  # being restored, which may take its time
        elif part is not None:
            state = part.state
            waiting |= (at.delivered or 0) > state.applied + 1 or state.applied > state.durable
            mark = (at.position, at.delivered, state.applied, state.durable)
        self._watchdog.observe(f"{tp.topic}-{tp.partition}", mark, waiting=waiting)

    async def _flush_forever(self) -> None:
        interval = self._settings.commit_interval_s
        seconds = (1 - SPREAD) * interval
        while not self._stopping.is_set():
            before = self._taken_in
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), seconds)
            backlog = self._taken_in - before > BACKLOG_PER_S * seconds
            seconds = (BACKLOG_INTERVALS - SPREAD if backlog else 1 - SPREAD) * interval
            if self._app.rebalancing or self._stopping.is_set():
                continue
            try:
                await self.flush(now=False)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._crash(error)
                return


def _registry(settings: Settings) -> Registry | None:
    if not settings.registry_url:
        return None
    # its client alone takes half a second to import
    from schemas.registry import ConfluentRegistry

    return ConfluentRegistry.at(settings.registry_url)


def _archiver(settings: Settings, registry: Registry | None) -> Archiver:
    # so does what writes Parquet, and nothing that answers needs it
    from streams.archive.archiver import Archiver

    return Archiver(settings, registry)


# Faust's index page says OK of a worker without having looked
Web.production_blueprints = ()


class RiffleApp(ChunkedApp):
    """The Faust app with Riffle's parts in its life cycle."""

    worker: Worker

    async def on_start(self) -> None:
        """Start the parts before Faust's consumer joins the group."""
        await super().on_start()
        await self.worker.start()
        assert self.worker.service is not None
        attach(self.web.web_app, self.worker.service)
        # because Faust's own has aiohttp's limits, and its errors are plain text
        self.web._runner = Runner(self.web.web_app, self.worker.metrics)

    async def on_stop(self) -> None:
        """Flush while the consumer still owns its partitions; end by force when that takes too long, which costs no data."""
        faulthandler.dump_traceback_later(self.worker.stop_timeout_s, exit=True)
        # no more chunks: what arrives from here on is read again by the next owner
        self.consumer.stop_flow()
        self.flow_control.suspend()
        self.flow_control.clear()
        try:
            if not self.crashed:
                await self.worker.flush()
        finally:
            await self.worker.stop()
            await super().on_stop()


def create_app(settings: Settings) -> RiffleApp:
    """The worker that `settings` describe, with its agents registered."""
    app: RiffleApp = RiffleApp.create(settings)
    worker = app.worker = Worker(settings, app)
    app.holding = HoldingAssignor(worker.ownership.held, settings.standbys, settings.partitions)
    app.on_reading_failed = worker.reading_failed

    def topic(name: str) -> Any:
        return app.topic(settings.topic(name), key_serializer="raw", value_serializer="raw")

    @app.agent(topic("interactions"), name="riffle.features")
    async def features(stream: Any) -> None:
        async for chunk in stream:
            await worker.apply(worker.users, chunk)

    @app.agent(topic("covisits"), name="riffle.neighbours")
    async def neighbours(stream: Any) -> None:
        async for chunk in stream:
            await worker.apply(worker.covisits, chunk)

    @app.agent(topic("requests"), name="riffle.recommend")
    async def recommend(stream: Any) -> None:
        async for chunk in stream:
            assert worker.recommend is not None
            try:
                await worker.recommend.on_chunk(chunk)
            except Exception:
                log.exception("requests at %s-%d up to %d failed", chunk.topic, chunk.partition, chunk.last_offset)
                worker.metrics.count("request_chunks_failed")

    @app.on_partitions_assigned.connect
    async def assigned(_app: Any, assigned: set[TP], **_kwargs: Any) -> None:
        await worker.assigned(assigned)

    @app.on_partitions_revoked.connect
    async def revoked(_app: Any, revoked: set[TP], **_kwargs: Any) -> None:
        await worker.revoked(revoked)

    return app
