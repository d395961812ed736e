"""Unpublished items are never shown; they appear at their time of publication."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import records_of

from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.state.rows import ItemStatRow
from schemas.parsing import MAX_TIME_MS, epoch_ms
from schemas.records import Interaction, Item, Request
from schemas.validation import item_from

if TYPE_CHECKING:
    from training.release.learned import Learned

NOW = epoch_ms("2026-11-28T12:00:00Z")
DAY = 86_400_000
TIMES = st.none() | st.integers(NOW - 3 * DAY, NOW + 3 * DAY) | st.sampled_from([0, NOW, NOW + 1, MAX_TIME_MS - 1])


class Clock:
    """A clock that a test moves."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def stocked(times: list[int | None]) -> ItemStore:
    """Items with these times of publication; each is popular and a neighbour of item 0."""
    store = ItemStore(1, capacity=4)
    for n, published_at in enumerate(times):
        store.upsert(Item(f"i{n}", "red glass", categories=("c",), published_at=published_at))
        store.set_statistics(f"i{n}", 0, ItemStatRow({"view": 2}, popularity=float(n + 1), updated_ms=NOW, first_ms=NOW))
    others = [f"i{n}" for n in range(1, len(times))]
    store.set_neighbours("i0", others, [1.0] * len(others), float(len(others)))
    return store


@pytest.fixture(params=["without a release", "with a release"])
def slot(request: pytest.FixtureRequest) -> ModelSlot:
    made = ModelSlot()
    if request.param == "with a release":
        from models.release.serving import ServingModel

        learned: Learned = request.getfixturevalue("learned")
        made.swap(ServingModel(learned.release()))
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(TIMES, min_size=2, max_size=12), moves=st.lists(st.integers(-DAY, 2 * DAY), min_size=1, max_size=4))
def test_no_source_shows_an_item_before_its_time_and_all_may_from_then_on(
    slot: ModelSlot, times: list[int | None], moves: list[int]
) -> None:
    if slot.current is not None:
        from models.release.serving import ServingModel

        assert isinstance(slot.current, ServingModel)
        slot.swap(ServingModel(slot.current.release))
    clock, store = Clock(NOW), stocked(times)
    pipeline = CandidatePipeline(store, slot=slot, clock=clock)
    user = records_of([Interaction("e", "u", "i0", NOW, "like")], store)["u"]
    every = tuple(f"i{n}" for n in range(len(times)))
    for move in [0, *moves]:
        clock.now_ms += move
        published = {f"i{n}" for n, time in enumerate(times) if time is None or time <= clock.now_ms}
        requests = [Request("r", "new", k=50), Request("r", "u", k=50), Request("r", "u", k=50, categories=("c",))]
        requests += [Request("r", "new", k=50, candidates=every, explain=True)]
        slates = pipeline.run(requests, [None, user, user, None], [None] * 4)
        for slate in slates:
            assert slate.degraded == ()
            assert {item.item_id for item in slate.items} == published - ({"i0"} if slate.user_id == "u" else set())
        for item in slates[-1].items:
            assert item.explanation is not None
            assert item.explanation["dropped"]["unpublished"] == len(times) - len(published)  # type: ignore[index]
        assert {item.item_id for item in pipeline.similar("i0", 50)} == published - {"i0"}


@pytest.mark.parametrize("published_at", ["9999-12-31", "2026-11-29", NOW + 1, MAX_TIME_MS - 1])
def test_an_item_of_the_future_does_not_lead_the_fresh_ones_until_its_time_has_come(published_at: str | int) -> None:
    clock, store = Clock(NOW), ItemStore(1)
    for n in range(5):
        store.upsert(item_from({"item_id": f"today{n}", "title": "red glass", "published_at": NOW - n}))
    future = item_from({"item_id": "future", "title": "red glass", "published_at": published_at})
    store.upsert(future)
    pipeline = CandidatePipeline(store, clock=clock)

    def shown() -> list[str]:
        return [item.item_id for item in pipeline.run([Request("r", "u", k=3)], [None], [None])[0].items]

    assert shown() == ["today0", "today1", "today2"]
    clock.now_ms = (future.published_at or 0) - 1
    assert shown() == ["today0", "today1", "today2"]
    clock.now_ms += 1
    assert shown() == ["future", "today0", "today1"], "with nothing loaded anew"


def test_a_season_that_is_loaded_ahead_takes_no_places_from_what_is_there() -> None:
    store = ItemStore(1)
    for n in range(400):
        store.upsert(Item(f"next{n}", "red glass", published_at=NOW + DAY))
        store.set_statistics(f"next{n}", 0, ItemStatRow({"view": 9}, popularity=50.0, updated_ms=NOW, first_ms=NOW))
    for n in range(40):
        store.upsert(Item(f"now{n}", "red glass", published_at=NOW - DAY))
    user = records_of([Interaction("e", "u", "now0", NOW)], store)["u"]
    pipeline = CandidatePipeline(store, clock=lambda: NOW)
    slates = pipeline.run([Request("r", "new", k=40), Request("r", "u", k=39)], [None, user], [None, None])
    assert [len(slate.items) for slate in slates] == [40, 39]
    assert "content" in {source for item in slates[1].items for source in item.sources}
    assert len(pipeline.similar("now0", 20)) == 20


def test_features_of_an_item_of_the_future_are_finite(learned: Learned) -> None:
    """An item may have interactions before its time of publication, which may also have changed."""
    from models.release.serving import ServingModel

    slot = ModelSlot()
    slot.swap(ServingModel(learned.release()))
    store = stocked([NOW, MAX_TIME_MS - 1, None])
    user = records_of([Interaction("e", "u", "i0", NOW, "like")], store)["u"]
    for clock_ms in (NOW, MAX_TIME_MS):
        slates = CandidatePipeline(store, slot=slot, clock=Clock(clock_ms)).run([Request("r", "u")], [user], [None])
        assert all(np.isfinite(item.features).all() for item in slates[0].items)
    assert len(slates[0].items) == 2
