"""Replies and what else goes out beside the answers: sent in order by one task, none waited for before the next."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer

from agents.metrics import Metrics

__all__ = ["Letter", "Outbox"]

log = logging.getLogger(__name__)

TOPIC_TRIES, TOPIC_WAIT_S = 5, 0.3


def _nothing() -> None:
    pass


@dataclass(slots=True)
class Letter:
    """A record to be sent once."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    what: str
    "For the counter of what failed."
    done: Callable[[], None] = _nothing
    "Called when it is acknowledged, or given up."


class Outbox:
    """A queue before a producer. What fails is counted and given up; a topic that does not exist holds up nothing else."""

    def __init__(self, producer: AIOKafkaProducer, metrics: Metrics) -> None:
        self._producer = producer
        self._metrics = metrics
        self._queue: deque[Letter] = deque()
        self._work = asyncio.Event()
        self._empty = asyncio.Event()
        "Set while nothing is queued or on its way."
        self._empty.set()
        self._under_way = 0
        self._looking: set[asyncio.Task[None]] = set()

    def put(self, letter: Letter) -> None:
        """Queue a letter. Never waits."""
        self._queue.append(letter)
        self._under_way += 1
        self._empty.clear()
        self._work.set()

    async def run(self) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                letter = self._queue.popleft()
                if self._producer.client.cluster.partitions_for_topic(letter.topic):
                    await self._send(letter)
                else:
                    task = asyncio.create_task(self._look_up(letter))
                    self._looking.add(task)
                    task.add_done_callback(self._looking.discard)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is queued or on its way; returns whether that came."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def _send(self, letter: Letter) -> None:
        try:
            future = await self._producer.send(letter.topic, letter.value, key=letter.key, headers=list(letter.headers))
        except Exception as exc:
            self._failed(letter, "refused", exc)
            return

        def acknowledged(sent: asyncio.Future[object]) -> None:
            if not sent.cancelled() and (error := sent.exception()) is not None:
                self._failed(letter, "refused", error)
            else:
                self._end(letter)

        future.add_done_callback(acknowledged)

    async def _look_up(self, letter: Letter) -> None:
        """Ask for an unknown topic a few times, because the brokers may just be making it."""
        client = self._producer.client
        try:
            for _ in range(TOPIC_TRIES):
                await client.add_topic(letter.topic)
                if client.cluster.partitions_for_topic(letter.topic):
                    await self._send(letter)
                    return
                await asyncio.sleep(TOPIC_WAIT_S)
            # nor is its name remembered: anybody may write one into a header
            await client.set_topics([known for known in client.cluster.topics() if known != letter.topic])
        except Exception as exc:
            self._failed(letter, "refused", exc)
            return
        self._failed(letter, "no_topic", LookupError("there is no such topic"))

    def _failed(self, letter: Letter, reason: str, error: BaseException) -> None:
        log.warning("%s to %s failed: %s", letter.what, letter.topic, error)
        self._metrics.count("sends_failed", what=letter.what, reason=reason)
        self._end(letter)

    def _end(self, letter: Letter) -> None:
        letter.done()
        self._under_way -= 1
        if not self._under_way:
            self._empty.set()
