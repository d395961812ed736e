"""Laws of the breaker, on a fake clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.breaker import FAILURES, HOLD_S, MAX_BREAKERS, Breaker, Breakers


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


steps = st.lists(st.tuples(st.floats(0, 2 * HOLD_S), st.sampled_from(["answers", "fails", "refuses", "leaves"])), max_size=60)


@given(steps)
def test_a_worker_that_failed_is_asked_at_most_once_in_each_hold_time_until_it_answers(steps: list[tuple[float, str]]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    in_row, opened, probed = 0, False, -HOLD_S
    for passed, outcome in steps:
        clock.now += passed
        if not breaker.allows():
            assert opened
            assert clock.now - probed < HOLD_S, "after the hold time, a probe is allowed"
            continue
        if opened:
            assert clock.now - probed >= HOLD_S
        probed = clock.now
        if outcome == "answers":
            breaker.succeeded()
            in_row, opened = 0, False
        elif outcome == "leaves":
            breaker.let_go()
            probed = clock.now - HOLD_S
        else:
            breaker.failed(refused=outcome == "refuses")
            in_row += 1
            opened = opened or outcome == "refuses" or in_row >= FAILURES


@given(st.integers(1, FAILURES - 1))
def test_a_few_failures_between_answers_do_not_open_it(n: int) -> None:
    breaker = Breaker(Clock())
    for _ in range(10):
        for _ in range(n):
            assert breaker.allows()
            breaker.failed()
        assert breaker.allows()
        breaker.succeeded()


def test_while_one_probes_nobody_else_asks_and_a_probe_without_an_outcome_does_not_block_for_ever() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.failed(refused=True)
    assert not breaker.allows()
    clock.now += HOLD_S
    assert breaker.allows()
    assert not breaker.allows(), "half-open: one probe"
    clock.now += HOLD_S
    assert breaker.allows()
    breaker.succeeded()
    assert breaker.allows()
    assert breaker.allows()


@given(steps)
def test_a_breaker_that_begins_open_allows_nothing_but_probes_until_one_is_answered(steps: list[tuple[float, str]]) -> None:
    clock = Clock()
    breaker = Breaker(clock, closed=False)
    assert not breaker.away, "it has not failed yet"
    for passed, outcome in steps:
        clock.now += passed
        due = breaker.due
        assert breaker.allows() == due or breaker.closed
        if outcome == "answers":
            breaker.succeeded()
            assert breaker.closed
            assert not breaker.due
            assert not breaker.away
            return
        if due:
            breaker.failed()
            assert breaker.away
        assert not breaker.closed


def test_each_address_has_its_own_breaker_and_their_number_is_bounded() -> None:
    breakers = Breakers(Clock())
    breakers.of("a:1").failed(refused=True)
    assert not breakers.of("a:1").allows()
    assert breakers.of("b:1").allows()
    for n in range(MAX_BREAKERS):
        breakers.of(f"c:{n}")
    assert breakers.of("a:1").allows(), "forgotten"
