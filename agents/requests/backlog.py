"""The queue of requests that wait for the pipeline. A request that cannot be answered in time is rejected at once.

A late answer is useless and delays the next requests. The backlog therefore estimates the duration of batches, and lowers the
effort of a batch while more requests wait than can be answered in good time with more effort. It rejects a request on arrival
if even with the least effort the requests before it leave too little time, or later, if these take longer than expected. The
size of a batch is limited by its most urgent request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from agents.requests.costs import Costs
from models.pipeline.effort import Effort

__all__ = ["Backlog", "Batch", "ReplyLatency"]

T = TypeVar("T")


OPTIMISM = 0.5
"Fraction of the expected time in which earlier requests may be done. A request that would be late even then is rejected."


class ReplyLatency:
    """Upper estimate of the seconds from an answer to its acknowledgement.

    It follows recent highs, because a median would miss half of the deadlines. The excess over `least_s` halves every `HALF_S`
    seconds, so that no request is rejected because of a past burst.
    """

    HALF_S = 0.5

    def __init__(
        self, clock: Callable[[], float], least_s: float = 0.01, most_s: float = 0.1, expected_s: float = 0.08
    ) -> None:
        """`clock`: seconds, never set back. `least_s` and `most_s` bound the estimate. `expected_s` is the estimate before the
        first answer, because a worker's first answers to a broker take that long."""
        self._clock = clock
        self._least_s, self._most_s = least_s, most_s
        self._above_s, self._at = min(max(expected_s, least_s), most_s) - least_s, clock()
        self._known = False

    @property
    def seconds(self) -> float:
        """Return the estimate for an answer that is sent now."""
        faded = math.exp2(-(self._clock() - self._at) / self.HALF_S) if self._known else 1.0
        return self._least_s + self._above_s * faded

    def learn(self, seconds: float) -> None:
        """Update the estimate with an answer that took `seconds`."""
        before = self.seconds
        share = 0.5 if seconds > before else 0.02
        now = min(max(before + share * (seconds - before), self._least_s), self._most_s)
        self._above_s, self._at, self._known = now - self._least_s, self._clock(), True


GOOD_TIME = 0.5
"Fraction of a request's remaining time in which it should be answered. Effort that takes longer is lowered."
PROBES = 32
"Number of waiting requests that are looked at to choose the effort."


@dataclass(slots=True)
class _Waiting(Generic[T]):
    entry: T
    deadline: float
    near: bool
    "Whether the answer does not go over Kafka, so that no time is reserved for the reply."
    came: float


@dataclass(slots=True)
class Batch(Generic[T]):
    """Requests to answer together, and with how much effort."""

    entries: list[T]
    effort: Effort
    started: float

    def __len__(self) -> int:
        return len(self.entries)


class Backlog(Generic[T]):
    """First in, first out, with deadlines on `clock` (seconds). Several batches may be under way; each ends with `done`."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        most: int,
        batch: int,
        reply: ReplyLatency | None = None,
        batch_s: float = float("inf"),
    ) -> None:
        """`most`: maximum number of waiting requests. `batch` and `batch_s`: maximum size of a batch, and its maximum expected
        duration in seconds. `reply`: estimate of the time to reserve for the reply."""
        self._batch_s = batch_s
        self._clock = clock
        self._most = most
        self._batch = batch
        self.reply = reply or ReplyLatency(clock)
        self._waiting: deque[_Waiting[T]] = deque()
        self.costs = Costs()
        self._under_way: list[Batch[T]] = []
        self._ended = float("-inf")
        "When a batch ended last."

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Whether no request waits and no batch is under way."""
        return not self._waiting and not self._under_way

    @property
    def alone(self) -> bool:
        """Whether one batch is under way and no request waits."""
        return not self._waiting and len(self._under_way) == 1

    def seconds(self, *, near: bool = False) -> float:
        """Return the expected seconds until a request that arrives now is answered. `near`: not answered over Kafka."""
        cost = self._busy(self._clock()) + self.costs.of(Effort.FULL, len(self._waiting) + 1, self._batch)
        return cost + (0.0 if near else self.reply.seconds)

    def _busy(self, now: float) -> float:
        """Return the expected seconds until the batches under way are done."""
        expected = sum(self.costs.of(batch.effort, len(batch), self._batch) for batch in self._under_way)
        since = max([self._ended, *(batch.started for batch in self._under_way[:1])])
        return max(expected - (now - since), 0.0) if expected else 0.0

    def offer(self, entry: T, deadline: float, *, near: bool = False) -> bool:
        """Queue a request. Returns False if it cannot be answered by `deadline`, or if too many wait."""
        if len(self._waiting) >= self._most:
            return False
        now, least = self._clock(), max(Effort)
        before = OPTIMISM * (self._busy(now) + self.costs.of(least, len(self._waiting), self._batch))
        if now + before + self.costs.of(least, 1, self._batch) + (0.0 if near else self.reply.seconds) > deadline:
            if self.idle:
                self.costs.relax()
            return False
        self._waiting.append(_Waiting(entry, deadline, near, now))
        return True

    def _by(self, waiting: _Waiting[T]) -> float:
        """Return by when a request must leave the pipeline."""
        return waiting.deadline - (0.0 if waiting.near else self.reply.seconds)

    def _effort(self, now: float) -> Effort:
        """Return the greatest effort with which waiting requests are expected to be answered in good time."""
        full, n = self.costs.of(Effort.FULL, 1, self._batch), len(self._waiting)
        if n == 1 and full <= GOOD_TIME * (self._by(self._waiting[0]) - now):
            return Effort.FULL
        waiting, probed = list(self._waiting), {n - 1, *range(0, n, -(-n // PROBES))}
        # what has too little time of its own, whatever waits before it, says nothing about the load
        left = [(n, self._by(waiting[n]) - now) for n in probed if GOOD_TIME * (waiting[n].deadline - waiting[n].came) > full]
        for effort in Effort:
            if all(self.costs.of(effort, n + 1, self._batch) <= GOOD_TIME * s for n, s in left if s > 0):
                return effort
        return max(Effort)

    def take(self) -> tuple[Batch[T], list[T]]:
        """Return the next batch, and the requests that can no longer be answered in time."""
        now = self._clock()
        busy = self._busy(now)
        effort = self._effort(now + busy) if self._waiting else Effort.FULL
        one = self.costs.of(effort, 1, self._batch)
        late: list[T] = []
        batch: list[T] = []
        kept: deque[_Waiting[T]] = deque()
        start = now + busy
        end, urgent, full = start, float("inf"), False
        for waiting in self._waiting:
            by = self._by(waiting)
            if not full:
                if not batch and start + one > by:
                    hurried = self._hurried(start, by)
                    if hurried is None:
                        late.append(waiting.entry)
                        continue
                    # alone, so that requests with more time are not degraded for it
                    effort, full = hurried, True
                    batch.append(waiting.entry)
                    end = start + self.costs.of(effort, 1, self._batch)
                    continue
                seconds = self.costs.of(effort, len(batch) + 1, self._batch)
                urgent = min(urgent, by)
                full = len(batch) == self._batch or bool(batch and (seconds > self._batch_s or start + seconds > urgent))
                if not full:
                    batch.append(waiting.entry)
                    end = start + seconds
                    continue
            # a request outside this batch waits for its end; the requests before it may then take half the expected time
            least = max(Effort)
            after = self.costs.of(least, 1, self._batch) + OPTIMISM * self.costs.of(least, len(kept), self._batch)
            if end + after > by:
                late.append(waiting.entry)
            else:
                kept.append(waiting)
        self._waiting = kept
        taken = Batch(batch, effort, now)
        if batch:
            self._under_way.append(taken)
        return taken, late

    def _hurried(self, start: float, by: float) -> Effort | None:
        """Return the greatest effort with which one request is answered by then, None if there is none."""
        return next((effort for effort in Effort if start + self.costs.of(effort, 1, self._batch) <= by), None)

    def done(self, batch: Batch[T]) -> None:
        """Note the end of a batch. Its duration counts from the end of the one before, if that was later than its start."""
        now = self._clock()
        self._under_way.remove(batch)
        self.costs.learn(batch.effort, len(batch), now - max(batch.started, self._ended))
        self._ended = now
        if self.idle and batch.effort > Effort.FULL:
            # nothing waits any more: greater efforts may take less time than they did under load
            self.costs.relax(batch.effort)
