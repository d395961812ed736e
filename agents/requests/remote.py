"""Ranking of requests by ranking processes: tasks over Kafka, and what becomes of them.

A task is settled once: by an acknowledgement with its slate, by a refusal, or when its time is over. In the last two cases the
worker ranks the request by itself. A process never answers after the task's `answer_by`, and the worker waits longer than that.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from agents.breaker import Breaker
from agents.metrics import Metrics
from agents.requests.clock import Clock
from agents.requests.rank_acks import RankAcks
from agents.requests.rank_pending import LEAST_S, Outstanding, Window
from agents.requests.rank_records import (
    ANSWERED,
    MAX_CANDIDATES,
    OF_VERSION,
    REFUSED,
    TASK,
    Ack,
    Envelope,
    decode_ack,
    encode_task,
    number_of,
)
from agents.requests.replies import Address
from models.pipeline.effort import Effort
from models.pipeline.rank_task import RankTask, slate_of
from schemas.codec import MAX_VALUE_BYTES, Framing, Headers, header_of
from schemas.errors import BadEvent
from schemas.records import Request, Slate
from schemas.settings import Settings
from streams.kafka.native.producer import NativeProducer
from streams.tracing import PRODUCER, TRACEPARENT, Span

__all__ = ["Handed", "Remote", "Settle"]

log = logging.getLogger(__name__)

AT_ONCE = 64
"""Maximum number of this worker's tasks under way on a partition. Further requests are ranked here, so that a process that lags
gets no more than it can catch up with."""

Settle = Callable[[Slate | None, bool], None]
"Is called once, with the slate, or None to rank here; and with whether the client has its answer already."


class Asked(Protocol):
    """The part of `agents.requests.ranking.Pending` that is read here."""

    request: Request
    deadline: float
    address: Address | None
    local: bool
    span: Span | None

    @property
    def marks(self) -> tuple[str, ...]:
        """What the slate lacks because of the rows that it comes from."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A request to be ranked elsewhere. `settle` is None for a copy that only probes."""

    asked: Asked
    task: RankTask
    settle: Settle | None


@dataclass(frozen=True, slots=True)
class _Sent:
    handed: Handed
    task: RankTask
    heads: tuple[str, ...]
    partition: int
    at: float
    span: Span | None


@dataclass(frozen=True, slots=True)
class _Outgoing:
    partition: int
    value: bytes
    headers: Sequence[tuple[str, bytes]]


class Remote:
    """Hands requests over to ranking processes, over any partition that is answered.

    Each partition has a breaker, which is open at first: until a process has answered a probe, no request waits for one.
    """

    def __init__(self, settings: Settings, producer: NativeProducer, metrics: Metrics, clock: Clock) -> None:
        self._topic = settings.topic("rank")
        self._producer = producer
        self._metrics = metrics
        self._clock = clock
        name = uuid.uuid4()
        self._name, self._acks_partition = name.hex.encode(), name.int % settings.partitions
        self.acks = RankAcks(settings, self._acks_partition, self._name, self.on_ack)
        self._breakers = [Breaker(clock.monotonic, closed=False) for _ in range(settings.partitions)]
        self._on = [0] * settings.partitions
        "Number of tasks under way by partition."
        self._outstanding: Outstanding[_Sent] = Outstanding(self._over)
        self.requests = 0
        "Number of requests under way, without probes."
        self.refused = ""
        "Code of the newest refusal, if no task was ranked since."
        self._number = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._gauge()

    def takes(self, asked: Asked, effort: Effort, expected_s: float) -> bool:
        """Return whether a request may be handed over.

        `expected_s`: seconds that ranking here is expected to take, for which there must be time if no process answers.
        """
        if asked.local or effort >= Effort.LIGHT or not self.acks.reading or self._pick() is None:
            return False
        if len(asked.request.candidates or ()) > MAX_CANDIDATES or asked.request.k > MAX_CANDIDATES:
            return False
        left_s = asked.deadline - self._clock.monotonic()
        return left_s >= LEAST_S and left_s - Window.of(left_s).local_s >= expected_s

    @property
    def room(self) -> int:
        """Number of further tasks that may be under way on the partitions that are answered."""
        return sum(
            AT_ONCE - on for on, breaker in zip(self._on, self._breakers, strict=True) if breaker.closed and on < AT_ONCE
        )

    @property
    def away(self) -> int:
        """Number of partitions on which no ranking process answers."""
        return sum(breaker.away for breaker in self._breakers)

    def probes(self) -> bool:
        """Return whether a copy of a task should be sent as a probe now."""
        return self.acks.reading and any(breaker.due for breaker in self._breakers)

    def send(self, handed: Sequence[Handed], heads: tuple[str, ...]) -> None:
        """Send tasks. What cannot be sent is settled at once, to be ranked here. `heads`: names of the ranker's."""
        outgoing: list[_Outgoing] = []
        for one in handed:
            partition = self._pick()
            sent = None if partition is None else self._begin(one, heads, partition)
            if sent is not None:
                outgoing.append(sent)
            elif one.settle is not None:
                self._metrics.rank_tasks.add(outcome="unsent")
                one.settle(None, False)
        self._spawn(outgoing)

    def probe(self, asked: Asked, task: RankTask, heads: tuple[str, ...]) -> None:
        """Send copies of a task to the partitions whose processes did not answer; the request itself is not affected."""
        due = [n for n, breaker in enumerate(self._breakers) if self.acks.reading and breaker.due and breaker.allows()]
        begun = [self._begin(Handed(asked, task, None), heads, partition) for partition in due]
        self._spawn([one for one in begun if one is not None])

    def _pick(self) -> int | None:
        """Return the partition for the next task: of those that are answered, the one with the fewest tasks under way."""
        answered = [n for n, breaker in enumerate(self._breakers) if breaker.closed and self._on[n] < AT_ONCE]
        if not answered:
            return None
        # equal ones in turn
        return min(answered, key=lambda n: (self._on[n], (n - self._number) % len(self._breakers)))

    def _begin(self, one: Handed, heads: tuple[str, ...], partition: int) -> _Outgoing | None:
        """Note a task as under way; returns its record, or None if it has none."""
        self._number += 1
        now = self._clock.monotonic()
        window = Window.of(one.asked.deadline - now)
        task = replace(one.task, degraded=(*one.task.degraded, *one.asked.marks))
        address = one.asked.address if one.settle is not None else None
        if address is not None and address.framing is Framing.CONFLUENT:
            address = None  # a process has no schema registry, so that it answers the worker
        name = b"%d" % self._number
        answer_by_ms = int((self._clock.wall() + window.answer_s) * 1e3)
        try:
            value = encode_task(task, address)
        except BadEvent as exc:
            log.warning("a task for a ranking process cannot be encoded: %s", exc)
            return None
        if len(value) > MAX_VALUE_BYTES:
            return None
        self._on[partition] += 1
        self.requests += one.settle is not None
        span = None if one.settle is None or one.asked.span is None else one.asked.span.child("rank task", PRODUCER)
        self._outstanding.add(name, _Sent(one, task, heads, partition, now, span), window.local_s)
        headers = Envelope(name, self._name, self._acks_partition, answer_by_ms).headers()
        if span is not None:
            headers.append((TRACEPARENT, span.traceparent.encode()))
        return _Outgoing(partition, value, headers)

    def _spawn(self, outgoing: Sequence[_Outgoing]) -> None:
        if outgoing:
            sending = asyncio.create_task(self._produce(outgoing))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def _produce(self, outgoing: Sequence[_Outgoing]) -> None:
        """Send records. One that fails may be stored all the same, so that its task runs out of time as if it was."""
        for one in outgoing:
            try:
                sent = await self._producer.send(self._topic, one.value, headers=one.headers, partition=one.partition)
            except Exception as exc:
                self._failed(exc)
            else:
                sent.add_done_callback(self._acknowledged)

    def _acknowledged(self, sent: asyncio.Future[Any]) -> None:
        if not sent.cancelled() and (error := sent.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        log.warning("a task for a ranking process was not sent: %s", error)
        self._metrics.sends_failed.add(what="rank_task", reason="refused")

    def on_ack(self, headers: Headers, value: bytes | None) -> None:
        """Settle the task of an acknowledgement."""
        sent = self._outstanding.take(header_of(headers, TASK) or b"")
        if sent is None:
            # if it says `answered`, the client has two answers: docs/decisions/0044
            self._metrics.rank_tasks.add(outcome="late")
            return
        slate = None
        try:
            ack = decode_ack(value, max(number_of(headers, OF_VERSION), 0), len(sent.task), len(sent.heads))
            if ack.result is not None:
                slate = slate_of(sent.task, ack.result, sent.heads, ack.timings or sent.task.timings)
        except BadEvent as exc:
            log.warning("the acknowledgement of a ranking process cannot be read: %s", exc)
            ack = Ack(REFUSED, exc.code)
        except Exception:
            # the task was taken: nothing else would settle it
            log.exception("the acknowledgement of a ranking process cannot be read")
            ack = Ack(REFUSED, "unreadable")
        self._settle(sent, ack, slate)

    def _over(self, sent: _Sent) -> None:
        self._settle(sent, None)

    def _settle(self, sent: _Sent, ack: Ack | None, slate: Slate | None = None) -> None:
        """Settle a task, with the slate of its acknowledgement. Without an acknowledgement its time is over."""
        breaker, probe = self._breakers[sent.partition], sent.handed.settle is None
        self._on[sent.partition] -= 1
        self.requests -= not probe
        outcome = "unanswered" if ack is None else ack.outcome
        code = "" if ack is None else ack.code
        if sent.span is not None:
            sent.span.end(outcome=outcome, error=code if slate is None else "")
        self._metrics.rank_tasks.add(outcome=f"probe_{outcome}" if probe else outcome, code=code)
        if slate is None:
            breaker.failed()
            self.refused = code if outcome == REFUSED else self.refused
        else:
            breaker.succeeded()
            self.refused = ""
            self._metrics.rank_seconds.observe(self._clock.monotonic() - sent.at)
        self._gauge()
        if sent.handed.settle is not None:
            sent.handed.settle(slate, outcome == ANSWERED)

    def _gauge(self) -> None:
        self._metrics.rank_partitions.set(sum(breaker.closed for breaker in self._breakers), state="answered")
        self._metrics.rank_partitions.set(sum(not breaker.closed for breaker in self._breakers), state="unanswered")
