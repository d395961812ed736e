"""Each accepted request gets exactly one answer before its deadline, under any disturbance; in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from aiokafka.errors import KafkaError, KafkaTimeoutError
from fakes import KnowsTopics
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.metrics import Metrics
from agents.requests import waiting
from agents.requests.backlog import Backlog, _Waiting
from agents.requests.clock import Clock
from agents.requests.costs import SHARES
from agents.requests.offsets import Offsets
from agents.requests.ranking import Ranking
from agents.requests.recommend import Recommend
from agents.web.protocol import Wanted, always
from agents.web.request_lists import MAX_REQUESTS, answer_list
from models.pipeline.effort import Effort
from models.pipeline.pipeline import Steps
from models.state.users import Users
from schemas.codec import decode, header_of
from schemas.errors import NotReady, RiffleError
from schemas.records import After, AsOf, Request, Slate
from schemas.settings import Settings
from streams.kafka.chunks import Chunk

PARTITIONS, OWNED, RESTORING, ELSEWHERE = 4, 0, 1, 2
KINDS = ("valid", "no body", "no reply topic", "unknown topic", "bad field", "elsewhere", "restoring", "after", "never after")


@dataclass(frozen=True)
class Asked:
    """A request of the script. `twice`: the next request of the same kind has the same correlation id."""

    kind: str
    budget_ms: int
    age_ms: int
    twice: bool


@dataclass(frozen=True)
class Step:
    """Simultaneous requests after `gap_ms`; optionally partitions then move to another worker."""

    gap_ms: int
    asked: tuple[Asked, ...]
    drains: bool


@dataclass(frozen=True)
class World:
    """Behaviour of the surrounding parts."""

    slowness: float
    "Factor on the duration that the backlog expects of a pipeline."
    fails: frozenset[int]
    "Indices of the pipeline's runs that raise."
    acknowledge_ms: int
    refusals: frozenset[int]
    "Indices of sends that raise, or whose acknowledgement is an error."


FIXED_S, EACH_S = 0.004, 0.001
FULL_BATCH_S = FIXED_S + 32 * EACH_S + 1e-6
"Maximum seconds for which a batch blocks the event loop, with a pipeline as fast as the backlog first expects."

asked = st.builds(
    Asked,
    st.sampled_from(KINDS) | st.just("valid"),
    st.sampled_from([1, 20, 100, 250, 5_000]),
    st.sampled_from([0, 0, 0, 30, 300]),
    st.booleans(),
)
drains = st.sampled_from([False, False, False, True])
steps = st.builds(Step, st.integers(0, 120), st.lists(asked, max_size=12).map(tuple), drains)
bursts = st.builds(Step, st.just(0), st.builds(lambda one, n: (one,) * n, asked, st.integers(40, 150)), st.just(False))
scripts = st.lists(steps | bursts, min_size=1, max_size=8)
numbers = st.frozensets(st.integers(0, 30), max_size=6)
worlds = st.builds(World, st.sampled_from([0.2, 1.0, 3.0, 30.0]), numbers, st.sampled_from([0, 2, 40, 400]), numbers)
honest = st.builds(World, st.just(1.0), numbers, st.sampled_from([0, 2, 8]), st.just(frozenset[int]()))


class Pipeline:
    """A pipeline of a given duration: half of it holds up the loop, half is work of the thread, as in the real one."""

    def __init__(self, loop: VirtualLoop, world: World) -> None:
        self._loop, self._world, self._runs = loop, world, 0
        self._thread = asyncio.Lock()

    def steps(self, requests: Sequence[Request], users: Users, as_of: Sequence[AsOf], effort: Effort) -> Steps:
        self._runs += 1
        runs, seconds = self._runs, self._world.slowness * (FIXED_S + EACH_S * len(requests)) * SHARES[effort]
        assert len(users) == len(requests)
        self._loop.spend(seconds / 2)
        yield lambda: seconds / 2
        if runs in self._world.fails:
            raise ArithmeticError("the ranker")
        return [Slate(r.request_id, r.user_id, (), "none", "default", as_of=at) for r, at in zip(requests, as_of, strict=True)]

    async def aside(self, work: Callable[[], float]) -> None:
        async with self._thread:
            await asyncio.sleep(work())


class Producer(KnowsTopics):
    """Records sends and their times; acknowledges later, or not at all."""

    def __init__(self, loop: VirtualLoop, world: World) -> None:
        self._loop, self._world, self._sends = loop, world, 0
        self.sent: list[tuple[float, str, bytes, Sequence[tuple[str, bytes]]]] = []
        self.settled: set[bytes] = set()
        "Correlation ids of replies that were acknowledged or given up."

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> asyncio.Future[Any]:
        self._sends += 1
        self.sent.append((self._loop.time(), topic, value or b"", headers))
        done: asyncio.Future[Any] = self._loop.create_future()
        correlation = header_of(headers, "Faust-Ag-CorrelationId") or b""
        done.add_done_callback(lambda _: self.settled.add(correlation))
        if self._sends in self._world.refusals:
            if self._sends % 2:
                self.settled.add(correlation)
                raise KafkaTimeoutError
            self._loop.call_later(self._world.acknowledge_ms / 1000, done.set_exception, KafkaError("refused"))
        else:
            self._loop.call_later(self._world.acknowledge_ms / 1000, done.set_result, None)
        return done


class Partition:
    """A partition of users that applies only the first event."""

    def __init__(self, *, ready: bool) -> None:
        self.state = SimpleNamespace(ready=asyncio.Event())
        if ready:
            self.state.ready.set()
        self.as_of = AsOf(OWNED, 0, 0)

    def rows(self, users: Sequence[str]) -> list[None]:
        return [None for _ in users]

    def reflects(self, after: After) -> bool:
        return after.offset <= 0

    async def wait_for(self, after: After, timeout_s: float) -> bool:
        await asyncio.sleep(max(timeout_s, 0.0))
        return self.reflects(after)


@dataclass
class Seen:
    """Result of a run of a script."""

    expected: Counter[bytes] = field(default_factory=Counter)
    "Number of expected answers by correlation id; dead letters under the id of the request without a reply topic."
    deadlines: dict[bytes, float] = field(default_factory=dict)
    "Deadlines of requests that arrived in time, by correlation ids that are used once."
    sent: list[tuple[float, str, bytes, Sequence[tuple[str, bytes]]]] = field(default_factory=list)
    committable: dict[int, int] = field(default_factory=dict)
    end: int = 0
    singles: dict[int, bytes] = field(default_factory=dict)
    "Correlation ids that are used once, by the request's offset."

    def answers(self) -> Counter[bytes]:
        found = Counter[bytes]()
        for _, topic, _, headers in self.sent:
            if topic == "replies":
                found[header_of(headers, "Faust-Ag-CorrelationId") or b""] += 1
        return found

    def letters(self) -> int:
        return sum(topic == "riffle.dead-letters" for _, topic, _, _ in self.sent)


def record(one: Asked, correlation: bytes) -> tuple[bytes | None, list[tuple[str, bytes]]]:
    user = {"elsewhere": ELSEWHERE, "restoring": RESTORING}.get(one.kind, OWNED)
    body: dict[str, Any] = {"user_id": str(user), "k": 0 if one.kind == "bad field" else 10}
    if one.kind in {"after", "never after"}:
        body["after"] = {"partition": OWNED, "offset": 0 if one.kind == "after" else 99}
    headers = [("content-type", b"application/json"), ("deadline-ms", str(one.budget_ms).encode())]
    headers.append(("Faust-Ag-CorrelationId", correlation))
    if one.kind != "no reply topic":
        headers.append(("Faust-Ag-ReplyTo", b"unheard-of" if one.kind == "unknown topic" else b"replies"))
    return None if one.kind == "no body" else orjson.dumps(body), headers


def recommend_of(loop: VirtualLoop, pipeline: Pipeline, parts: Mapping[int, Partition], producer: Producer) -> Recommend:
    """The part of a worker that answers requests, in the loop's time. A user's id is the number of their partition."""
    return Recommend(
        Settings(partitions=PARTITIONS),
        pipeline,  # type: ignore[arg-type]
        parts,  # type: ignore[arg-type]
        producer,
        Metrics(),
        clock=Clock(loop.time, loop.time),
        partitioner=lambda key, _: int(key),
        aside=pipeline.aside,
    )


async def play(loop: VirtualLoop, script: Sequence[Step], world: World) -> Seen:
    producer, seen, pipeline = Producer(loop, world), Seen(), Pipeline(loop, world)
    parts = {OWNED: Partition(ready=True), RESTORING: Partition(ready=False)}
    made = recommend_of(loop, pipeline, parts, producer)
    running = loop.create_task(made.run())
    letters = 0
    for step in script:
        await asyncio.sleep(step.gap_ms / 1000)
        if step.asked:
            correlations: list[bytes] = []
            rows: list[tuple[bytes | None, list[tuple[str, bytes]]]] = []
            for one in step.asked:
                correlation = one.kind.encode() if one.twice else f"{seen.end + len(rows)}".encode()
                correlations.append(correlation)
                rows.append(record(one, correlation))
                if one.kind == "no reply topic":
                    letters += 1
                elif one.kind != "unknown topic":
                    seen.expected[correlation] += 1
                    if not one.twice:
                        seen.singles[seen.end + len(rows) - 1] = correlation
                    if one.age_ms < one.budget_ms and not one.twice:
                        seen.deadlines[correlation] = loop.time() + (one.budget_ms - one.age_ms) / 1000
            offsets = range(seen.end, seen.end + len(rows))
            stamps = [int(loop.time() * 1000) - one.age_ms for one in step.asked]
            values, headers = [value for value, _ in rows], [headers for _, headers in rows]
            made.on_chunk(Chunk("riffle.requests", OWNED, offsets, [b"0"] * len(rows), values, stamps, headers))
            seen.end += len(rows)
        unanswered = [offset for offset, name in seen.singles.items() if name not in producer.settled]
        assert made.committable().get(OWNED, 0) <= min(unanswered, default=seen.end), "what is committed is answered"
        if step.drains:
            await made.drain(60.0)
            assert made.committable().get(OWNED, seen.end) == seen.end, "the next owner would answer again"
            assert +Counter({name: seen.expected[name] - n for name, n in answered(producer).items()}) == Counter()
            made.forget(OWNED)
    await made.drain(60.0)
    seen.sent, seen.committable = producer.sent, made.committable()
    seen.expected[b"dead letters"] = letters
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return seen


def answered(producer: Producer) -> Counter[bytes]:
    return Seen(sent=producer.sent).answers()


def check(seen: Seen) -> None:
    expected = Counter(seen.expected)
    assert seen.letters() == expected.pop(b"dead letters", 0), "who can hear no answer is a dead letter"
    assert seen.answers() == expected, "one answer each"
    assert seen.committable.get(OWNED, seen.end) == seen.end, "nothing is left to be answered again"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Disable logging, because many pipelines fail here with a stack trace."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@settings(max_examples=60, deadline=None)
@given(scripts, worlds)
def test_each_accepted_request_gets_exactly_one_answer(script: list[Step], world: World) -> None:
    check(run_virtually(lambda loop: play(loop, script, world)))


@settings(max_examples=60, deadline=None)
@given(scripts, honest)
def test_no_answer_is_later_than_the_batches_under_way_while_batches_take_what_is_expected(
    script: list[Step], world: World
) -> None:
    seen = run_virtually(lambda loop: play(loop, script, world))
    check(seen)
    check_in_time(seen)


def check_in_time(seen: Seen) -> None:
    last = {header_of(headers, "Faust-Ag-CorrelationId"): at for at, topic, _, headers in seen.sent if topic == "replies"}
    late = {name: last[name] - deadline for name, deadline in seen.deadlines.items()}
    # two batches are under way: half of the other one, on the loop or in the thread, may come before the rest of this one
    assert max(late.values(), default=0.0) <= 1.5 * FULL_BATCH_S


async def _over_http(loop: VirtualLoop, world: World, budgets: Sequence[int]) -> list[Slate | BaseException]:
    pipeline = Pipeline(loop, world)
    made = recommend_of(loop, pipeline, {OWNED: Partition(ready=True)}, Producer(loop, world))
    running = loop.create_task(made.run())
    asked = [made.recommend(Request(f"{n}", "0"), OWNED, budget / 1000) for n, budget in enumerate(budgets)]
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 3_600.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return found


@settings(max_examples=50, deadline=None)
@given(worlds, st.lists(st.sampled_from([1, 30, 250]), min_size=1, max_size=120))
def test_each_request_over_http_gets_a_slate_or_an_error(world: World, budgets: list[int]) -> None:
    found = run_virtually(lambda loop: _over_http(loop, world, budgets))
    assert all(isinstance(answer, Slate | RiffleError) for answer in found)


async def _left(loop: VirtualLoop, world: World, stays: Sequence[bool]) -> tuple[list[Any], list[str]]:
    """Answers to requests over HTTP, of whose clients some leave at once, and the ids of slates that were logged as shown."""
    producer, pipeline = Producer(loop, world), Pipeline(loop, world)
    made = recommend_of(loop, pipeline, {OWNED: Partition(ready=True)}, producer)
    running = loop.create_task(made.run())
    asked = [made.recommend(Request(f"{n}", "0"), OWNED, 60.0, wanted=lambda here=here: here) for n, here in enumerate(stays)]  # type: ignore[misc]
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 3_600.0)
    await made.drain(60.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    shown = [value for _, topic, value, _ in producer.sent if topic == "riffle.impressions"]
    return found, [decode("impression", value)[0]["request_id"] for value in shown]


@settings(max_examples=50, deadline=None)
@given(worlds, st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_slate_that_nobody_receives_is_not_logged_as_shown(world: World, stays: list[bool]) -> None:
    found, shown = run_virtually(lambda loop: _left(loop, world, stays))
    answers = zip(found, stays, strict=True)
    assert sorted(shown) == sorted(answer.request_id for answer, here in answers if here and isinstance(answer, Slate))


async def _waiting(
    loop: VirtualLoop, world: World, count: int, drains: bool
) -> tuple[list[Slate | BaseException], list[float], float]:
    """Answers to requests over HTTP that wait 30 s for an event in vain, the seconds each took, and those until the drain."""
    pipeline = Pipeline(loop, world)
    made = recommend_of(loop, pipeline, {OWNED: Partition(ready=True)}, Producer(loop, world))
    running = loop.create_task(made.run())
    took_s: list[float] = []
    began_s = loop.time()

    async def ask(n: int) -> Slate:
        try:
            return await made.recommend(Request(f"{n}", "0", after=After(OWNED, 99)), OWNED, 30.0)
        finally:
            took_s.append(loop.time() - began_s)

    asked = [loop.create_task(ask(n)) for n in range(count)]
    await asyncio.sleep(1.0)
    if drains:
        await made.drain(20.0)
    drained_s = loop.time() - began_s
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 3_600.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return found, took_s, drained_s


QUICK = World(0.001, frozenset(), 2, frozenset())


@given(st.integers(1, 80), st.integers(0, 30))
@settings(max_examples=30, deadline=None)
def test_waits_over_http_are_bounded_in_number(count: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waiting, "MAX_WAITING", most)
        found, took_s, _ = run_virtually(lambda loop: _waiting(loop, QUICK, count, drains=False))
    assert all(isinstance(answer, Slate) and answer.degraded == ("stale",) for answer in found)
    assert sum(seconds > 1.0 for seconds in took_s) <= most + 1
    assert sum(seconds <= 1.0 for seconds in took_s) >= count - most - 1, "those that may not wait are answered at once"


@given(st.integers(1, 80))
@settings(max_examples=20, deadline=None)
def test_a_drain_ends_waits_over_http(count: int) -> None:
    found, took_s, drained_s = run_virtually(lambda loop: _waiting(loop, QUICK, count, drains=True))
    assert all(isinstance(answer, Slate) and answer.degraded == ("stale",) for answer in found)
    assert max(took_s) <= drained_s < 29.0, "the drain returns when all are answered, long before their deadline"


class Measured(Pipeline):
    """Records the sizes of batches."""

    def __init__(self, loop: VirtualLoop, world: World) -> None:
        super().__init__(loop, world)
        self.sizes: list[int] = []

    def steps(self, requests: Sequence[Request], users: Users, as_of: Sequence[AsOf], effort: Effort) -> Steps:
        self.sizes.append(len(requests))
        return super().steps(requests, users, as_of, effort)


@dataclass
class Owner:
    """The HTTP interface's service for lists of requests, on a worker that owns every user."""

    recommend_here: Recommend
    metrics: Metrics = field(default_factory=Metrics)

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        return await self.recommend_here.recommend(request, OWNED, (deadline_ms or 250) / 1000)


async def _listed(
    loop: VirtualLoop, world: World, lists: Sequence[Sequence[str]], budget_ms: int
) -> tuple[list[list[Any]], list[int], float]:
    """Answers to simultaneous lists, the sizes of batches, and the seconds that all took. `slow` waits for an event in vain."""
    pipeline = Measured(loop, world)
    made = recommend_of(loop, pipeline, {OWNED: Partition(ready=True)}, Producer(loop, world))
    running = loop.create_task(made.run())
    await asyncio.sleep(0)
    owner: Any = Owner(made)
    kinds: dict[str, Any] = {
        "sound": {"user_id": "0", "request_id": "r"},
        "after": {"user_id": "0", "after": {"partition": OWNED, "offset": 0}},
        "slow": {"user_id": "0", "after": {"partition": OWNED, "offset": 99}},
        "bad": {"user_id": "0", "k": 0},
    }
    started = loop.time()
    asked = [answer_list(owner, [kinds[kind] for kind in one], budget_ms) for one in lists]
    found = await asyncio.wait_for(asyncio.gather(*asked), 3_600.0)
    took_s = loop.time() - started
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return [orjson.loads(orjson.dumps(answers)) for answers in found], pipeline.sizes, took_s


KINDS_OF_LISTED = st.sampled_from(["sound", "sound", "after", "slow", "bad"])


@settings(max_examples=50, deadline=None)
@given(
    worlds,
    st.lists(st.lists(KINDS_OF_LISTED, min_size=1, max_size=MAX_REQUESTS), min_size=1, max_size=3),
    st.sampled_from([30, 250, 5_000]),
)
def test_each_request_of_a_list_gets_its_answer(world: World, lists: list[list[str]], budget_ms: int) -> None:
    found, _, _ = run_virtually(lambda loop: _listed(loop, world, lists, budget_ms))
    assert [len(answers) for answers in found] == [len(one) for one in lists]
    for one, answers in zip(lists, found, strict=True):
        for kind, answer in zip(one, answers, strict=True):
            if kind == "bad":
                assert (answer["status"], answer["error"]["field"]) == (400, "k")
            elif "error" in answer:
                assert (answer["status"], answer["error"]["code"]) in {(504, "deadline_exceeded"), (500, "internal")}
            else:
                assert ("stale" in answer["degraded"]) == (kind == "slow")


@settings(max_examples=30, deadline=None)
@given(honest, st.lists(KINDS_OF_LISTED, min_size=1, max_size=MAX_REQUESTS), st.sampled_from([30, 250, 5_000]))
def test_a_list_is_answered_by_the_deadline_of_its_requests(world: World, kinds: list[str], budget_ms: int) -> None:
    _, _, took_s = run_virtually(lambda loop: _listed(loop, world, [kinds], budget_ms))
    assert took_s <= budget_ms / 1000 + FULL_BATCH_S


@settings(max_examples=20, deadline=None)
@given(st.integers(1, MAX_REQUESTS), st.sampled_from(["sound", "after"]))
def test_requests_of_a_list_are_ranked_in_shared_batches(n: int, kind: str) -> None:
    world = World(0.001, frozenset(), 2, frozenset())
    found, sizes, _ = run_virtually(lambda loop: _listed(loop, world, [[kind] * n], 60_000))
    assert all("items" in answer for answer in found[0])
    first = min(n, 14)  # as many as are expected to take 20 ms, before the duration of batches is known
    assert sizes[0] >= first
    assert sum(sizes) == n
    assert len(sizes) <= 1 + -(-n // 14)


class Recorded(Partition):
    """A partition in which one user's record is damaged."""

    def rows(self, users: Sequence[str]) -> list[bytes | None]:  # type: ignore[override]
        return [b"\x63 of a later version" if user == "8" else None for user in users]


def test_a_record_that_cannot_be_read_and_a_caller_that_left_cost_only_their_own_requests() -> None:
    async def scene(loop: VirtualLoop) -> list[Any]:
        pipeline = Pipeline(loop, World(1.0, frozenset(), 2, frozenset()))
        made = recommend_of(
            loop, pipeline, {OWNED: Recorded(ready=True)}, Producer(loop, World(1.0, frozenset(), 2, frozenset()))
        )
        running = loop.create_task(made.run())
        asked = [loop.create_task(made.recommend(Request(f"{n}", user), OWNED, 1.0)) for n, user in enumerate("0804")]
        await asyncio.sleep(0)
        asked[2].cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        later = await made.recommend(Request("later", "0"), OWNED, 1.0)
        assert not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return [*found, later]

    first, damaged, left, last, later = run_virtually(scene)
    assert all(isinstance(answer, Slate) for answer in (first, last, later))
    assert isinstance(damaged, NotReady)
    assert damaged.code == "internal"
    assert isinstance(left, asyncio.CancelledError)


BURST = [Step(0, (Asked("valid", 250, 0, False),) * 900, False), Step(1, (), False)]


def _answers_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Ranking._finish

    def broken(self: Ranking, pending: Any, answer: Any) -> None:
        finish(self, pending, answer)
        finish(self, pending, answer)

    monkeypatch.setattr(Ranking, "_finish", broken)


def _forgets_a_batch_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Ranking._finish

    def broken(self: Ranking, pending: Any, answer: Any) -> None:
        if not isinstance(answer, NotReady):
            finish(self, pending, answer)

    monkeypatch.setattr(Ranking, "_finish", broken)


def _commits_what_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offsets, "committable", lambda self: dict(self._next))


def _refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def offer(self: Backlog[Any], entry: Any, deadline: float, *, near: bool = False) -> bool:
        self._waiting.append(_Waiting(entry, 1e9, near, 0.0))
        return True

    monkeypatch.setattr(Backlog, "offer", offer)


@pytest.mark.parametrize(
    "breaks", [_answers_twice, _forgets_a_batch_that_failed, _commits_what_is_not_answered, _refuses_nothing]
)
def test_a_build_that_does_otherwise_is_found(
    breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(1.0, frozenset({1}), 2, frozenset())

    def run() -> None:
        seen = run_virtually(lambda loop: play(loop, BURST, world))
        check(seen)
        check_in_time(seen)

    run()
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        run()
