"""Laws of the backlog, on a fake clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.requests.backlog import GOOD_TIME, Backlog, ReplyLatency
from agents.requests.costs import Cost, Costs
from models.pipeline.effort import Effort

arrivals = st.lists(st.tuples(st.floats(0, 0.02), st.floats(0.001, 0.3)), min_size=1, max_size=150)


class World:
    """A pipeline that takes exactly the time that the backlog expects."""

    def __init__(self, most: int = 1_000, batch: int = 8) -> None:
        self.now = 100.0
        self.backlog: Backlog[int] = Backlog(
            lambda: self.now, most=most, batch=batch, reply=ReplyLatency(lambda: self.now, 0.002, 0.002, 0.002)
        )
        self.refused: list[int] = []
        self.late: list[int] = []
        self.done: dict[int, float] = {}

    def work(self, until: float) -> None:
        while len(self.backlog) and self.now < until:
            batch, late = self.backlog.take()
            self.late += late
            if len(batch):
                self.now += self.backlog.costs.of(batch.effort, len(batch), 8)
                self.backlog.done(batch)
            for entry in batch.entries:
                assert entry not in self.done
                self.done[entry] = self.now
        self.now = max(self.now, until)


@given(arrivals)
def test_each_request_has_one_end_and_none_is_answered_late(seen: list[tuple[float, float]]) -> None:
    world, deadlines, at = World(), {}, 100.0
    for n, (gap, budget) in enumerate(seen):
        at += gap
        world.work(at)
        deadlines[n] = at + budget
        if not world.backlog.offer(n, deadlines[n]):
            world.refused.append(n)
    world.work(at + 100)
    assert sorted([*world.refused, *world.late, *world.done]) == list(range(len(seen)))
    for n, when in world.done.items():
        assert when <= deadlines[n]
    assert list(world.done) == sorted(world.done), "first come, first served"


@given(st.floats(0.0005, 0.2), st.floats(0.001, 1.0), st.integers(1, 3))
def test_while_idle_no_request_with_time_of_its_own_is_degraded(fixed: float, budget: float, n: int) -> None:
    world = World()
    world.backlog.costs = costs_of(fixed, fixed / 4)
    needed = world.backlog.costs.of(Effort.FULL, n, 8)
    for each in range(n):
        world.backlog.offer(each, world.now + needed / GOOD_TIME + budget + 0.002)
    batch, late = world.backlog.take()
    assert batch.effort is Effort.FULL
    assert not late


@given(st.integers(2, 800), st.floats(0.05, 2.0))
def test_more_waiting_requests_or_less_time_never_raise_the_effort(n: int, budget: float) -> None:
    efforts = []
    for waiting, seconds in ((n // 2, budget), (n, budget), (n, budget * 0.7)):
        world = World()
        for each in range(waiting):
            world.backlog.offer(each, world.now + seconds)
        efforts.append(world.backlog.take()[0].effort)
    assert efforts == sorted(efforts)


def test_under_load_requests_are_degraded_step_by_step_before_any_is_refused() -> None:
    told: dict[int, Effort] = {}
    for waiting in range(1, 400):
        world = World()
        taken = sum(world.backlog.offer(n, world.now + 0.25) for n in range(waiting))
        batch, late = world.backlog.take()
        told[waiting] = batch.effort
        if taken < waiting or late:
            break
    assert list(dict.fromkeys(told.values())) == list(Effort), "each step is used, in this order"


@given(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=10), st.sampled_from([0.1, 0.25, 1.0]))
def test_after_any_stall_lone_requests_are_soon_answered_in_full_again(stalls: list[float], budget: float) -> None:
    world = World()
    for seconds in stalls:
        world.backlog.costs.learn(Effort.FULL, 16, seconds)
        world.backlog.costs.learn(Effort.LIGHT, 1, seconds / 10)
    efforts = []
    for n in range(120):
        if not world.backlog.offer(n, world.now + budget):
            continue
        batch, late = world.backlog.take()
        assert not late
        world.now += 0.003
        world.backlog.done(batch)
        world.now += 0.2
        efforts.append(batch.effort)
    assert efforts[-20:] == [Effort.FULL] * 20


def test_a_request_in_a_hurry_is_degraded_alone() -> None:
    world = World()
    full, least = (world.backlog.costs.of(effort, 1, 8) for effort in (Effort.FULL, max(Effort)))
    assert world.backlog.offer(0, world.now + least + (full - least) / 4 + 0.002)
    for n in range(1, 5):
        assert world.backlog.offer(n, world.now + 10)
    (first, late), (second, later) = world.backlog.take(), world.backlog.take()
    assert first.entries == [0]
    assert first.effort > Effort.FULL
    assert second.entries == [1, 2, 3, 4]
    assert second.effort is Effort.FULL
    assert not late
    assert not later


@given(st.lists(st.tuples(st.sampled_from(Effort), st.integers(1, 8), st.floats(0, 3)), max_size=30), st.integers(1, 40))
def test_less_effort_is_never_expected_to_take_longer(seen: list[tuple[Effort, int, float]], n: int) -> None:
    costs = Costs()
    for effort, size, seconds in seen:
        costs.learn(effort, size, seconds)
    expected = [costs.of(effort, n, 8) for effort in Effort]
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] > 0


def costs_of(fixed: float, each: float) -> Costs:
    costs = Costs()
    costs._known[Effort.FULL] = Cost(fixed, each)
    return costs


@given(st.integers(1, 60), st.integers(0, 80))
def test_no_more_wait_than_allowed(most: int, offered: int) -> None:
    world = World(most=most)
    taken = sum(world.backlog.offer(n, 1e9) for n in range(offered))
    assert taken == len(world.backlog) == min(most, offered)


def test_what_cannot_be_answered_in_time_is_refused_at_once_and_the_urgent_gets_a_small_batch() -> None:
    world = World()
    assert not world.backlog.offer(0, world.now + 0.001)
    assert world.backlog.offer(1, world.now + world.backlog.costs.of(Effort.FULL, 2, 8) + 0.0025)
    for n in range(2, 9):
        assert world.backlog.offer(n, world.now + 10)
    batch, late = world.backlog.take()
    assert batch.entries == [1, 2]
    assert not late


@pytest.mark.parametrize(("fixed", "each"), [(0.002, 0.0003), (0.01, 0.001), (0.001, 0.004), (0.02, 0.0001)])
def test_the_cost_of_batches_is_learned(fixed: float, each: float) -> None:
    costs, rng = Costs(), random.Random(1)
    for _ in range(2_000):
        n = rng.randint(1, 32)
        costs.learn(Effort.FULL, n, fixed + n * each)
    for n in (1, 8, 32):
        assert costs.of(Effort.FULL, n, 32) == pytest.approx(fixed + n * each, rel=0.2, abs=0.001)


@given(arrivals, st.lists(st.floats(0.2, 5.0), min_size=1, max_size=20))
def test_however_long_batches_take_who_gets_no_slate_is_told_in_time_or_right_after_the_batch_that_took_it(
    seen: list[tuple[float, float]], factors: list[float]
) -> None:
    now, delay = 100.0, 0.002
    backlog: Backlog[int] = Backlog(lambda: now, most=1_000, batch=8, reply=ReplyLatency(lambda: now, delay, delay, delay))
    deadlines: dict[int, float] = {}
    ended: list[int] = []
    at, runs = 100.0, 0

    def batch_after() -> None:
        nonlocal now, runs
        began_s, expected = now, backlog.costs.of(max(Effort), 1, 8)
        batch, late = backlog.take()
        for entry in late:
            # it could still have been answered when the batch before it began, unless that took longer than expected
            assert now <= deadlines[entry] - delay or last_s > 0
            assert now - last_s <= deadlines[entry] - delay
        ended.extend([*batch.entries, *late])
        assert began_s == now
        assert all(now + expected + delay <= deadlines[entry] for entry in batch.entries)
        if len(batch):
            now += backlog.costs.of(batch.effort, len(batch), 8) * factors[runs % len(factors)]
            backlog.done(batch)
        runs += 1

    last_s = 0.0
    for n, (gap, budget) in enumerate(seen):
        at += gap
        while len(backlog) and now < at:
            before = now
            batch_after()
            last_s = now - before
        now = max(now, at)
        last_s = max(last_s, now - at)
        deadlines[n] = now + budget
        if not backlog.offer(n, deadlines[n]):
            ended.append(n)
    while len(backlog):
        before = now
        batch_after()
        last_s = now - before
    assert sorted(ended) == list(range(len(seen)))


def test_one_odd_batch_does_not_shut_everybody_out_for_good() -> None:
    world = World()
    world.backlog.costs.learn(Effort.FULL, 1, 60.0)
    told = 0
    while not world.backlog.offer(told, world.now + 0.05):
        told += 1
        assert told < 100


@given(st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.0, 2.0)), min_size=1, max_size=100))
def test_an_answers_way_is_expected_to_take_what_it_took_of_late_within_bounds(seen: list[tuple[float, float]]) -> None:
    now = 0.0
    delay = ReplyLatency(lambda: now, 0.01, 0.1)
    for took, gap in seen:
        before = delay.seconds
        delay.learn(took)
        assert 0.01 - 1e-9 <= delay.seconds <= 0.1 + 1e-9
        assert min(before, took) - 1e-9 <= delay.seconds <= max(before, took, 0.01) + 1e-9
        after = delay.seconds
        now += gap
        assert delay.seconds <= after + 1e-9
    now += 10 * ReplyLatency.HALF_S
    assert delay.seconds == pytest.approx(0.01, abs=1e-3), "what a burst taught is forgotten"
    for _ in range(400):
        delay.learn(0.03)
    assert delay.seconds == pytest.approx(0.03, rel=0.05)


def test_after_a_burst_a_lone_request_is_answered_again() -> None:
    world = World(batch=32)
    for n in range(300):
        world.backlog.offer(n, world.now + 0.25)
    while len(world.backlog):
        batch, _ = world.backlog.take()
        world.now += 0.02 + 0.012 * len(batch)
        if len(batch):
            world.backlog.done(batch)
        world.backlog.reply.learn(0.2)
        world.now += 0.03
    world.now += 5.0
    taken = []
    for n in range(30):
        if world.backlog.offer(n, world.now + 0.03):
            batch, late = world.backlog.take()
            assert (batch.entries, late) == ([n], [])
            world.now += 0.006
            world.backlog.done(batch)
            taken.append(n)
    assert len(taken) >= 15
    assert taken[-1] == 29


def test_an_answer_without_a_way_to_go_is_not_refused_for_the_way_of_others() -> None:
    now = 0.0
    backlog: Backlog[int] = Backlog(lambda: now, most=10, batch=8, reply=ReplyLatency(lambda: now, 0.05, 0.05, 0.05))
    assert not backlog.offer(0, 0.02)
    assert backlog.offer(1, 0.02, near=True)
    batch, late = backlog.take()
    assert (batch.entries, late) == ([1], [])
