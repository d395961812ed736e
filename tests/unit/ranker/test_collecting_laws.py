"""A ranking process answers each task once and in time, in batches across requests; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import pytest
from aiokafka.errors import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tasks import made_task
from numpy.typing import NDArray
from virtual_time import VirtualLoop, run_virtually

from agents.metrics import Metrics
from agents.ranker.answering import Answering
from agents.ranker.collecting import MOST_TASKS, Collector
from agents.requests.clock import Clock
from agents.requests.rank_records import ANSWERED, RANKED, REFUSED, TASK, VERSION, Envelope, decode_ack, encode_task
from agents.requests.replies import Address
from schemas.codec import Framing
from streams.kafka.chunks import Chunk

WAIT_S, BATCH_S = 0.004, 0.01


class Ranker:
    """A ranker whose score is the sum of the features."""

    name, heads = "release-1", ("positive",)

    def __init__(self) -> None:
        self.fails = False

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.fails:
            raise ArithmeticError("the graph")
        sums: NDArray[np.float32] = features.sum(axis=1, keepdims=True)
        return sums

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        return heads[:, 0]


class Producer:
    """Records what is sent. It knows the topic `replies`; `refuses` has topics whose records cannot be queued."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.sent: list[tuple[float, str, bytes, bytes, dict[str, bytes]]] = []
        self.refuses: set[str] = set()
        self.looked_up: list[str] = []
        self.forgotten: list[str] = []
        self.topics: set[str] = {"replies"}
        self.lost: set[bytes] = set()
        "Correlations of replies that are not stored."
        self.store_s, self.sound_s = 0.0, 0.0
        "Seconds until a reply is stored, or fails, and until the producer takes a record."
        self.stored: dict[bytes, float] = {}
        "When each reply was stored, by its correlation."

    def knows(self, topic: str) -> bool:
        return topic in self.topics

    async def look_up(self, topic: str) -> bool:
        self.looked_up.append(topic)
        return self.knows(topic)

    async def forget(self, topic: str) -> None:
        self.forgotten.append(topic)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        if self.sound_s:
            await asyncio.sleep(self.sound_s)
        if topic in self.refuses:
            raise KafkaError("cannot be queued")
        assert (partition is not None) == (topic == "acks")
        self.sent.append((self._loop.time(), topic, key or b"", value or b"", dict(headers)))
        done: asyncio.Future[Any] = self._loop.create_future()
        if topic == "acks":
            done.set_result(None)
        else:
            self._loop.call_later(self.store_s, self._store, dict(headers)["Faust-Ag-CorrelationId"], done)
        return done

    def _store(self, correlation: bytes, done: asyncio.Future[Any]) -> None:
        if correlation in self.lost:
            done.set_exception(KafkaError("no leader"))
        else:
            self.stored[correlation] = self._loop.time()
            done.set_result(None)

    def acks(self) -> dict[bytes, list[tuple[str, str]]]:
        """Outcome and code of each acknowledgement, by task."""
        found: dict[bytes, list[tuple[str, str]]] = {}
        for _, topic, key, value, headers in self.sent:
            if topic == "acks":
                assert key == b"worker"
                ack = decode_ack(value, VERSION, 3, 1)
                found.setdefault(headers[TASK], []).append((ack.outcome, ack.code))
        return found

    def replies(self) -> Counter[bytes]:
        return Counter(headers["Faust-Ag-CorrelationId"] for _, topic, _, _, headers in self.sent if topic == "replies")


@dataclass
class Process:
    """A ranking process without Kafka."""

    loop: VirtualLoop
    ranker: Ranker = field(default_factory=Ranker)
    metrics: Metrics = field(default_factory=Metrics)
    batches: list[tuple[float, int]] = field(default_factory=list)
    "Begin and size of each batch."

    def __post_init__(self) -> None:
        clock = Clock(self.loop.time, self.loop.time)
        self.producer = Producer(self.loop)

        async def aside(work: Callable[[], Any]) -> Any:
            await asyncio.sleep(BATCH_S)
            return work()

        answering = self.answering = Answering(
            "acks", lambda name: self.ranker if name == "release-1" else None, self.producer, self.metrics, clock, aside
        )

        async def answer(batch: Sequence[Any]) -> None:
            self.batches.append((self.loop.time(), len(batch)))
            await answering.answer(batch)

        self.collector = Collector(WAIT_S, answer, answering.refuse, self.metrics, clock)
        self.running = self.loop.create_task(self.collector.run())

    async def idle(self) -> None:
        """Wait until all tasks are answered and acknowledged."""
        assert await self.collector.idle(60.0)
        assert await self.answering.settled(60.0)

    async def take(self, *tasks: tuple[bytes, bytes | None, float]) -> None:
        """Take in one chunk of tasks: name, value, and seconds until they must be answered."""
        now = self.loop.time()
        headers = [Envelope(name, b"worker", 3, round((now + left_s) * 1e3)).headers() for name, _, left_s in tasks]
        values = [value for _, value, _ in tasks]
        n = len(tasks)
        await self.collector.take_in(Chunk("riffle.rank", 0, range(n), [None] * n, values, [0] * n, headers))


def value_of(name: bytes, topic: str | None = "replies", **changes: Any) -> bytes:
    reply = None if topic is None else Address(topic, name, Framing.JSON, "u1")
    return encode_task(replace(made_task(), **changes), reply)


KINDS = ("good", "over http", "another release", "garbage", "unknown topic")
drawn = st.tuples(st.integers(0, 12), st.sampled_from(KINDS), st.sampled_from([-0.001, 0.002, 0.008, 0.1, 1.0]))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def _play(loop: VirtualLoop, script: Sequence[tuple[int, str, float]]) -> Process:
    process = Process(loop)
    values: dict[str, Callable[[bytes], bytes]] = {
        "good": value_of,
        "over http": lambda name: value_of(name, None),
        "another release": lambda name: value_of(name, release="another"),
        "garbage": lambda _: b"\xff",
        "unknown topic": lambda name: value_of(name, "unheard-of"),
    }
    for n, (gap_ms, kind, left_s) in enumerate(script):
        await asyncio.sleep(gap_ms / 1e3)
        name = b"%d" % n
        await process.take((name, values[kind](name), left_s))
    await process.idle()
    process.running.cancel()
    await asyncio.gather(process.running, return_exceptions=True)
    return process


@settings(max_examples=80, deadline=None)
@given(st.lists(drawn, max_size=40))
def test_each_task_is_answered_once_in_time_or_not_at_all(script: list[tuple[int, str, float]]) -> None:
    process = run_virtually(lambda loop: _play(loop, script))
    acks, replies = process.producer.acks(), process.producer.replies()
    assert all(len(found) == 1 for found in acks.values())
    wanted = {
        "good": (ANSWERED, ""),
        "over http": (RANKED, ""),
        "another release": (REFUSED, "release"),
        "garbage": (REFUSED, "unknown_framing"),
        "unknown topic": (RANKED, ""),
    }
    for n, (_, kind, left_s) in enumerate(script):
        name = b"%d" % n
        assert acks.get(name) in ([wanted[kind]], None)
        assert replies[name] == (kind == "good" and name in acks)
        if left_s == 1.0:
            assert name in acks
        if left_s < 0:
            assert name not in acks
    starts = np.cumsum([gap for gap, _, _ in script]) / 1e3
    for at, topic, _, _, headers in process.producer.sent:
        if topic == "replies":
            n = int(headers["Faust-Ag-CorrelationId"])
            # the time until which it may be answered is in whole milliseconds
            assert at < 1_000.0 + starts[n] + script[n][2] + 0.001, "late"
    ranked = process.metrics.ranked
    total = sum(ranked.value(outcome=o) for o in (ANSWERED, RANKED, "late"))
    total += sum(ranked.value(outcome=REFUSED, code=code) for code in ("release", "unknown_framing"))
    assert total == len(script), "each is counted once"


def test_tasks_of_many_requests_are_ranked_together_and_none_waits_longer_than_allowed() -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        for n in range(5):
            await process.take((b"%d" % n, value_of(b"%d" % n), 1.0))
            await asyncio.sleep(0.0005)
        await process.idle()
        begin = loop.time()
        await process.take(*[(b"m%d" % n, value_of(b"m%d" % n), 1.0) for n in range(MOST_TASKS)])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert process.batches[-1] == (begin, MOST_TASKS), "a full batch does not wait"
        await process.idle()
        return process

    process = run_virtually(scene)
    assert [size for _, size in process.batches] == [5, MOST_TASKS]
    assert process.batches[0][0] == pytest.approx(1_000.0 + WAIT_S)


def test_what_a_ranker_fails_at_is_refused_and_the_next_batch_is_ranked() -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        process.ranker.fails = True
        await process.take((b"a", value_of(b"a"), 1.0))
        await process.idle()
        process.ranker.fails = False
        await process.take((b"b", value_of(b"b"), 1.0))
        await process.idle()
        process.producer.refuses = {"replies"}
        await process.take((b"c", value_of(b"c"), 1.0))
        await process.idle()
        process.producer.refuses = {"acks"}
        await process.take((b"d", value_of(b"d", None), 1.0))
        await process.idle()
        return process

    process = run_virtually(scene)
    assert process.producer.acks() == {b"a": [(REFUSED, "ranker")], b"b": [(ANSWERED, "")], b"c": [(RANKED, "")]}
    assert process.producer.replies() == Counter({b"b": 1})
    assert process.metrics.sends_failed.value(what="rank_ack", reason="refused") == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.sampled_from([0.0, 0.003, 2.0]))
def test_a_task_counts_as_answered_only_once_its_reply_is_stored(stored: list[bool], store_s: float) -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        process.producer.store_s = store_s
        process.producer.lost = {b"%d" % n for n, one in enumerate(stored) if not one}
        await process.take(*[(b"%d" % n, value_of(b"%d" % n), 1.0) for n in range(len(stored))])
        await process.idle()
        return process

    process = run_virtually(scene)
    wanted = {b"%d" % n: [(ANSWERED, "")] if one else [(RANKED, "")] for n, one in enumerate(stored)}
    assert process.producer.acks() == wanted, "a worker replies itself where the process could not"
    for at, topic, _, _, headers in process.producer.sent:
        if topic == "acks" and headers[TASK] in process.producer.stored:
            assert at >= process.producer.stored[headers[TASK]]


def test_a_reply_that_the_producer_takes_too_late_never_leaves() -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        process.producer.sound_s = 0.5
        await process.take((b"a", value_of(b"a"), 0.4), (b"b", value_of(b"b"), 0.1), (b"c", value_of(b"c"), 5.0))
        await process.idle()
        return process

    process = run_virtually(scene)
    assert process.producer.replies() == Counter({b"c": 1})
    assert process.producer.acks() == {b"c": [(ANSWERED, "")]}
    assert process.metrics.ranked.value(outcome="late") == 2


def test_a_reply_has_the_slate_its_correlation_and_its_timings() -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        await process.take((b"a", value_of(b"a"), 1.0))
        await process.idle()
        return process

    process = run_virtually(scene)
    (reply,) = [(key, value, headers) for _, topic, key, value, headers in process.producer.sent if topic == "replies"]
    key, value, headers = reply
    assert (key, headers["content-type"]) == (b"u1", b"application/json")
    slate = orjson.loads(value)["value"]
    assert (slate["request_id"], slate["user_id"], slate["release"]) == ("r1", "u1", "release-1")
    assert slate["degraded"] == ["source:ease", "stale"]
    assert slate["as_of"] == {"partition": 1, "offset": 2, "event_time": 3}
    assert len(slate["items"]) == 2
    assert slate["items"][0]["score"] >= slate["items"][1]["score"]
    assert slate["timings_ms"].keys() == {"hydrate", "rank", "select"}
    assert slate["timings_ms"]["rank"] >= 1.5 + (WAIT_S + BATCH_S) * 1e3 - 1


def test_a_reply_topic_that_is_not_known_is_looked_up_once() -> None:
    async def scene(loop: VirtualLoop) -> Process:
        process = Process(loop)
        tasks = [(b"%d" % n, value_of(b"%d" % n, "new"), 1.0) for n in range(3)]
        await process.take(*tasks)
        await process.idle()
        process.producer.topics.add("new")
        await process.take((b"then", value_of(b"then", "new"), 1.0))
        await process.idle()
        return process

    process = run_virtually(scene)
    acks = process.producer.acks()
    assert [acks[b"%d" % n] for n in range(3)] == [[(RANKED, "")]] * 3
    assert acks[b"then"] == [(ANSWERED, "")]
    assert process.producer.looked_up == process.producer.forgotten == ["new"]
