"""Requests that wait for the pipeline: who can still be answered in time, and who is told so at once that they cannot.

A request that would be late costs the next one its time and helps nobody. So the time that a batch takes is learned, a
request that its predecessors leave no time for is refused when it comes, or as soon as they turn out to take longer than
expected, and a batch is no larger than its most urgent request allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Backlog", "Cost", "Delay"]

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
        """Expect less: what is never tried is never learned."""
        self.fixed_s *= 0.8
        self.each_s *= 0.8


@dataclass(slots=True)
class Delay:
    """Seconds that an answer takes on its way: close to the longest of late, because one in two would be too few in time."""

    seconds: float = 0.02
    least_s: float = 0.01
    most_s: float = 0.1

    def learn(self, seconds: float) -> None:
        """An answer took `seconds`."""
        share = 0.5 if seconds > self.seconds else 0.02
        self.seconds = min(max(self.seconds + share * (seconds - self.seconds), self.least_s), self.most_s)


class Backlog(Generic[T]):
    """First in, first out, with deadlines on `clock` (seconds)."""

    def __init__(
        self, clock: Callable[[], float], *, most: int, batch: int, reply: Delay | None = None, batch_s: float = float("inf")
    ) -> None:
        """`most`: requests that may wait; `batch`: requests ranked together at most, and `batch_s`: for how long, because
        nothing else happens meanwhile; `reply`: kept back for an answer's way."""
        self._batch_s = batch_s
        self._clock = clock
        self._most = most
        self._batch = batch
        self.reply = reply or Delay()
        self._waiting: deque[tuple[T, float]] = deque()
        self.cost = Cost()

    def __len__(self) -> int:
        return len(self._waiting)

    def seconds(self) -> float:
        """What a request that comes now has to expect until it is answered."""
        return self.cost.of(len(self._waiting) + 1, self._batch) + self.reply.seconds

    def offer(self, entry: T, deadline: float) -> bool:
        """Let a request wait; False when it could not be answered by `deadline`, or too many wait."""
        if len(self._waiting) >= self._most:
            return False
        if self._clock() + self.seconds() > deadline:
            if not self._waiting:
                self.cost.relax()
            return False
        self._waiting.append((entry, deadline))
        return True

    def take(self) -> tuple[list[T], list[T]]:
        """The next batch, and those whose turn would now come too late."""
        start = self._clock() + self.reply.seconds
        one, late = self.cost.of(1, self._batch), []
        while self._waiting and start + one > self._waiting[0][1]:
            late.append(self._waiting.popleft()[0])
        size, urgent, end = 0, float("inf"), start
        for _, deadline in self._waiting:
            urgent = min(urgent, deadline)
            seconds = self.cost.of(size + 1, self._batch)
            if size == self._batch or (size and (seconds > self._batch_s or start + seconds > urgent)):
                break
            size, end = size + 1, start + seconds
        batch = [self._waiting.popleft()[0] for _ in range(size)]
        kept: deque[tuple[T, float]] = deque()
        for entry, deadline in self._waiting:
            if end + self.cost.of(len(kept) + 1, self._batch) > deadline:
                late.append(entry)
            else:
                kept.append((entry, deadline))
        self._waiting = kept
        return batch, late
