"""Requests that wait for the pipeline. One that cannot be answered in time is rejected at once.

A late answer helps nobody and costs the next request its time. So the backlog learns how long batches take. It rejects a
request on arrival when those before it leave too little time, or later, when they take longer than expected. A batch is no
larger than its most urgent request allows.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Backlog", "Cost", "ReplyLatency"]

T = TypeVar("T")


@dataclass(slots=True)
class Cost:
    """Seconds that a batch of n takes: `fixed_s + n * each_s`, followed by a normalised gradient step (Widrow & Hoff 1960)."""

    fixed_s: float = 0.004
    each_s: float = 0.001
    step: float = 0.2

    def of(self, n: int, batch: int) -> float:
        """Expected seconds for n requests in batches of at most `batch`."""
        return -(-n // batch) * self.fixed_s + n * self.each_s

    def learn(self, n: int, seconds: float) -> None:
        """A batch of n took `seconds`."""
        error = (seconds - self.fixed_s - n * self.each_s) * self.step / (1 + n * n)
        self.fixed_s = max(self.fixed_s + error, 0.0002)
        self.each_s = max(self.each_s + n * error, 0.00002)

    def relax(self) -> None:
        """Expect less, so that a request is tried again: costs that are never tried are never learned."""
        self.fixed_s *= 0.8
        self.each_s *= 0.8


OPTIMISM = 0.5
"Share of the expected time in which those before a request might be done. A request that would be late even then is rejected."


class ReplyLatency:
    """Upper estimate of the seconds from an answer to its acknowledgement.

    It follows recent highs, because a median would miss half of the deadlines. What exceeds `least_s` halves every `HALF_S`
    seconds, so that no request is rejected because of a burst that is over.
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
        """Estimate for an answer that leaves now."""
        faded = math.exp2(-(self._clock() - self._at) / self.HALF_S) if self._known else 1.0
        return self._least_s + self._above_s * faded

    def learn(self, seconds: float) -> None:
        """An answer took `seconds`."""
        before = self.seconds
        share = 0.5 if seconds > before else 0.02
        now = min(max(before + share * (seconds - before), self._least_s), self._most_s)
        self._above_s, self._at, self._known = now - self._least_s, self._clock(), True


@dataclass(slots=True)
class _Waiting(Generic[T]):
    entry: T
    deadline: float
    near: bool
    "Its answer does not go over Kafka, so `reply` is no part of its time."


class Backlog(Generic[T]):
    """First in, first out, with deadlines on `clock` (seconds)."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        most: int,
        batch: int,
        reply: ReplyLatency | None = None,
        batch_s: float = float("inf"),
    ) -> None:
        """`most`: requests that may wait. `batch`: requests ranked together at most, and `batch_s`: seconds that they may take,
        because nothing else happens meanwhile. `reply`: estimate of the time that is kept back for the reply."""
        self._batch_s = batch_s
        self._clock = clock
        self._most = most
        self._batch = batch
        self.reply = reply or ReplyLatency(clock)
        self._waiting: deque[_Waiting[T]] = deque()
        self.cost = Cost()

    def __len__(self) -> int:
        return len(self._waiting)

    def seconds(self, *, near: bool = False) -> float:
        """Expected seconds until a request that comes now is answered. `near`: its answer does not go over Kafka."""
        return self.cost.of(len(self._waiting) + 1, self._batch) + (0.0 if near else self.reply.seconds)

    def offer(self, entry: T, deadline: float, *, near: bool = False) -> bool:
        """Let a request wait. Returns False when it cannot be answered by `deadline`, or too many wait."""
        if len(self._waiting) >= self._most:
            return False
        before = OPTIMISM * self.cost.of(len(self._waiting), self._batch)
        if self._clock() + before + self.cost.of(1, self._batch) + (0.0 if near else self.reply.seconds) > deadline:
            if not self._waiting:
                self.cost.relax()
            return False
        self._waiting.append(_Waiting(entry, deadline, near))
        return True

    def take(self) -> tuple[list[T], list[T]]:
        """The next batch, and the requests that can no longer be answered in time."""
        now, way, one = self._clock(), self.reply.seconds, self.cost.of(1, self._batch)
        late: list[T] = []
        batch: list[T] = []
        kept: deque[_Waiting[T]] = deque()
        end, urgent, full = now, float("inf"), False
        for waiting in self._waiting:
            by = waiting.deadline - (0.0 if waiting.near else way)
            if not full:
                seconds = self.cost.of(len(batch) + 1, self._batch)
                if not batch and now + one > by:
                    late.append(waiting.entry)
                    continue
                urgent = min(urgent, by)
                full = len(batch) == self._batch or bool(batch and (seconds > self._batch_s or now + seconds > urgent))
                if not full:
                    batch.append(waiting.entry)
                    end = now + seconds
                    continue
            # a request that is not in this batch waits for its end; those before it may then take half as long as expected
            if end + one + OPTIMISM * self.cost.of(len(kept), self._batch) > by:
                late.append(waiting.entry)
            else:
                kept.append(waiting)
        self._waiting = kept
        return batch, late
