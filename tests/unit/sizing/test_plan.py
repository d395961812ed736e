"""Laws of `riffle size`: more load never needs less, units add up, and every cost has a source."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from agents.cli import group
from agents.cli.size import as_json_of, spelled
from agents.partitions import covisits, users
from agents.sizing.costs import COSTS, described
from agents.sizing.plan import LEAST_BROKERS, LEAST_PARTITIONS, LEAST_WORKERS, MIRROR_DAYS, SPARE, Load, Plan, plan
from models.items.store import ItemStore
from schemas.settings import Settings
from streams.kafka.topics import TOPICS
from streams.mirror.redis import TTL_S

AMOUNT = st.one_of(st.just(0.0), st.floats(0.001, 1e10))
LOADS = st.builds(
    Load,
    users=AMOUNT,
    items=AMOUNT,
    events_per_s=AMOUNT,
    requests_per_s=AMOUNT,
    history=st.floats(0.0, 1e5),
    days=st.floats(0.0, 400.0),
    standbys=st.integers(0, 3),
    over_http=st.floats(0.0, 1.0),
)
GROWING = ("users", "items", "events_per_s", "requests_per_s")


def needs(found: Plan) -> dict[str, float]:
    """What must not shrink when the load grows. Volumes and rows count together, because more workers hold less each."""
    return {
        "workers": found.workers.count,
        "partitions": found.workers.partitions,
        "memory": found.workers.memory_bytes,
        "volumes": found.workers.count * found.workers.volume_bytes,
        "brokers": found.kafka.brokers,
        "written": found.kafka.write_bytes_per_s,
        "read": found.kafka.read_bytes_per_s,
        "retained": found.kafka.retained_bytes,
        "replicas": found.kafka.replicas,
        "store": found.store.bytes,
        "writes": found.store.writes_per_s,
        "rebalance": found.times.rebalance_s,
        "lost worker": found.times.lost_worker_s,
        "catalogue": found.times.catalogue_s,
        "mapped catalogue": found.times.mapped_catalogue_s,
        "statistics": found.times.statistics_s,
    }


def assert_no_less(less: Plan, more: Plan) -> None:
    before, after = needs(less), needs(more)
    assert {name for name in before if after[name] < before[name] * (1 - 1e-9)} == set()


@given(LOADS, st.sampled_from(GROWING), st.floats(1.0, 100.0), st.floats(0.0, 1e6))
def test_more_load_never_needs_less(load: Load, what: str, times: float, more: float) -> None:
    assert_no_less(plan(load), plan(replace(load, **{what: getattr(load, what) * times + more})))


@given(LOADS, st.integers(0, 3), st.floats(0.0, 400.0), st.floats(0.0, 1e5))
def test_more_copies_days_and_history_never_need_less(load: Load, copies: int, days: float, history: float) -> None:
    more = replace(load, standbys=load.standbys + copies, days=load.days + days, history=load.history + history)
    assert_no_less(plan(load), plan(more))


@given(LOADS)
def test_every_figure_is_finite_and_not_negative_and_the_worst_limit_comes_first(load: Load) -> None:
    found = plan(load)
    figures = [
        *needs(found).values(),
        found.times.lost_volume_s,
        found.workers.busy_cores,
        *(one.share for one in found.limits),
    ]
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
    shares = [one.share for one in found.limits]
    assert shares == sorted(shares, reverse=True)
    assert found.fits == (shares[0] <= 1.0)
    assert len({one.name for one in found.limits}) == len(found.limits)


@given(LOADS)
def test_a_worker_has_room_for_its_own_work_and_partitions_for_more_workers(load: Load) -> None:
    """The event loop does what it is given, however many workers share it; only what all of them read may exceed its part."""
    found = plan(load)
    shared = next(one for one in found.limits if one.name == "item statistics, read by every worker")
    rounded = SPARE * COSTS.flush_s / COSTS.commit_interval_s * 2
    assert found.workers.busy_cores - shared.used <= COSTS.own_share + rounded
    assert found.workers.partitions >= found.workers.count


@given(st.integers(0, 3), st.floats(0.0, 400.0))
def test_no_load_needs_the_least_and_fits(standbys: int, days: float) -> None:
    found = plan(Load(0.0, 0.0, 0.0, 0.0, days=days, standbys=standbys))
    assert (found.workers.count, found.workers.partitions, found.kafka.brokers) == (
        LEAST_WORKERS,
        LEAST_PARTITIONS,
        LEAST_BROKERS,
    )
    assert found.fits
    assert found.workers.busy_cores == COSTS.idle_cores
    assert (found.store.bytes, found.kafka.retained_bytes, found.times.catalogue_s, found.times.statistics_s) == (0, 0, 0, 0)


@given(LOADS)
def test_numbers_below_zero_count_as_zero(load: Load) -> None:
    below = replace(load, users=-load.users, items=-load.items, events_per_s=-load.events_per_s, requests_per_s=-1.0)
    assert needs(plan(below)) == needs(plan(replace(load, users=0.0, items=0.0, events_per_s=0.0, requests_per_s=0.0)))


@given(LOADS, st.floats(2.0, 1_000.0))
def test_rates_and_bytes_have_consistent_units(load: Load, factor: float) -> None:
    """Another unit of time or of bytes in the costs changes the figures in this unit, and no others."""
    sizes = {name: getattr(COSTS, name) * factor for name in vars_of_bytes()}
    rows = tuple((events, size * factor) for events, size in COSTS.rows)
    before, after = plan(load), plan(load, replace(COSTS, **sizes, rows=rows))
    for name in ("memory", "volumes", "written", "read", "retained", "store"):
        assert needs(after)[name] == pytest.approx(factor * needs(before)[name], rel=1e-9)
    for name in ("workers", "partitions", "brokers", "replicas", "writes", "rebalance", "catalogue", "statistics"):
        assert needs(after)[name] == pytest.approx(needs(before)[name])
    shares = {one.name: one.share for one in before.limits}
    assert {one.name: one.share for one in after.limits} == pytest.approx(shares)


def vars_of_bytes() -> list[str]:
    """Costs in bytes, also a second, of whatever."""
    return [name for name in asdict(COSTS) if "bytes" in name]


@given(st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_a_row_grows_with_its_events_up_to_a_bound(one: float, other: float) -> None:
    few, many = sorted((one, other))
    assert COSTS.rows[0][1] <= COSTS.row_bytes(few) <= COSTS.row_bytes(many) <= COSTS.rows[-1][1]


def test_measured_points_are_met() -> None:
    assert [COSTS.row_bytes(events) for events, _ in COSTS.rows] == pytest.approx([size for _, size in COSTS.rows])


def test_every_cost_has_a_unit_and_a_source_that_exists() -> None:
    root = Path(__file__).parents[3]
    for name, cost in described().items():
        assert cost.value > 0, name
        assert cost.unit, name
        assert cost.by, name
        if cost.measured and cost.by.startswith(("benchmarks/", "docs/", "models/")):
            assert (root / cost.by.split()[0].rstrip(",:;")).is_file(), name
        for mark, words in (("_bytes", "bytes"), ("_per_s", "per "), ("_s", "s")):
            if name.endswith(mark):
                assert words in cost.unit, name
                break


def test_costs_that_the_code_decides_are_those_of_the_code() -> None:
    settings = Settings()
    assert COSTS.commit_interval_s == settings.commit_interval_s
    assert COSTS.session_s == settings.session_timeout_s
    assert COSTS.cache_bytes == settings.cache_mb << 20
    assert COSTS.statistics_per_flush == users.PUBLISHED_AT_ONCE
    assert COSTS.neighbours_per_partition_per_s == covisits.PUBLISHED_AT_ONCE / covisits.LAZY_S
    assert MIRROR_DAYS * 86_400 == TTL_S
    assert sum(spec.partitions == 0 for spec in TOPICS.values()) == 8
    assert sum(spec.partitions == 1 for spec in TOPICS.values()) == 7


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_a_column_by_partition_takes_what_the_costs_say(partitions: int) -> None:
    def taken(count: int) -> int:
        store = ItemStore(count, capacity=64)
        names = ("popularity", "popularity_ms", "events", "value_sum", "value_count", "actions")
        return sum(getattr(store, name).nbytes for name in names)

    assert taken(partitions) == 64 * partitions * COSTS.item_partition_bytes


@given(st.floats(1e-3, 1e20), st.sampled_from(["B", "s", "B/s"]))
def test_a_spelled_number_is_short_and_has_its_unit(value: float, unit: str) -> None:
    text = spelled(value, unit)
    assert text.endswith(unit) or unit == "s"
    assert float(text.split()[0].replace(",", "")) >= 0


def run(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["size", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_prints_the_plan_for_people_and_programs() -> None:
    status, text = run("--users", "1e6", "--items", "1e5", "--events", "1e3", "--requests", "300")
    assert status == 0, text
    assert "The load fits." in text
    status, line = run("--users", "1e6", "--items", "1e5", "--events", "1e3", "--requests", "300", "--json")
    assert status == 0
    found: dict[str, Any] = json.loads(line)
    assert found == json.loads(json.dumps(as_json_of(plan(Load(1e6, 1e5, 1e3, 300.0)))))
    assert {"load", "workers", "kafka", "store", "times", "limits", "fits"} == set(found)


def test_a_load_that_does_not_fit_ends_with_1_and_names_what_breaks_first() -> None:
    status, text = run("--users", "1e9", "--items", "1e8", "--events", "1e6", "--requests", "1e5")
    assert status == 1
    worst = plan(Load(1e9, 1e8, 1e6, 1e5)).limits[0]
    assert f"What breaks first: {worst.name}." in text
    assert json.loads(run("--users", "1e9", "--items", "1e8", "--json")[1])["fits"] is False


def test_costs_are_printed_with_their_sources() -> None:
    status, text = run("--costs")
    assert status == 0
    assert all(name in text for name in described())
    assert set(json.loads(run("--costs", "--json")[1])["costs"]) == set(described())


@pytest.mark.parametrize("wrong", [("--users", "-1"), ("--events", "many"), ("--items", "nan"), ("--standbys", "1.5")])
def test_a_number_that_is_none_is_refused(wrong: tuple[str, str]) -> None:
    assert run(*wrong)[0] == 2
