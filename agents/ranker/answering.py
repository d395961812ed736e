"""Ranks batches of tasks, replies to clients and acknowledges to workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from agents.metrics import Metrics
from agents.ranker.collecting import Received
from agents.requests.clock import Clock
from agents.requests.outbox import Producer
from agents.requests.rank_records import ANSWERED, OF_VERSION, RANKED, REFUSED, TASK, VERSION, Ack, Envelope, encode_ack
from agents.requests.replies import encoded_reply
from models.pipeline.rank_task import Ranked, Ranks, RankTask, predicted, selected, slate_of
from schemas.errors import BadEvent
from streams.tracing import PRODUCER

__all__ = ["Answering", "Sends"]

log = logging.getLogger(__name__)

Aside = Callable[[Callable[[], Any]], Awaitable[Any]]


class Sends(Producer, Protocol):
    """A producer that can also send to a given partition."""

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        """Queue one record."""


def _ranked(tasks: Sequence[RankTask], ranker: Ranks) -> tuple[list[Ranked], float]:
    """Rank tasks; returns their results, and how many milliseconds the selection of one took."""
    heads = predicted(tasks, ranker)
    since = time.perf_counter()
    return selected(tasks, heads, ranker), (time.perf_counter() - since) * 1e3 / len(tasks)


class Answering:
    """Answers each task at most once, and never after its `answer_by`.

    A task is acknowledged as answered once the broker has stored its reply. If the reply fails, the acknowledgement has the
    result, and the worker replies. A reply topic that the producer does not know yet is looked up; until it is known, the
    worker replies.
    """

    def __init__(
        self,
        acks_topic: str,
        ranker_of: Callable[[str], Ranks | None],
        producer: Sends,
        metrics: Metrics,
        clock: Clock,
        aside: Aside = asyncio.to_thread,
    ) -> None:
        """`ranker_of`: returns the ranker of a release. `aside` runs graphs."""
        self._acks_topic = acks_topic
        self._ranker_of = ranker_of
        self._producer = producer
        self._metrics = metrics
        self._clock = clock
        self._aside = aside
        self._looking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._replied: set[asyncio.Task[None]] = set()
        "Waiting for replies to be stored, to acknowledge their tasks."

    async def answer(self, batch: Sequence[Received]) -> None:
        """Rank and answer a batch, release by release."""
        by_release: dict[str, list[Received]] = {}
        for received in batch:
            if self._left_s(received.envelope) <= 0:
                self._metrics.ranked.add(outcome="late")
            else:
                by_release.setdefault(received.task.release, []).append(received)
        for release, mine in by_release.items():
            ranker = self._ranker_of(release)
            if ranker is None:
                for received in mine:
                    await self.refuse(received.envelope, "release")
            else:
                await self._rank(mine, ranker)

    async def _rank(self, batch: Sequence[Received], ranker: Ranks) -> None:
        started = time.perf_counter()
        try:
            results, select_ms = await self._aside(partial(_ranked, [received.task for received in batch], ranker))
        except Exception:
            log.exception("release %s cannot rank %d tasks", ranker.name, len(batch))
            for received in batch:
                await self.refuse(received.envelope, "ranker")
            return
        self._metrics.rank_batch_seconds.observe(time.perf_counter() - started)
        for received, result in zip(batch, results, strict=True):
            passed_ms = (self._clock.monotonic() - received.came) * 1e3
            before_ms = received.task.timings.get("rank", 0.0)
            timings = {**received.task.timings, "rank": before_ms + max(passed_ms - select_ms, 0.0), "select": select_ms}
            if received.span is not None:
                received.span.stages({"rank": max(passed_ms - select_ms, 0.0), "select": select_ms})
            await self._settle(received, result, ranker.heads, timings)

    async def _settle(self, received: Received, result: Ranked, heads: tuple[str, ...], timings: Mapping[str, float]) -> None:
        """Reply and acknowledge, or only acknowledge where the worker must reply."""
        ack, reply, envelope = Ack(RANKED, "", result, timings), received.reply, received.envelope
        value: bytes | None = None
        if reply is not None and self._knows(reply.topic):
            value = encoded_reply(reply, slate_of(received.task, result, heads, timings))
        left_s = self._left_s(envelope)
        if received.span is not None:
            received.span.end(release=received.task.release, batch_late=left_s <= 0)
        if left_s <= 0:
            self._metrics.ranked.add(outcome="late")
        elif reply is None or value is None:
            await self._acknowledge(envelope, ack)
        else:
            try:
                # what is not queued by then never leaves: the producer may be replaced first, or its batch be full
                async with asyncio.timeout(left_s):
                    sent = await self._send("reply", reply.topic, value, reply.user_id.encode(), reply.headers())
            except TimeoutError:
                self._metrics.ranked.add(outcome="late")
            except KafkaError as exc:
                log.warning("a reply cannot be sent: %s", exc)
                await self._acknowledge(envelope, ack)
            else:
                if received.span is not None:
                    span = received.span.child("reply", PRODUCER)
                    sent.add_done_callback(lambda _: span.end())
                task = asyncio.create_task(self._acknowledge_stored(envelope, ack, sent))
                self._replied.add(task)
                task.add_done_callback(self._replied.discard)

    async def _acknowledge_stored(self, envelope: Envelope, ack: Ack, sent: asyncio.Future[Any]) -> None:
        """Acknowledge a task as answered once its reply is stored. If that fails, hand its result over to the worker."""
        await asyncio.wait({sent})
        stored = not sent.cancelled() and sent.exception() is None
        await self._acknowledge(envelope, replace(ack, outcome=ANSWERED) if stored else ack)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until all replies that were sent are acknowledged to their workers; returns whether that is so in time."""
        if not self._replied:
            return True
        _, left = await asyncio.wait(set(self._replied), timeout=timeout_s)
        return not left

    async def refuse(self, envelope: Envelope, code: str) -> None:
        """Report to the worker that a task is not ranked, so that it ranks by itself."""
        await self._acknowledge(envelope, Ack(REFUSED, code))

    async def _acknowledge(self, envelope: Envelope, ack: Ack) -> None:
        self._metrics.ranked.add(outcome=ack.outcome, code=ack.code)
        headers = [(TASK, envelope.task), (OF_VERSION, b"%d" % VERSION)]
        try:
            await self._send("rank_ack", self._acks_topic, encode_ack(ack), envelope.worker, headers, envelope.acks)
        except (KafkaError, BadEvent, AssertionError) as exc:
            # the worker ranks by itself when the task's time is over
            log.warning("an acknowledgement cannot be sent: %s", exc)
            self._metrics.sends_failed.add(what="rank_ack", reason="refused")

    async def _send(
        self,
        what: str,
        topic: str,
        value: bytes,
        key: bytes,
        headers: Sequence[tuple[str, bytes]],
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        sent = await self._producer.send(topic, value, key=key, headers=headers, partition=partition)

        def ended(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                log.warning("%s to %s failed: %s", what, topic, error)
                self._metrics.sends_failed.add(what=what, reason="refused")

        sent.add_done_callback(ended)
        return sent

    def _left_s(self, envelope: Envelope) -> float:
        return envelope.answer_by_ms / 1e3 - self._clock.wall()

    def _knows(self, topic: str) -> bool:
        """Return whether the producer knows a topic; if not, it is looked up."""
        if self._producer.knows(topic):
            return True
        if topic not in self._looking:
            self._looking.add(topic)
            task = asyncio.create_task(self._look_up(topic))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return False

    async def _look_up(self, topic: str) -> None:
        try:
            if not await self._producer.look_up(topic):
                await self._producer.forget(topic)
        except Exception as exc:
            log.warning("topic %s cannot be looked up: %s", topic, exc)
        finally:
            self._looking.discard(topic)
