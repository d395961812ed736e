"""Ranking of requests in batches. Each waiting request is answered once, with a slate or an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from agents.metrics import Metrics
from agents.partitions.copies import Found
from agents.partitions.users import UserPartition
from agents.requests.backlog import Backlog, Batch
from agents.requests.batches import note_batch, note_stages
from agents.requests.clock import Clock
from agents.requests.recent import Recent
from agents.requests.remote import Handed, Remote
from agents.requests.replies import Address
from agents.requests.traced import noted
from agents.web.protocol import Wanted, always
from models.pipeline.driving import Aside, run_aside
from models.pipeline.effort import Effort
from models.pipeline.pipeline import CandidatePipeline
from models.state.users import Users
from schemas.errors import DeadlineExceeded, NotReady, RiffleError
from schemas.records import AsOf, Request, Slate
from streams.tracing import Span

__all__ = ["Pending", "Ranking", "threaded"]

log = logging.getLogger(__name__)

MAX_BACKLOG = 4_000
"Maximum number of requests that wait for ranking."
MAX_BATCH, BATCH_S = 32, 0.03
"Maximum size of a batch, and its maximum expected duration in seconds."
AT_ONCE = 2
"Number of batches under way with a thread: the event loop prepares one while the graphs of the other run."
FEW_CORES = 2.0
"""Number of cores up to which graphs run on the event loop. There a thread waits for a core that another process uses, and its
batch then for the other batch's turn, which takes longer than the graphs (docs/latency.md)."""


def _nothing() -> None:
    pass


async def _here(work: Callable[[], Any]) -> Any:
    return work()


def threaded(graphs: str, available: float) -> bool:
    """Return whether a worker with so many cores runs graphs in a thread, by the setting `graphs`."""
    return graphs == "thread" or (graphs == "auto" and available > FEW_CORES)


@dataclass(slots=True)
class Pending:
    """A request to be answered through `reply`, which is called once."""

    request: Request
    partition: int
    deadline: float
    "Deadline in seconds on the monotonic clock."
    reply: Callable[[Slate | RiffleError], None]
    came: float
    "Time of arrival in seconds on the monotonic clock."
    stale: bool = False
    "Whether the event of its token is not applied."
    near: bool = False
    "Whether it came over this worker's own HTTP interface."
    found: Found | None = None
    "The user's record, if it does not come from the ready owner of the partition."
    wanted: Wanted = always
    "Whether someone still waits for the answer. A slate that nobody receives was not shown."
    address: Address | None = None
    "Destination of the answer to a request over Kafka."
    answered: Callable[[], None] = _nothing
    "Called instead of `reply` if the client has the answer of a ranking process."
    local: bool = False
    "Whether it must be ranked here, because no ranking process did."
    span: Span | None = None
    "The request in its trace, if it is traced."

    @property
    def marks(self) -> tuple[str, ...]:
        """What the slate lacks because of the rows that it comes from."""
        degraded = (self.found.degraded,) if self.found else ()
        return (*degraded, "stale") if self.stale else degraded


class Ranking:
    """The waiting requests, and the pipeline that answers them. `shown` is called with each slate."""

    def __init__(
        self,
        pipeline: CandidatePipeline,
        partitions: Mapping[int, UserPartition],
        metrics: Metrics,
        clock: Clock,
        shown: Callable[[Slate], None],
        aside: Aside | None = None,
        remote: Remote | None = None,
        *,
        threaded: bool = True,
    ) -> None:
        """`threaded`: whether graphs run in a thread of their own and not on the event loop; in one, because more would only
        share the cores. `aside` replaces that thread. `remote`: ranks requests elsewhere as long as it can."""
        self._remote = remote
        self._at_once = AT_ONCE if threaded or aside is not None else 1
        self._promised = 0
        "Number of requests that are prepared to be handed over, for each of which a place is kept."
        self._pipeline = pipeline
        self._partitions = partitions
        self._metrics = metrics
        self._clock = clock.monotonic
        self._shown = shown
        self._thread = ThreadPoolExecutor(1, "ranking") if threaded and aside is None else None
        self._aside = aside or (self._in_thread if threaded else _here)
        self.backlog: Backlog[Pending] = Backlog(self._clock, most=MAX_BACKLOG, batch=MAX_BATCH, batch_s=BATCH_S)
        self.recent = Recent()
        "The newest answered requests."
        self._work = asyncio.Event()
        "Set while requests wait for ranking."
        self._idle = asyncio.Event()
        "Set while no request waits for ranking, and none is being ranked."
        self._idle.set()

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def submit(self, pending: Pending) -> None:
        """Queue a request, or answer it at once with an error if its turn would come too late."""
        if self.backlog.offer(pending, pending.deadline, near=pending.near):
            self._work.set()
            self._idle.clear()
        else:
            waiting, expected_ms = len(self.backlog), self.backlog.seconds(near=pending.near) * 1e3
            message = f"{waiting} requests wait, an answer takes {expected_ms:.0f} ms: too long for this deadline"
            self._finish(pending, DeadlineExceeded("deadline_exceeded", message))

    async def idle(self, timeout_s: float) -> None:
        """Wait until every request is answered, at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def run(self) -> None:
        """Answer waiting requests batch by batch, until cancelled. Meanwhile the event loop handles events and requests."""
        room = asyncio.Semaphore(self._at_once)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                await self._work.wait()
                await room.acquire()
                batch, late = self.backlog.take()
                for pending in late:
                    message = "the requests before it take longer than expected: it would be answered too late"
                    self._finish(pending, DeadlineExceeded("deadline_exceeded", message))
                if len(batch):
                    task = asyncio.create_task(self._answer(batch))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    task.add_done_callback(lambda _: room.release())
                else:
                    room.release()
                if not len(self.backlog):
                    self._work.clear()
                self._rest()
                # the batch begins before the next one is taken, and other tasks run
                await asyncio.sleep(0)
        finally:
            for task in running:
                task.cancel()
            if self._thread is not None:
                self._thread.shutdown(wait=False)

    def _rest(self) -> None:
        if self.backlog.idle and (self._remote is None or not self._remote.requests):
            self._idle.set()

    async def _answer(self, batch: Batch[Pending]) -> None:
        """Answer each request of a batch exactly once, with a slate or an error."""
        began = self._clock()
        try:
            alive = self._alive(batch.entries)
            handed, kept = self._parts(alive, batch.effort)
            self._promised += len(handed)
            try:
                if handed:
                    await self._slates(handed, batch.effort, away=True)
            finally:
                self._promised -= len(handed)
            if kept:
                await self._slates(kept, batch.effort, away=False)
        finally:
            self.backlog.done(batch)
            note_batch(self._metrics, len(batch), self._clock() - began)
            self._rest()

    def _alive(self, entries: Sequence[Pending]) -> list[Pending]:
        """Refuse the requests whose partition is not ready; returns the others."""
        alive: list[Pending] = []
        for pending in entries:
            partition = self._partitions.get(pending.partition)
            if pending.found is None and (partition is None or not partition.state.ready.is_set()):
                self._finish(pending, NotReady("not_ready", "the user's partition is not restored here yet: try again"))
            else:
                alive.append(pending)
        return alive

    def _parts(self, alive: Sequence[Pending], effort: Effort) -> tuple[list[Pending], list[Pending]]:
        """Return the requests that may be handed over, no more than ranking processes have room for, and the others."""
        if self._remote is None:
            return [], list(alive)
        handed: list[Pending] = []
        kept: list[Pending] = []
        expected_s, room = self.backlog.seconds(), self._remote.room - self._promised
        for pending in alive:
            taken = len(handed) < room and self._remote.takes(pending, effort, expected_s)
            (handed if taken else kept).append(pending)
        return handed, kept

    async def _slates(self, alive: Sequence[Pending], effort: Effort, *, away: bool) -> None:
        answered = 0
        try:
            alive, users, as_of = self._read(alive)
            slates = await self._run(alive, users, as_of, effort, away=away)
            note_stages(self._metrics, slates)
            for pending, slate in zip(alive, slates, strict=True):
                answered += 1
                if slate is None:
                    continue  # it was handed over, and is settled by `_settled`
                final = replace(slate, degraded=(*slate.degraded, *pending.marks))
                received = pending.wanted()
                self._finish(pending, final)
                self._show(final, received=received)
        except BaseException as exc:
            if isinstance(exc, Exception):
                log.exception("the pipeline failed for %d requests", len(alive))
            for pending in alive[answered:]:
                self._finish(pending, NotReady("internal", "ranking failed; the worker's log says why"))
            if not isinstance(exc, Exception):
                raise

    def _read(self, alive: Sequence[Pending]) -> tuple[Sequence[Pending], Users, list[AsOf | None]]:
        """Look up the users' records; returns the requests that can go on, the records, and what these reflect.

        A record that cannot be read costs its own request only: it is answered with an error.
        """
        try:
            rows, as_of = self._rows(alive)
            return alive, Users.read(rows), as_of
        except Exception:
            log.warning("a record in a batch of %d cannot be read: each is read alone", len(alive))
        sound: list[Pending] = []
        kept: list[tuple[bytes | None, AsOf | None]] = []
        for pending in alive:
            try:
                (row,), (reflected,) = self._rows([pending])
                Users.read([row])
            except Exception:
                log.exception("a user's record in partition %d cannot be read", pending.partition)
                self._finish(pending, NotReady("internal", "the user's record cannot be read; the worker's log says why"))
            else:
                sound.append(pending)
                kept.append((row, reflected))
        return sound, Users.read([row for row, _ in kept]), [reflected for _, reflected in kept]

    async def _run(
        self, alive: Sequence[Pending], users: Users, as_of: Sequence[AsOf | None], effort: Effort, *, away: bool
    ) -> Sequence[Slate | None]:
        """Run the pipeline: its steps here, and the graphs aside, or the ranker elsewhere. Returns None for what is there."""
        if not alive:
            return []

        async def aside(work: Callable[[], Any]) -> Any:
            # for a request alone, the way to the thread and back takes longer than it saves
            return work() if len(alive) == 1 and self.backlog.alone else await self._aside(work)

        requests = [pending.request for pending in alive]
        if self._remote is None:
            return await run_aside(self._pipeline.steps(requests, users, as_of, effort), aside)
        prepared = await run_aside(self._pipeline.prepare(requests, users, as_of, effort), aside)
        tasks = self._pipeline.handed_over(prepared) if away or self._remote.probes() else None
        if tasks is not None and prepared.queries.model is not None:
            heads = prepared.queries.model.heads
            # also beside requests that other partitions take, or a partition would never be answered again
            self._remote.probe(alive[0], tasks[0], heads)
            if away:
                handed = zip(alive, tasks, strict=True)
                self._remote.send([Handed(p, task, partial(self._settled, p)) for p, task in handed], heads)
                return [None] * len(alive)
        return await run_aside(self._pipeline.complete(prepared), aside)

    def _settled(self, pending: Pending, slate: Slate | None, sent: bool) -> None:
        """End a request that was handed over. `sent`: the client has the slate. Without a slate, rank it here."""
        if slate is None:
            pending.local = True
            self.submit(pending)
        else:
            received = pending.wanted()
            if sent:
                self._count(pending, slate)
                pending.answered()
            else:
                slate = self._pipeline.without_withdrawn(slate)
                self._finish(pending, slate)
            note_stages(self._metrics, [slate])
            self._show(slate, received=received)
        self._rest()

    def _rows(self, alive: Sequence[Pending]) -> tuple[list[bytes | None], list[AsOf | None]]:
        """Return the users' records, looked up with one call for each partition, and what they reflect."""
        places: dict[int, list[int]] = {}
        rows: list[bytes | None] = [None] * len(alive)
        as_of: list[AsOf | None] = [None] * len(alive)
        for place, pending in enumerate(alive):
            if pending.found is None:
                places.setdefault(pending.partition, []).append(place)
            else:
                record, as_of[place] = pending.found.record, pending.found.as_of
                rows[place] = None if record is None else record.encode()
        for number, mine in places.items():
            partition = self._partitions[number]
            for place, row in zip(mine, partition.rows([alive[place].request.user_id for place in mine]), strict=True):
                rows[place], as_of[place] = row, partition.as_of
        return rows, as_of

    def _show(self, slate: Slate, *, received: bool) -> None:
        if received:
            self._shown(slate)
        else:
            self._metrics.sends_failed.add(what="slate", reason="client_left")

    def _count(self, pending: Pending, answer: Slate | RiffleError) -> None:
        outcome = answer.code if isinstance(answer, RiffleError) else "degraded" if answer.degraded else "slate"
        self._metrics.requests.add(outcome=outcome)
        seconds, interface = self._clock() - pending.came, "http" if pending.near else "kafka"
        self._metrics.request_seconds.observe(seconds, outcome=outcome)
        self._metrics.answer_seconds.observe(seconds, interface=interface, outcome=outcome)
        self.recent.note(pending.request, interface, seconds, answer)
        noted(pending.request.request_id, pending.span, answer, outcome, seconds)
        if isinstance(answer, Slate):
            for name in answer.degraded:
                self._metrics.degraded.add(by=name)
            for source, n in Counter(chain.from_iterable([item.sources for item in answer.items])).items():
                self._metrics.slate_items.add(n, source=source)

    def _finish(self, pending: Pending, answer: Slate | RiffleError) -> None:
        self._count(pending, answer)
        try:
            pending.reply(answer)
        except Exception:  # the answers of others must not depend on this one
            log.exception("an answer could not be handed over")
