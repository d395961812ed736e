"""Laws of the choice of the rows that answer a request over HTTP, in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.metrics import Metrics
from agents.partitions.copies import MIRROR, NO_STATE, STANDBY, Found
from agents.requests.routing import LONG_SHARE, MOST_S, SHARE, SHARE_AFTER, Elsewhere, Others, Routing, others
from agents.web.peers import PeerAway
from agents.web.protocol import Wanted, always
from schemas.errors import BadRequest, DeadlineExceeded, NotReady
from schemas.records import After, AsOf, Request, Slate
from streams.kafka.assignor import Holders

OWN = "here"
PARTITION = 3
RANKING_S = 0.005
PEER = ["answers", "copy", "away", "silent", "not_held", "overloaded", "broken"]
ENOUGH_S = 0.05


@dataclass
class Scene:
    """What each place does with a request, and what was asked."""

    own: str = "none"
    "Of the partition here: `none`, `ready`, `restoring`, or `lost` while the request waits."
    copy: bool = False
    owner: str | None = None
    "What the owner does; None if its address is not known."
    standbys: tuple[str, ...] = ()
    over_kafka: str = "silent"
    mirrored: bool = False
    here: bool = False
    asked: list[tuple[str, float]] = field(default_factory=list)
    "Places that were asked, and the seconds that they got."

    def __post_init__(self) -> None:
        self.parts: dict[int, Any] = {}
        if self.own != "none":
            self.parts[PARTITION] = SimpleNamespace(state=SimpleNamespace(ready=asyncio.Event()))
            if self.own in {"ready", "lost"}:
                self.parts[PARTITION].state.ready.set()
        self.found: list[Found | None] = []

    async def recommend(
        self, request: Request, partition: int, deadline_s: float, found: Found | None = None, wanted: Wanted = always
    ) -> Slate:
        if deadline_s < RANKING_S:
            raise DeadlineExceeded("deadline_exceeded", "too late")
        await asyncio.sleep(RANKING_S)
        if found is None and self.own == "lost":
            self.parts[partition].state.ready.clear()
            raise NotReady("not_ready", "a rebalance")
        self.found.append(found)
        marks = (found.degraded,) if found else ()
        return Slate(request.request_id, request.user_id, (), OWN, "default", marks)

    def find(self, partition: int, user_id: str) -> Found | None:
        return Found(None, AsOf(partition, 7, 1), STANDBY) if self.copy else None

    async def ask(self, address: str, request: Request, within_s: float) -> Slate:
        self.asked.append((address, within_s))
        does = address.partition("-")[0]
        if does == "silent":
            await asyncio.sleep(within_s)
        if does in {"silent", "away"}:
            raise PeerAway("peer_away", "no answer")
        await asyncio.sleep(RANKING_S)
        if does == "not_held":
            raise NotReady("not_held", "no rows")
        if does == "overloaded":
            raise DeadlineExceeded("deadline_exceeded", "many wait")
        if does == "broken":
            raise NotReady("internal", "ranking failed")
        return Slate(request.request_id, request.user_id, (), address, "default", (STANDBY,) if does == "copy" else ())

    async def kafka(self, request: Request, within_s: float) -> Slate:
        self.asked.append(("kafka", within_s))
        if self.over_kafka == "silent":
            await asyncio.sleep(within_s)
            raise DeadlineExceeded("deadline_exceeded", "no answer")
        if self.over_kafka == "broken":
            raise NotReady("broker_unavailable", "no broker")
        return Slate(request.request_id, request.user_id, (), "kafka", "default")

    async def mirror(self, user_id: str, within_s: float) -> Found | None:
        assert within_s > 0
        return Found(None, None, MIRROR) if self.mirrored else None

    def routing(self, loop: VirtualLoop) -> tuple[Routing, Metrics]:
        metrics = Metrics()
        places = Others(self.owner, tuple(f"{does}-{n}" for n, does in enumerate(self.standbys)), self.here)
        elsewhere = Elsewhere(lambda _: places, self, self.kafka, self.mirror)
        clock: Any = SimpleNamespace(monotonic=loop.time)
        return Routing(self, self.parts, self, elsewhere, metrics, clock), metrics


scenes = st.builds(
    Scene,
    st.sampled_from(["none", "ready", "restoring", "lost"]),
    st.booleans(),
    st.none() | st.sampled_from(PEER),
    st.lists(st.sampled_from(PEER), max_size=3).map(tuple),
    st.sampled_from(["answers", "silent", "broken"]),
    st.booleans(),
    st.booleans(),
)


def answered(scene: Scene, deadline_s: float, after: After | None = None) -> tuple[Slate, float, Metrics]:
    """The slate, the seconds that it took, and the metrics."""

    async def run(loop: VirtualLoop) -> tuple[Slate, float, Metrics]:
        routing, metrics = scene.routing(loop)
        started = loop.time()
        slate = await routing.recommend(Request("r", "ann", after=after), PARTITION, deadline_s)
        return slate, loop.time() - started, metrics

    return run_virtually(run)


@given(scenes, st.floats(0.25, 10), st.none() | st.just(After(PARTITION, 9)))
def test_whoever_is_away_there_is_an_answer_in_time_from_the_best_rows(
    scene: Scene, deadline_s: float, after: After | None
) -> None:
    slate, seconds, metrics = answered(scene, deadline_s, after)
    assert seconds <= deadline_s
    marks = set(slate.degraded)
    elsewhere = {scene.owner, *scene.standbys} if scene.own == "none" and not scene.here else set(scene.standbys)
    if scene.own == "ready":
        assert not marks, "its ready owner answers"
        assert not scene.asked
    elif (
        scene.own == "none"
        and not scene.here
        and (scene.owner == "answers" or (scene.owner, scene.over_kafka) == (None, "answers"))
    ):
        assert not marks, "the owner answers, wherever it is"
    elif scene.copy or {"copy", "answers"} & elsewhere:
        assert marks <= {STANDBY}, "rows of the partition are preferred to none"
    else:
        assert marks == ({MIRROR} if scene.mirrored else {NO_STATE})
    assert sum(metrics.requests_without_owner.value(rows=mark) for mark in (STANDBY, MIRROR, NO_STATE)) == len(marks)


@given(scenes, st.floats(0.25, 10), st.booleans())
def test_another_worker_gets_a_share_of_the_time_that_is_left(scene: Scene, deadline_s: float, token: bool) -> None:
    answered(scene, deadline_s, After(PARTITION, 9) if token else None)
    without = min(deadline_s * SHARE, max(MOST_S, deadline_s * LONG_SHARE))
    for _, within_s in scene.asked:
        assert within_s <= (deadline_s * SHARE_AFTER if token else without) + 1e-9


@given(scenes, st.floats(0.25, 10))
def test_who_asks_on_behalf_of_another_worker_gets_rows_that_are_held_here_or_none(scene: Scene, deadline_s: float) -> None:
    async def run(loop: VirtualLoop) -> Slate | NotReady:
        routing, _ = scene.routing(loop)
        try:
            return await routing.recommend_here(Request("r", "ann"), PARTITION, deadline_s)
        except NotReady as error:
            return error

    outcome = run_virtually(run)
    assert scene.asked == [], "so that requests do not go round"
    if isinstance(outcome, Slate):
        assert outcome.degraded == (() if scene.own == "ready" else (STANDBY,))
    else:
        assert outcome.code == "not_held"
        assert scene.own != "ready"
        assert not scene.copy


def test_a_partition_that_becomes_ready_in_time_is_waited_for() -> None:
    scene = Scene(own="restoring")

    async def run(loop: VirtualLoop) -> Slate:
        routing, _ = scene.routing(loop)
        loop.call_later(0.2, scene.parts[PARTITION].state.ready.set)
        return await routing.recommend(Request("r", "ann"), PARTITION, 1.0)

    assert run_virtually(run).degraded == ()


def test_any_number_of_silent_workers_leaves_time_for_an_answer() -> None:
    for token in (None, After(PARTITION, 9)):
        slate, seconds, _ = answered(Scene(owner="silent", standbys=("silent",) * 50), 0.25, token)
        assert slate.degraded == (NO_STATE,)
        assert seconds <= 0.25


def test_a_dead_owner_without_a_copy_is_not_waited_for() -> None:
    scene = Scene(owner="away", standbys=("away",))
    slate, seconds, _ = answered(scene, 10.0)
    assert slate.degraded == (NO_STATE,)
    assert seconds <= ENOUGH_S


def test_a_request_that_another_worker_refuses_is_refused() -> None:
    class Strict(Scene):
        async def ask(self, address: str, request: Request, within_s: float) -> Slate:
            raise BadRequest("invalid_field", "odd")

    with pytest.raises(BadRequest):
        answered(Strict(owner="answers", copy=True), 1.0)


addresses = st.none() | st.sampled_from([OWN, "a", "b", "c", "far"])


@given(addresses, st.lists(addresses.filter(bool), max_size=4).map(tuple))
def test_nobody_asks_itself_or_who_cannot_be_reached(owner: str | None, standbys: tuple[str, ...]) -> None:
    found = others(Holders(owner, standbys), OWN, lambda address: None if address == "far" else address)
    assert found.here == (owner == OWN)
    assert found.owner == (None if owner in {OWN, "far"} else owner)
    assert OWN not in found.standbys
    assert "far" not in found.standbys
    assert set(found.standbys) == set(standbys) - {OWN, "far", owner}


@given(st.none() | st.builds(AsOf, st.integers(0, 3), st.integers(-1, 9), st.just(0)), st.integers(0, 3), st.integers(0, 9))
def test_rows_reflect_a_token_only_if_they_are_known_to(as_of: AsOf | None, partition: int, offset: int) -> None:
    found = Found(None, as_of, STANDBY)
    assert found.reflects(None)
    assert found.reflects(After(partition, offset)) == (
        as_of is not None and as_of.partition == partition and as_of.offset >= offset
    )


def test_attempts_grow_rare_while_partitions_move_and_a_lasting_failure_is_not_repeated() -> None:
    moving, broken = Scene(owner="not_held-o"), Scene(owner="broken-o")
    for scene in (moving, broken):
        slate, _, _ = answered(scene, 60.0, After(PARTITION, 9))
        assert slate.degraded == (NO_STATE,)
    assert 5 <= len(moving.asked) <= 150, "45 s at most twice a second"
    assert len(broken.asked) == 1
