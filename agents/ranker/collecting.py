"""Collects tasks of many requests and users to batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from agents.metrics import Metrics
from agents.requests.clock import Clock
from agents.requests.rank_records import Envelope, decode_task, envelope_of
from agents.requests.replies import Address
from models.pipeline.rank_task import RankTask
from schemas.errors import BadEvent
from streams.kafka.chunks import Chunk
from streams.tracing import CONSUMER, Span, Tracing, parent_in

__all__ = ["Collector", "Received"]

log = logging.getLogger(__name__)

MOST_WAITING = 1_000
"Tasks that wait at most. Further ones wait in Kafka, where they count as lag."
MOST_TASKS = 64
"Maximum number of tasks in a batch."


@dataclass(frozen=True, slots=True)
class Received:
    """A task that was read in time."""

    envelope: Envelope
    task: RankTask
    reply: Address | None
    came: float
    "Time of arrival in seconds on the monotonic clock."
    span: Span | None = None
    "The task in its request's trace, if it is traced."


class Collector:
    """A queue of tasks, and the loop that takes batches from it.

    A batch begins when its first task has waited for `wait_s` seconds, or when it is full. Tasks that come while another batch
    is ranked have waited already.
    """

    def __init__(
        self,
        wait_s: float,
        answer: Callable[[Sequence[Received]], Awaitable[None]],
        refuse: Callable[[Envelope, str], Awaitable[None]],
        metrics: Metrics,
        clock: Clock,
        tracing: Tracing | None = None,
    ) -> None:
        """`answer` ranks and answers a batch. `refuse` answers a task that cannot be read, with the reason."""
        self._wait_s = wait_s
        self._answer = answer
        self._refuse = refuse
        self._tracing = tracing
        self._metrics = metrics
        self._clock = clock
        self._queue: deque[Received] = deque()
        self._work, self._room, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._full = asyncio.Event()
        self._room.set()
        self._idle.set()
        self.busy_since: float | None = None
        "When the batch under way began, on the monotonic clock; None if none is."

    async def take_in(self, chunk: Chunk) -> None:
        """Queue the tasks of a chunk that may still be answered; waits while too many wait."""
        for headers, value in zip(chunk.headers, chunk.values, strict=True):
            envelope = envelope_of(headers)
            if envelope is None:
                self._metrics.ranked.add(outcome="unaddressed")
                continue
            if self._clock.wall() * 1e3 >= envelope.answer_by_ms:
                self._metrics.ranked.add(outcome="late")
                continue
            try:
                task, reply = decode_task(value, envelope.version)
            except BadEvent as exc:
                log.warning("a task is refused: %s", exc)
                await self._refuse(envelope, exc.code)
                continue
            await self._room.wait()
            span = None
            if self._tracing is not None:
                span = self._tracing.begin(
                    "rank", CONSUMER, parent_in(headers), {"request_id": task.request.request_id}, root=False
                )
            self._queue.append(Received(envelope, task, reply, self._clock.monotonic(), span))
            self._idle.clear()
            self._work.set()
            if len(self._queue) >= MOST_TASKS:
                self._full.set()
            if len(self._queue) >= MOST_WAITING:
                self._room.clear()

    async def run(self) -> None:
        """Answer batch by batch, until cancelled."""
        while True:
            await self._work.wait()
            await self._gathered()
            batch = [self._queue.popleft() for _ in range(min(len(self._queue), MOST_TASKS))]
            self._room.set()
            self.busy_since = self._clock.monotonic()
            try:
                await self._answer(batch)
            except Exception:
                log.exception("a batch of %d tasks failed", len(batch))
            finally:
                self.busy_since = None
            if not self._queue:
                self._work.clear()
                self._idle.set()

    async def _gathered(self) -> None:
        """Wait until the first task has waited long enough, or the batch is full."""
        left_s = self._queue[0].came + self._wait_s - self._clock.monotonic()
        if len(self._queue) < MOST_TASKS and left_s > 0:
            self._full.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._full.wait()

    async def idle(self, timeout_s: float) -> bool:
        """Wait until all queued tasks are answered; returns whether that is so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
