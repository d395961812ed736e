"""Samples of a worker's metrics, and the newest requests: laws and examples on a moved clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.metrics import Metrics
from agents.requests.recent import KEPT as RECENT
from agents.requests.recent import KEPT_S, Recent
from agents.samples import KEPT, WINDOW, Samples, quantile
from schemas.errors import DeadlineExceeded
from schemas.records import Request, Slate

BOUNDS = (0.001, 0.01, 0.1, 1.0, math.inf)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60), st.floats(0.0, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    counts = np.asarray([sum(value <= bound for value in values) for bound in BOUNDS], float)
    found = quantile(BOUNDS, counts, q)
    assert found is not None
    true = next(value for n, value in enumerate(sorted(values), 1) if n >= q * len(values))
    place = next(n for n, bound in enumerate(BOUNDS) if true <= bound)
    low, high = (BOUNDS[place - 1] if place else 0.0), BOUNDS[place]
    assert low <= found <= (low if math.isinf(high) else high)


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_quantiles_ascend(buckets: list[int], one: float, other: float) -> None:
    counts = np.cumsum(buckets).astype(float)
    low, high = (quantile(BOUNDS, counts, q) for q in sorted((one, other)))
    assert (low is None) == (high is None) == (counts[-1] == 0)
    assert low is None or high is None or low <= high


def test_rates_are_per_second_and_quantiles_over_the_window() -> None:
    metrics, clock = Metrics(), Clock()
    samples = Samples(metrics, clock)
    samples.take()
    metrics.events.add(30, outcome="applied")
    metrics.events.add(1_000, outcome="replayed")
    metrics.requests.add(4, outcome="slate")
    metrics.requests.add(2, outcome="degraded")
    metrics.requests.add(2, outcome="deadline_exceeded")
    metrics.answer_seconds.observe(0.004, interface="http", outcome="slate")
    metrics.answer_seconds.observe(0.4, interface="kafka", outcome="slate")
    metrics.event_visible_seconds.observe(0.012)
    metrics.lag.set(7, topic="t", partition="0")
    clock.now += 2.0
    samples.take()
    found = samples.since(0)
    assert (found["at"], found["next"]) == ([1_002_000], 2)
    assert (found["events"], found["requests"], found["degraded"], found["refused"]) == ([15.0], [4.0], [1.0], [1.0])
    assert found["lag"] == [7.0]
    assert 3.0 <= found["p50_ms"][0] <= 5.0
    assert 300.0 <= found["p99_ms"][0] <= 500.0
    assert 10.0 <= found["freshness_ms"][0] <= 15.0
    for _ in range(WINDOW):
        clock.now += 1.0
        samples.take()
    assert samples.since(0)["p50_ms"][-1] is None, "the answers have left the window"
    assert samples.since(0)["events"][-1] == 0.0


@pytest.mark.parametrize("taken", [0, 1, 2, WINDOW, KEPT, KEPT + WINDOW + 5])
def test_asking_again_returns_only_what_is_new(taken: int) -> None:
    clock = Clock()
    samples = Samples(Metrics(), clock)
    for _ in range(taken):
        clock.now += 1.0
        samples.take()
    everything = samples.since(0)
    assert len(everything["at"]) == max(0, min(taken - 1, KEPT))
    assert {len(column) for column in everything.values() if isinstance(column, list)} == {len(everything["at"])}
    assert samples.since(everything["next"])["at"] == []
    clock.now += 1.0
    samples.take()
    assert len(samples.since(everything["next"])["at"]) == (1 if taken else 0)
    # a client that knows samples of an earlier process gets all
    assert len(samples.since(10_000)["at"]) == max(0, min(taken, KEPT))


def slate(request_id: str, user_id: str) -> Slate:
    return Slate(request_id, user_id, (), "r1", "default", timings_ms={"rank": 1.0})


def test_recent_requests_are_the_newest_and_leave_out_the_old_and_the_erased() -> None:
    clock = Clock()
    recent = Recent(clock)
    recent.note(Request("a", "ann", k=3), "http", 0.0123, slate("a", "ann"))
    clock.now += KEPT_S
    recent.note(Request("b", "bea"), "kafka", 0.5, DeadlineExceeded("deadline_exceeded", "too late"))
    recent.note(Request("c", "ann"), "http", 0.001, slate("c", "ann"))
    found = recent.listed(10)
    assert [entry["request_id"] for entry in found] == ["c", "b", "a"]
    assert (found[2]["ms"], found[2]["k"], found[2]["outcome"], found[2]["release"]) == (12.3, 3, "slate", "r1")
    assert (found[1]["outcome"], found[1]["interface"], found[1]["release"]) == ("deadline_exceeded", "kafka", None)
    clock.now += 0.1
    assert [entry["request_id"] for entry in recent.listed(10)] == ["c", "b"], "the first is too old"
    recent.forget("ann")
    assert [entry["user_id"] for entry in recent.listed(10)] == ["bea"]
    for n in range(RECENT + 5):
        recent.note(Request(str(n), "u"), "http", 0.0, slate(str(n), "u"))
    assert len(recent.listed(1_000)) == RECENT
    assert len(recent.listed(7)) == 7
