"""Ranking of requests in batches: each that waits for its turn is answered once, with a slate or an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agents.metrics import Metrics
from agents.partitions.users import UserPartition
from agents.requests.backlog import Backlog
from agents.requests.clock import Clock
from models.pipeline.pipeline import CandidatePipeline
from schemas.errors import DeadlineExceeded, NotReady, RiffleError
from schemas.records import Request, Slate

__all__ = ["Pending", "Ranking"]

log = logging.getLogger(__name__)

MAX_BACKLOG = 4_000
"Requests that may wait for ranking at once."
MAX_BATCH, BATCH_S = 32, 0.02
"Requests ranked together, and for how long the worker may do nothing else, as far as it can be estimated beforehand."
PAUSE_S, PAUSES = 0.001, 20
"After a batch with more behind it: what else is ready has its turn first, for so many rounds of the event loop at most."


@dataclass(slots=True)
class Pending:
    """A request that is to be answered by `reply`, which is called once."""

    request: Request
    partition: int
    deadline: float
    "On the monotonic clock, in seconds."
    reply: Callable[[Slate | RiffleError], None]
    came: float
    "When it was taken in, on the monotonic clock, in seconds."
    stale: bool = False
    "The event of its token is not applied."
    near: bool = False
    "Asked over this worker's own HTTP interface."


class Ranking:
    """Requests that wait for their turn, and the pipeline that answers them. `shown` is called with each slate."""

    def __init__(
        self,
        pipeline: CandidatePipeline,
        partitions: Mapping[int, UserPartition],
        metrics: Metrics,
        clock: Clock,
        shown: Callable[[Slate], None],
    ) -> None:
        self._pipeline = pipeline
        self._partitions = partitions
        self._metrics = metrics
        self._clock = clock.monotonic
        self._shown = shown
        self.backlog: Backlog[Pending] = Backlog(self._clock, most=MAX_BACKLOG, batch=MAX_BATCH, batch_s=BATCH_S)
        self._work = asyncio.Event()
        "Set while requests wait for ranking."
        self._idle = asyncio.Event()
        "Set while none does."
        self._idle.set()

    def submit(self, pending: Pending) -> None:
        """Have a request answered in its turn, or at once with an error when its turn would come too late."""
        if self.backlog.offer(pending, pending.deadline, near=pending.near):
            self._work.set()
            self._idle.clear()
        else:
            waiting, expected_ms = len(self.backlog), self.backlog.seconds(near=pending.near) * 1e3
            message = f"{waiting} requests wait, an answer takes {expected_ms:.0f} ms: too long for this deadline"
            self._finish(pending, DeadlineExceeded("deadline_exceeded", message))

    async def idle(self, timeout_s: float) -> None:
        """Wait until no request waits for its turn, for `timeout_s` seconds at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def run(self) -> None:
        """Answer what waits, a batch at a time; between two batches events and other requests have their turn."""
        while True:
            await self._work.wait()
            started = self._clock()
            batch, late = self.backlog.take()
            for pending in late:
                message = "those before it take longer than expected: its turn would come too late"
                self._finish(pending, DeadlineExceeded("deadline_exceeded", message))
            if batch:
                self._answer(batch)
            if len(self.backlog):
                await self._let_others()
            else:
                self._work.clear()
                self._idle.set()
            if batch:
                # with what came between: while requests wait, that too is time they have to expect
                self.backlog.cost.learn(len(batch), self._clock() - started)
            if not len(self.backlog):
                await asyncio.sleep(0)

    async def _let_others(self) -> None:
        """Let requests come in and answers go out, until a round of the event loop has nothing to do."""
        for _ in range(PAUSES):
            before = self._clock()
            await asyncio.sleep(PAUSE_S)
            if self._clock() - before < 2 * PAUSE_S:
                return

    def _answer(self, batch: list[Pending]) -> None:
        """Answer each of a batch, exactly once, with a slate or an error."""
        alive: list[Pending] = []
        for pending in batch:
            partition = self._partitions.get(pending.partition)
            if partition is None or not partition.state.ready.is_set():
                self._finish(pending, NotReady("not_ready", "the user's partition is not restored here yet: try again"))
            else:
                alive.append(pending)
        if not alive:
            return
        try:
            users = [self._partitions[p.partition].lookup([p.request.user_id])[0] for p in alive]
            as_of = [self._partitions[p.partition].as_of for p in alive]
            slates = self._pipeline.run([p.request for p in alive], users, as_of)
        except Exception:
            log.exception("the pipeline failed for %d requests", len(alive))
            for pending in alive:
                self._finish(pending, NotReady("internal", "ranking failed; the worker's log says why"))
            return
        for pending, slate in zip(alive, slates, strict=True):
            degraded = (*slate.degraded, "stale") if pending.stale else slate.degraded
            final = replace(slate, degraded=degraded)
            self._finish(pending, final)
            self._shown(final)

    def _finish(self, pending: Pending, answer: Slate | RiffleError) -> None:
        outcome = answer.code if isinstance(answer, RiffleError) else "degraded" if answer.degraded else "slate"
        self._metrics.requests.add(outcome=outcome)
        self._metrics.request_seconds.observe(self._clock() - pending.came, outcome=outcome)
        pending.reply(answer)
