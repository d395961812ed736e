from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.metrics import BUCKETS_S, MAX_SERIES, Metrics


@given(st.lists(st.floats(0, 100), max_size=50))
def test_buckets_are_cumulative_and_end_at_the_count(seconds: list[float]) -> None:
    metrics = Metrics()
    for value in seconds:
        metrics.observe("work_seconds", value)
    lines = dict(line.rsplit(" ", 1) for line in metrics.render().splitlines() if not line.startswith("#"))
    for bound in BUCKETS_S:
        text = str(int(bound)) if bound == int(bound) else repr(bound)
        expected = sum(value <= bound for value in seconds)
        assert not seconds or int(lines[f'riffle_work_seconds_bucket{{le="{text}"}}']) == expected
    assert not seconds or int(lines["riffle_work_seconds_count"]) == len(seconds)
    assert not seconds or math.isclose(float(lines["riffle_work_seconds_sum"]), sum(seconds), abs_tol=1e-9)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9))))
def test_a_counter_is_the_sum_of_what_was_counted(steps: list[tuple[str, int]]) -> None:
    metrics = Metrics()
    for label, n in steps:
        metrics.count("events", n, kind=label)
    for label in "ab":
        assert metrics.value("events", kind=label) == sum(n for other, n in steps if other == label)


@given(st.text())
def test_a_label_value_stays_on_its_line(value: str) -> None:
    metrics = Metrics()
    metrics.count("events", kind=value)
    lines = metrics.render().split("\n")
    assert len(lines) == 3
    assert lines[1].endswith('"} 1')


def test_the_text_is_what_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.describe("events", "Events applied.")
    metrics.count("events", 2, action="view")
    metrics.gauge("lag", 1.5)
    assert metrics.render() == (
        "# HELP riffle_events_total Events applied.\n"
        "# TYPE riffle_events_total counter\n"
        'riffle_events_total{action="view"} 2\n'
        "# TYPE riffle_lag gauge\n"
        "riffle_lag 1.5\n"
    )


def test_a_counter_never_goes_down() -> None:
    with pytest.raises(ValueError, match="never goes down"):
        Metrics().count("events", -1)


def test_series_are_bounded_and_what_is_beyond_is_still_counted() -> None:
    metrics = Metrics()
    for n in range(MAX_SERIES + 10):
        metrics.count("events", who=n)
    assert metrics.value("events", overflow="true") == 10
