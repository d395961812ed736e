"""Requests that are handed over are answered once, whatever ranking processes and the broker do; in virtual time."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aiokafka.errors import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.breaker import FAILURES
from agents.metrics import Metrics
from agents.requests.clock import Clock
from agents.requests.rank_acks import RankAcks
from agents.requests.rank_pending import LEAST_S, Outstanding, Window
from agents.requests.rank_records import (
    ANSWERED,
    OF_VERSION,
    RANKED,
    REFUSED,
    TASK,
    Ack,
    Envelope,
    decode_task,
    encode_ack,
    envelope_of,
)
from agents.requests.ranking import Pending, Ranking
from agents.requests.remote import AT_ONCE, Remote
from agents.requests.replies import Address
from models.features.compute import FEATURES
from models.pipeline.batch import Candidates
from models.pipeline.effort import Effort
from models.pipeline.pipeline import Preparation, Steps
from models.pipeline.rank_task import Ranked, RankTask
from models.state.users import Users
from schemas.codec import Framing
from schemas.errors import RiffleError
from schemas.records import AsOf, Request, Slate
from schemas.settings import Settings

PARTITIONS, HEADS = 2, ("positive",)
DOES = ("answers", "answers at the last moment", "refuses", "is silent", "garbage", "acknowledges twice", "is late", "unsent")


def task_of(request: Request) -> RankTask:
    zero, light = np.zeros(2, np.int32), np.ones(2, np.float32)
    rows = np.arange(2, dtype=np.int32)
    none, features = np.zeros((2, 0), np.float32), np.zeros((2, len(FEATURES)), np.float32)
    candidates = Candidates(zero, rows, np.ones((2, 1), np.float32), light, light, features, none)
    return RankTask(request, "r", True, 0.0, ("popular",), ["a", "b"], zero, candidates, (), {"rank": 1.0}, {}, None)


class Pipeline:
    """A pipeline that takes some milliseconds; `runs` has when each request was ranked here."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.runs: dict[str, float] = {}
        self.prepared: Counter[str] = Counter()

    def prepare(self, requests: Sequence[Request], users: Users, as_of: Sequence[AsOf | None], effort: Effort) -> Preparation:
        self._loop.spend(0.001)
        self.prepared.update(request.request_id for request in requests)
        yield lambda: None
        return SimpleNamespace(requests=requests, effort=effort, queries=SimpleNamespace(model=SimpleNamespace(heads=HEADS)))  # type: ignore[return-value]

    def handed_over(self, prepared: Any) -> list[RankTask] | None:
        return [task_of(request) for request in prepared.requests] if prepared.effort < Effort.LIGHT else None

    def complete(self, prepared: Any) -> Steps:
        self._loop.spend(0.001)
        yield lambda: None
        for request in prepared.requests:
            self.runs[request.request_id] = self._loop.time()
        return [Slate(request.request_id, request.user_id, (), "local", "default") for request in prepared.requests]

    def without_withdrawn(self, slate: Slate) -> Slate:
        return slate


@dataclass
class Pods:
    """The broker and honest ranking processes behind it: none answers after a task's `answer_by`."""

    loop: VirtualLoop
    does: Sequence[str]
    replies: Counter[str] = field(default_factory=Counter)
    "Replies to clients, by request."
    refused_at: dict[str, float] = field(default_factory=dict)
    sent: list[tuple[float, str, bool, int]] = field(default_factory=list)
    "Time, request, whether it carries an address, and partition of each task."
    take: Any = None
    answer_by: dict[str, float] = field(default_factory=dict)
    "Of tasks with an address; a request that is ranked here may be sent once more, as a probe."

    version: bytes = b"1"
    "Header of each acknowledgement."

    async def send(
        self,
        _topic: str,
        value: bytes | None,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> asyncio.Future[Any]:
        envelope = envelope_of(headers)
        assert envelope is not None
        assert key is None
        assert partition is not None
        task, reply = decode_task(value, envelope.version)
        name = task.request.request_id
        does = self.does[len(self.sent) % len(self.does)]
        self.sent.append((self.loop.time(), name, reply is not None, partition))
        if reply is not None:
            self.answer_by[name] = envelope.answer_by_ms / 1e3
        if does == "unsent":
            raise KafkaError("not stored")
        self._act(does, envelope, name, reply)
        done: asyncio.Future[Any] = self.loop.create_future()
        done.set_result(None)
        return done

    def _act(self, does: str, envelope: Envelope, name: str, reply: Address | None) -> None:
        left_s = envelope.answer_by_ms / 1e3 - self.loop.time()
        if does == "is silent":
            return
        if does == "is late":
            # an honest process only notices that it is too late
            return
        if does in {"refuses", "garbage"}:
            value = b"\xc3" if does == "garbage" else encode_ack(Ack(REFUSED, "release"))
            self.loop.call_later(left_s / 3, self._ack, envelope, value)
            if reply is not None:
                self.refused_at[name] = self.loop.time() + left_s / 3
            return
        at = max(left_s - 1e-3, 0.0) if does == "answers at the last moment" else min(0.002, max(left_s - 1e-3, 0.0))
        outcome = RANKED if reply is None else ANSWERED
        result = Ranked(np.asarray([1, 0], np.int32), np.ones(2, np.float32), np.ones((2, 1), np.float32))
        value = encode_ack(Ack(outcome, "", result, {"rank": 2.0}))
        if reply is not None:
            self.loop.call_later(at, self._reply, name)
        for _ in range(2 if does == "acknowledges twice" else 1):
            self.loop.call_later(at, self._ack, envelope, value)

    def _reply(self, name: str) -> None:
        assert self.loop.time() < self.answer_by[name]
        self.replies[name] += 1

    def _ack(self, envelope: Envelope, value: bytes) -> None:
        self.take([(TASK, envelope.task), (OF_VERSION, self.version)], value)


@dataclass(frozen=True)
class Asked:
    """A request `gap_ms` after the one before."""

    gap_ms: int
    budget_ms: int
    over_kafka: bool


asked = st.builds(Asked, st.integers(0, 400), st.sampled_from([20, 60, 250, 2_000, 9_000]), st.booleans())
scripts = st.lists(asked, min_size=1, max_size=25)
behaviours = st.lists(st.sampled_from(DOES), min_size=1, max_size=6) | st.just(["answers"]) | st.just(["is silent"])


@dataclass
class Seen:
    """What became of a script."""

    pods: Pods
    pipeline: Pipeline
    remote: Remote
    metrics: Metrics
    local: Counter[str] = field(default_factory=Counter)
    "Replies of the worker, by request."
    answered: Counter[str] = field(default_factory=Counter)
    "Requests that the worker counts as answered by a process."
    shown: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    closed: list[tuple[float, list[bool]]] = field(default_factory=list)


async def play(loop: VirtualLoop, script: Sequence[Asked], does: Sequence[str], version: bytes = b"1") -> Seen:
    pods, pipeline, metrics = Pods(loop, does, version=version), Pipeline(loop), Metrics()
    clock = Clock(loop.time, loop.time)
    remote = Remote(Settings(partitions=PARTITIONS), pods, metrics, clock)  # type: ignore[arg-type]
    remote.acks.reading, pods.take = True, remote.on_ack
    seen = Seen(pods, pipeline, remote, metrics)
    partition = SimpleNamespace(
        state=SimpleNamespace(ready=asyncio.Event()), as_of=None, rows=lambda users: [None for _ in users]
    )
    partition.state.ready.set()

    async def aside(work: Any) -> Any:
        await asyncio.sleep(0.001)
        return work()

    def shown(slate: Slate) -> None:
        seen.shown[slate.request_id] += 1

    ranking = Ranking(pipeline, {0: partition}, metrics, clock, shown, aside, remote)  # type: ignore[arg-type, dict-item]
    running = loop.create_task(ranking.run())
    for n, one in enumerate(script):
        await asyncio.sleep(one.gap_ms / 1e3)
        name = f"r{n}"

        def reply(answer: Slate | RiffleError, name: str = name) -> None:
            seen.local[name] += 1
            if isinstance(answer, RiffleError):
                seen.errors.append(name)

        def answered(name: str = name) -> None:
            seen.answered[name] += 1

        address = Address("replies", name.encode(), Framing.JSON, "u") if one.over_kafka else None
        now = loop.time()
        ranking.submit(
            Pending(
                Request(name, "u"),
                0,
                now + one.budget_ms / 1e3,
                reply,
                now,
                not one.over_kafka,
                address=address,
                answered=answered,
            )
        )
    await ranking.idle(60.0)
    await asyncio.sleep(10.0)
    assert remote.requests == 0
    assert not remote._outstanding._tasks
    assert remote._on == [0] * PARTITIONS
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return seen


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=80, deadline=None)
@given(scripts, behaviours)
def test_each_request_is_answered_once_by_a_process_or_here(script: list[Asked], does: list[str]) -> None:
    seen = run_virtually(lambda loop: play(loop, script, does))
    everyone = {f"r{n}" for n in range(len(script))}
    assert seen.pods.replies + seen.local == Counter(dict.fromkeys(everyone, 1)), "one answer each"
    assert seen.answered == seen.pods.replies, "the offsets of what processes have answered are committed"
    assert seen.shown == Counter(dict.fromkeys(everyone - set(seen.errors), 1)), "each slate is logged once"
    late = [name for name in seen.errors if script[int(name[1:])].budget_ms > 60]
    assert not late, "who has time is never refused because of processes"


@settings(max_examples=80, deadline=None)
@given(scripts, behaviours)
def test_what_was_handed_over_is_ranked_here_only_after_its_time_or_a_refusal(script: list[Asked], does: list[str]) -> None:
    seen = run_virtually(lambda loop: play(loop, script, does))
    for _, name, addressed, _ in seen.pods.sent:
        if addressed and name in seen.pipeline.runs:
            allowed = min(seen.pods.refused_at.get(name, np.inf), seen.pods.answer_by[name])
            assert seen.pipeline.runs[name] >= allowed - 1e-3
            if name not in seen.pods.refused_at:
                assert seen.pipeline.runs[name] > seen.pods.answer_by[name], "and after some more for the acknowledgement"


@settings(max_examples=40, deadline=None)
@given(scripts)
def test_without_processes_nothing_but_probes_is_sent_and_nobody_waits(script: list[Asked]) -> None:
    seen = run_virtually(lambda loop: play(loop, script, ["is silent"]))
    assert not any(addressed for _, _, addressed, _ in seen.pods.sent)
    by_partition: dict[int, list[float]] = {}
    for at, _, _, partition in seen.pods.sent:
        by_partition.setdefault(partition, []).append(at)
    for times in by_partition.values():
        assert all(after - before >= 1.0 for before, after in itertools.pairwise(times))
    assert len(seen.pipeline.runs) == len(script) - len(seen.errors)


def test_processes_are_used_after_a_probe_and_no_longer_after_some_failures() -> None:
    script = [Asked(50, 2_000, True) for _ in range(60)]
    seen = run_virtually(lambda loop: play(loop, script, ["answers"]))
    assert seen.pods.replies.total() >= 55
    tasks = seen.metrics.rank_tasks
    assert tasks.value(outcome="probe_ranked") == PARTITIONS
    assert tasks.value(outcome="answered") == seen.pods.replies.total()
    assert seen.metrics.rank_partitions.value(state="answered") == PARTITIONS
    does = ["answers"] * 20 + ["is silent"] * 400
    seen = run_virtually(lambda loop: play(loop, [Asked(50, 250, True) for _ in range(200)], does))
    assert seen.pods.replies.total() > 10
    assert seen.metrics.rank_partitions.value(state="answered") == 0
    unanswered = seen.metrics.rank_tasks.value(outcome="unanswered")
    assert FAILURES * PARTITIONS <= unanswered <= FAILURES * PARTITIONS + 2 * 4, "those under way beside the failures"


def test_a_partition_is_probed_again_while_others_take_the_requests() -> None:
    script = [Asked(50, 2_000, True) for _ in range(120)]
    seen = run_virtually(lambda loop: play(loop, script, ["answers", "is silent"] + ["answers"] * 999))
    assert seen.metrics.rank_tasks.value(outcome="probe_unanswered") == 1
    assert seen.metrics.rank_partitions.value(state="answered") == PARTITIONS


def test_a_late_acknowledgement_is_counted_and_changes_nothing() -> None:
    seen = run_virtually(lambda loop: play(loop, [Asked(50, 2_000, True)] * 20, ["acknowledges twice"]))
    assert seen.metrics.rank_tasks.value(outcome="late") > 0
    assert seen.local.total() + seen.pods.replies.total() == 20


@pytest.mark.parametrize("version", [b"", b"9" * 5_000, "²".encode(), b"\xb2", b"-1", b"x"])
def test_a_bad_version_of_an_acknowledgement_costs_no_request(version: bytes) -> None:
    seen = run_virtually(lambda loop: play(loop, [Asked(50, 2_000, True)] * 10, ["answers"], version))
    assert (seen.local + seen.pods.replies).total() >= 10
    assert seen.answered + seen.local == Counter({f"r{n}": 1 for n in range(10)}), "each is settled"


def test_an_acknowledgement_that_fails_in_any_way_counts_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any) -> Slate:
        raise ArithmeticError

    monkeypatch.setattr("agents.requests.remote.slate_of", fails)
    seen = run_virtually(lambda loop: play(loop, [Asked(50, 2_000, False)] * 10, ["answers"]))
    assert seen.local == Counter({f"r{n}": 1 for n in range(10)})
    assert not seen.errors
    assert seen.metrics.rank_tasks.value(outcome="probe_refused", code="unreadable") > 0


def test_an_acknowledgement_that_cannot_be_passed_on_is_skipped() -> None:
    taken: list[bytes | None] = []

    def take(_headers: Any, value: bytes | None) -> None:
        taken.append(value)
        raise ValueError

    acks = RankAcks(Settings(), 0, b"worker", take)
    for value in (b"a", b"b"):
        acks._pass_on([], value)
    assert taken == [b"a", b"b"]


def test_no_more_tasks_are_under_way_on_a_partition_than_allowed() -> None:
    script = [Asked(100, 9_000, True)] * 4 + [Asked(0, 9_000, True)] * 400
    seen = run_virtually(lambda loop: play(loop, script, ["answers"] * 6 + ["answers at the last moment"] * 999))
    under_way = [at for at, _, addressed, _ in seen.pods.sent if addressed]
    assert len(under_way) <= PARTITIONS * AT_ONCE + 4
    assert (seen.local + seen.pods.replies).total() == len(script)


def test_no_request_is_prepared_twice_because_processes_have_no_room() -> None:
    script = [Asked(100, 9_000, True)] * 4 + [Asked(0, 9_000, True)] * 400
    seen = run_virtually(lambda loop: play(loop, script, ["answers"] * 6 + ["answers at the last moment"] * 999))
    assert seen.metrics.rank_tasks.value(outcome="unsent") == 0
    assert seen.pipeline.prepared == Counter({f"r{n}": 1 for n in range(len(script))})
    assert sum(addressed for _, _, addressed, _ in seen.pods.sent) >= AT_ONCE, "the room is used"


@given(st.floats(LEAST_S, 60.0))
def test_a_window_leaves_time_for_the_acknowledgement_and_for_ranking_here(left_s: float) -> None:
    window = Window.of(left_s)
    assert 0 < window.answer_s < window.local_s < left_s
    assert window.local_s - window.answer_s >= min(0.2 * left_s, 0.4)
    assert left_s - window.local_s >= 0.3 * left_s


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["add", "take", "wait"]), st.floats(0, 2)), max_size=40))
def test_each_task_ends_once(steps: list[tuple[int, str, float]]) -> None:
    async def scene(loop: VirtualLoop) -> None:
        ended: Counter[int] = Counter()
        outstanding: Outstanding[int] = Outstanding(lambda n: ended.update([n]))
        names: dict[int, int] = {}
        added = 0
        for number, what, seconds in steps:
            if what == "add":
                names[number] = added
                outstanding.add(b"%d" % added, added, seconds)
                added += 1
            elif what == "take" and number in names and (taken := outstanding.take(b"%d" % names[number])) is not None:
                ended[taken] += 1
            elif what == "wait":
                await asyncio.sleep(seconds)
        await asyncio.sleep(5.0)
        assert ended == Counter(range(added))
        assert len(outstanding) == 0

    run_virtually(scene)
