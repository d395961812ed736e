"""Ranking of requests in batches. Each waiting request is answered once, with a slate or an error."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from agents.metrics import Metrics
from agents.partitions.copies import Found
from agents.partitions.users import UserPartition
from agents.requests.backlog import Backlog
from agents.requests.clock import Clock
from models.pipeline.pipeline import CandidatePipeline
from schemas.errors import DeadlineExceeded, NotReady, RiffleError
from schemas.records import Request, Slate

__all__ = ["Pending", "Ranking"]

log = logging.getLogger(__name__)

MAX_BACKLOG = 4_000
"Maximum number of requests that wait for ranking."
MAX_BATCH, BATCH_S = 32, 0.02
"Maximum size of a batch, and its maximum estimated duration in seconds, during which the worker does nothing else."
PAUSE_S, PAUSES = 0.001, 20
"Pause after a batch if more requests wait, in seconds, and the maximum number of pauses, in which other tasks run."


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


class Ranking:
    """The waiting requests, and the pipeline that answers them. `shown` is called with each slate."""

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
        "Set while no request waits for ranking."
        self._idle.set()

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
        """Wait until no request waits for its turn, at most `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)

    async def run(self) -> None:
        """Answer waiting requests batch by batch. Between two batches events and new requests are handled."""
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
                # includes other work in between, because it also delays waiting requests
                self.backlog.cost.learn(len(batch), self._clock() - started)
            if not len(self.backlog):
                await asyncio.sleep(0)

    async def _let_others(self) -> None:
        """Let the event loop receive requests and send answers, until a round of it is idle."""
        for _ in range(PAUSES):
            before = self._clock()
            await asyncio.sleep(PAUSE_S)
            if self._clock() - before < 2 * PAUSE_S:
                return

    def _answer(self, batch: list[Pending]) -> None:
        """Answer each request of a batch exactly once, with a slate or an error."""
        alive: list[Pending] = []
        for pending in batch:
            partition = self._partitions.get(pending.partition)
            if pending.found is None and (partition is None or not partition.state.ready.is_set()):
                self._finish(pending, NotReady("not_ready", "the user's partition is not restored here yet: try again"))
            else:
                alive.append(pending)
        if not alive:
            return
        try:
            users = [p.found.record if p.found else self._partitions[p.partition].lookup([p.request.user_id])[0] for p in alive]
            as_of = [p.found.as_of if p.found else self._partitions[p.partition].as_of for p in alive]
            slates = self._pipeline.run([p.request for p in alive], users, as_of)
        except Exception:
            log.exception("the pipeline failed for %d requests", len(alive))
            for pending in alive:
                self._finish(pending, NotReady("internal", "ranking failed; the worker's log says why"))
            return
        for pending, slate in zip(alive, slates, strict=True):
            degraded = (*slate.degraded, pending.found.degraded) if pending.found else slate.degraded
            degraded = (*degraded, "stale") if pending.stale else degraded
            final = replace(slate, degraded=degraded)
            self._finish(pending, final)
            self._shown(final)

    def _finish(self, pending: Pending, answer: Slate | RiffleError) -> None:
        outcome = answer.code if isinstance(answer, RiffleError) else "degraded" if answer.degraded else "slate"
        self._metrics.requests.add(outcome=outcome)
        self._metrics.request_seconds.observe(self._clock() - pending.came, outcome=outcome)
        pending.reply(answer)
