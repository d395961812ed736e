"""Figures of a worker that are read when its metrics are asked for, and what is noted of batches."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.figures import Figures
from agents.findings import Health
from agents.health.broker import BrokerProbe
from agents.health.readiness import Readiness
from agents.metrics import Metrics
from agents.requests.batches import note_batch, note_stages
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from schemas.records import Item, Request, Slate
from schemas.settings import Settings


def figures(users: dict[int, Any]) -> Figures:
    settings, health, items = Settings(partitions=4), Health(), ItemStore(4)
    for n in range(9):
        items.upsert(Item(f"i{n}", f"Print {n}"))
    readiness = Readiness(settings, users, BrokerProbe(settings), health)
    return Figures(Metrics(), users, items, CandidatePipeline(items), readiness, health, lambda: 3)


def state(applied: int, durable: int) -> Any:
    ready = SimpleNamespace(is_set=lambda: True)
    return SimpleNamespace(state=SimpleNamespace(ready=ready, trouble=None, probe_reason="", applied=applied, durable=durable))


def test_sums_of_the_pipeline_are_written_once_however_often_metrics_are_read() -> None:
    found = figures({})
    metrics, pipeline = found.metrics, found.pipeline
    for n in range(1, 4):
        pipeline.run([Request("r", "u", k=5)], [None], [None])
        found.write()
        found.write()
        assert metrics.candidates.value(stage="select") == 5 * n == pipeline.counters["passed", "select"]
        assert metrics.retrieved.value(source="popular") == pipeline.counters["source", "popular"] > 0
    assert metrics.requests_waiting.value() == 3
    assert metrics.items_known.value() == 9


def test_what_left_a_worker_is_no_longer_shown() -> None:
    users: dict[int, Any] = {0: state(7, 5), 2: state(9, 9)}
    found = figures(users)
    found.health.warn("archive", "no rights")
    found.write()
    metrics = found.metrics
    assert {labels["partition"]: n for labels, n in metrics.applied_offset.values()} == {"0": 7.0, "2": 9.0}
    assert metrics.warnings.values() == [({"name": "archive"}, 1.0)]
    assert metrics.ready.value() == 0.0
    del users[0]
    found.health.clear("archive")
    found.write()
    assert {labels["partition"]: n for labels, n in metrics.durable_offset.values()} == {"2": 9.0}
    assert metrics.warnings.values() == []


@given(st.lists(st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from("01")), st.integers(0, 9)), max_size=6))
def test_replaced_values_are_exactly_the_newest(steps: list[dict[tuple[str, str], int]]) -> None:
    metrics = Metrics()
    for values in steps:
        metrics.lag.replace({key: float(n) for key, n in values.items()})
        shown = {(labels["topic"], labels["partition"]): n for labels, n in metrics.lag.values()}
        assert shown == values


def test_a_batch_is_noted_once_and_each_of_its_stages() -> None:
    metrics = Metrics()
    slate = Slate("r", "u", (), "none", "default", timings_ms={"hydrate": 2.0, "rank": 30.0})
    note_stages(metrics, [None, slate, slate])
    note_stages(metrics, [None])
    note_batch(metrics, 3, 0.032)
    text = metrics.render()
    assert 'riffle_stage_seconds_count{stage="rank"} 1.0' in text
    assert 'riffle_stage_seconds_bucket{le="0.02",stage="rank"} 0.0' in text
    assert float(text.split('riffle_stage_seconds_sum{stage="hydrate"} ')[1].split()[0]) == pytest.approx(0.002)
    assert 'riffle_batch_requests_bucket{le="4"} 1.0' in text
    assert 'riffle_batch_requests_bucket{le="2"} 0.0' in text
