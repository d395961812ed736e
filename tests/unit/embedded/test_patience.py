"""Laws of the wait for a process that is starting."""

from __future__ import annotations

import os
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from streams.embedded.patience import STEP_S, WHOLE, Patience, cpu_seconds


class World:
    """A clock, and the processor time of a process."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used_s = 0.0

    def patience(self, limit_s: float) -> Patience:
        return Patience(limit_s, lambda: self.now, lambda _: self.used_s)


def ticks(world: World, each_s: float, work_s: float) -> Iterator[float]:
    while True:
        world.now += each_s
        world.used_s += work_s
        yield world.now


@given(st.floats(1, 100), st.floats(0.1, 5))
def test_a_process_that_does_nothing_is_given_up_after_the_limit(limit_s: float, each_s: float) -> None:
    world = World()
    patience = world.patience(limit_s)
    assert not patience.is_over(1, "starts")
    ended = next(now for now in ticks(world, each_s, 0.0) if patience.is_over(1, "starts"))
    assert limit_s <= ended <= limit_s + each_s * 1.001


@given(st.floats(2, 100), st.booleans())
def test_a_process_that_works_is_waited_for_and_not_for_ever(limit_s: float, by_cpu: bool) -> None:
    world = World()
    patience = world.patience(limit_s)
    for count, now in enumerate(ticks(world, limit_s / 2, STEP_S if by_cpu else 0.0)):
        over = patience.is_over(1, "starts" if by_cpu else f"{count} partitions are left")
        assert over == (now >= WHOLE * limit_s)
        if over:
            return


def test_a_restart_is_progress() -> None:
    world = World()
    patience = world.patience(10.0)
    for pid in (1, 2, 3):
        assert not patience.is_over(pid)
        world.now += 9.0
    world.now += 1.0
    assert patience.is_over(3)


def test_the_time_of_a_process_is_read_from_the_system() -> None:
    before = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) <= before:
        sum(range(100_000))
    assert cpu_seconds(None) == 0.0
    assert cpu_seconds(2**22 + 1) == 0.0
