"""The trace of a request agrees with the slate, and its figures add up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_shop import shop

from models.items.search import found_rows, statistics_of
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.trace import Trace
from models.state.rows import ItemStatRow, UserRecord
from schemas.records import Request

ITEMS, EVENTS = shop()
NOW_MS = EVENTS[-1].event_time


def store() -> ItemStore:
    items = ItemStore(1)
    counts: dict[str, ItemStatRow] = {}
    for item in ITEMS:
        items.upsert(replace(item, published_at=None))
    for event in EVENTS:
        row = counts.setdefault(event.item_id, ItemStatRow(updated_ms=NOW_MS))
        row.counts[event.action] = row.counts.get(event.action, 0) + 1
        row.popularity += 1.0
    for item_id, row in counts.items():
        items.set_statistics(item_id, 0, row)
    items.set_neighbours("p00", ["p01", "p05", "p06"], [3.0, 2.0, 1.0], 6.0)
    return items


STORE = store()


def person(seen: list[str]) -> UserRecord:
    record = UserRecord(counts={"like": len(seen)} if seen else {}, first_ms=NOW_MS)
    for item_id in seen:
        record.seen.add(item_id)
    return record


IDS = st.sampled_from([item.item_id for item in ITEMS])


@given(st.lists(IDS, unique=True, max_size=12), st.lists(IDS, unique=True, max_size=5), st.integers(1, 40))
def test_every_candidate_is_accounted_for(seen: list[str], exclude: list[str], k: int) -> None:
    pipeline = CandidatePipeline(STORE, clock=lambda: NOW_MS)
    request = Request("r", "u", k=k, exclude=tuple(exclude), explain=True)
    trace = Trace(STORE, pipeline.source_names)
    (slate,) = pipeline.observed(trace).run([request], [person(seen)], [None])
    found = cast("dict[str, Any]", trace.to_json())
    dropped = {entry["name"]: entry["dropped"] for entry in found["filters"]}
    assert found["merged"] == found["passed"] + sum(dropped.values())
    assert found["merged"] >= found["passed"] >= found["ranked"] >= found["shown"] == len(slate.items)
    if slate.items:
        told = cast("dict[str, Any]", dict(slate.items[0].explanation or {}))["dropped"]
        assert {name: told[name] for name in dropped} == dropped
    for source in found["sources"]:
        assert source["brought"] == source["passed"] + source["dropped"]
        assert source["passed"] >= max(source["ranked"], source["alone"])
        assert source["ranked"] >= source["shown"]
        assert source["shown"] == sum(source["name"] in item.sources for item in slate.items)
    placed = sorted((entry for entry in found["candidates"] if entry["position"] is not None), key=lambda e: e["position"])
    assert [entry["item_id"] for entry in placed] == [item.item_id for item in slate.items]
    assert [entry["rank"] for entry in found["candidates"]] == sorted(entry["rank"] for entry in found["candidates"])
    assert pipeline.counters == {}, "a traced run is no request"


def test_a_trace_does_not_change_the_slate() -> None:
    pipeline = CandidatePipeline(STORE, clock=lambda: NOW_MS)
    request, user = Request("r", "u", k=12), person(["p00", "p07"])
    (plain,) = pipeline.run([request], [user], [None])
    (traced,) = pipeline.observed(Trace(STORE, pipeline.source_names)).run([request], [user], [None])
    assert traced.items == plain.items


def found(text: str, most: int = 5) -> list[str]:
    return [STORE.ids[row] for row in found_rows(STORE, text, most)]


@pytest.mark.parametrize("item", ITEMS)
def test_an_item_is_found_first_by_its_id_and_among_the_first_by_its_words(item: Any) -> None:
    assert found(item.item_id)[0] == item.item_id
    alike = sum(other.categories == item.categories for other in ITEMS)
    assert item.item_id in found(item.title.upper(), alike)


def test_nothing_is_found_by_words_that_no_item_has_and_all_are_found_by_none() -> None:
    assert found("xylophone quartz") == []
    everything = found("", 100)
    assert sorted(everything) == [item.item_id for item in ITEMS]
    popular = [STORE.popularity_now()[STORE.row_of(item_id)] for item_id in everything]
    assert popular == sorted(popular, reverse=True)


def test_withdrawn_items_are_not_found() -> None:
    items = store()
    items.remove("p00")
    assert "p00" not in [items.ids[row] for row in [*found_rows(items, "p00", 50), *found_rows(items, "", 50)]]
    assert found_rows(ItemStore(1), "", 5) == found_rows(ItemStore(1), "x", 5) == []


def test_statistics_are_those_of_the_events() -> None:
    likes = sum(event.item_id == "p00" and event.action == "like" for event in EVENTS)
    all_events = sum(event.item_id == "p00" for event in EVENTS)
    told = cast("dict[str, Any]", statistics_of(STORE, STORE.row_of("p00")))
    assert (told["events"], told["actions"].get("like", 0), told["neighbours"]) == (all_events, likes, 3)
    assert told["popularity"] == pytest.approx(all_events, rel=1e-3)
    assert told["mean_value"] is None
