"""The queue of requests that wait for the pipeline. A request that cannot be answered in time is rejected at once.

A late answer is useless and delays the next requests. The backlog therefore estimates the duration of batches. It rejects a
request on arrival if the requests before it leave too little time, or later, if these take longer than expected. The size of a
batch is limited by its most urgent request.
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
        """Update the estimate with a batch of n that took `seconds`."""
        error = (seconds - self.fixed_s - n * self.each_s) * self.step / (1 + n * n)
        self.fixed_s = max(self.fixed_s + error, 0.0002)
        self.each_s = max(self.each_s + n * error, 0.00002)

    def relax(self) -> None:
        """Lower the estimate, so that a request is tried again; otherwise a wrong estimate would never be corrected."""
        self.fixed_s *= 0.8
        self.each_s *= 0.8


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


@dataclass(slots=True)
class _Waiting(Generic[T]):
    entry: T
    deadline: float
    near: bool
    "Whether the answer does not go over Kafka, so that no time is reserved for the reply."


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
        """`most`: maximum number of waiting requests. `batch` and `batch_s`: maximum size of a batch, and its maximum duration
        in seconds, because ranking blocks the worker. `reply`: estimate of the time to reserve for the reply."""
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
        """Return the expected seconds until a request that arrives now is answered. `near`: not answered over Kafka."""
        return self.cost.of(len(self._waiting) + 1, self._batch) + (0.0 if near else self.reply.seconds)

    def offer(self, entry: T, deadline: float, *, near: bool = False) -> bool:
        """Queue a request. Returns False if it cannot be answered by `deadline`, or if too many wait."""
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
        """Return the next batch, and the requests that can no longer be answered in time."""
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
            # a request outside this batch waits for its end; the requests before it may then take half the expected time
            if end + one + OPTIMISM * self.cost.of(len(kept), self._batch) > by:
                late.append(waiting.entry)
            else:
                kept.append(waiting)
        self._waiting = kept
        return batch, late
