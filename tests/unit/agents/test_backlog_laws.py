"""Laws of the backlog, on a fake clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.requests.backlog import Backlog, Cost, ReplyLatency

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
            if batch:
                self.now += self.backlog.cost.of(len(batch), 8)
            for entry in batch:
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


@given(st.integers(1, 60), st.integers(0, 80))
def test_no_more_wait_than_allowed(most: int, offered: int) -> None:
    world = World(most=most)
    taken = sum(world.backlog.offer(n, 1e9) for n in range(offered))
    assert taken == len(world.backlog) == min(most, offered)


def test_what_cannot_be_answered_in_time_is_refused_at_once_and_the_urgent_gets_a_small_batch() -> None:
    world = World()
    assert not world.backlog.offer(0, world.now + 0.001)
    assert world.backlog.offer(1, world.now + world.backlog.cost.of(2, 8) + 0.0025)
    for n in range(2, 9):
        assert world.backlog.offer(n, world.now + 10)
    batch, late = world.backlog.take()
    assert batch == [1, 2]
    assert not late


@pytest.mark.parametrize(("fixed", "each"), [(0.002, 0.0003), (0.01, 0.001), (0.001, 0.004), (0.02, 0.0001)])
def test_the_cost_of_batches_is_learned(fixed: float, each: float) -> None:
    cost, rng = Cost(), random.Random(1)
    for _ in range(2_000):
        n = rng.randint(1, 32)
        cost.learn(n, fixed + n * each)
    for n in (1, 8, 32):
        assert cost.of(n, 32) == pytest.approx(fixed + n * each, rel=0.2, abs=0.001)


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
        began_s, expected = now, backlog.cost.of(1, 8)
        batch, late = backlog.take()
        for entry in late:
            # it could still have been answered when the batch before it began, unless that took longer than expected
            assert now <= deadlines[entry] - delay or last_s > 0
            assert now - last_s <= deadlines[entry] - delay
        ended.extend([*batch, *late])
        assert began_s == now
        assert not batch or all(now + expected + delay <= deadlines[entry] for entry in batch)
        now += backlog.cost.of(len(batch), 8) * factors[runs % len(factors)] if batch else 0.0
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
    world.backlog.cost.learn(1, 60.0)
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
        world.backlog.cost.learn(len(batch), 0.02 + 0.012 * len(batch))
        world.backlog.reply.learn(0.2)
        world.now += 0.05
    world.now += 5.0
    taken = []
    for n in range(30):
        if world.backlog.offer(n, world.now + 0.03):
            batch, late = world.backlog.take()
            assert (batch, late) == ([n], [])
            world.backlog.cost.learn(1, 0.006)
            taken.append(n)
    assert len(taken) >= 15
    assert taken[-1] == 29


def test_an_answer_without_a_way_to_go_is_not_refused_for_the_way_of_others() -> None:
    now = 0.0
    backlog: Backlog[int] = Backlog(lambda: now, most=10, batch=8, reply=ReplyLatency(lambda: now, 0.05, 0.05, 0.05))
    assert not backlog.offer(0, 0.02)
    assert backlog.offer(1, 0.02, near=True)
    assert backlog.take() == ([1], [])
