"""Laws of stages: dependent lists are derived from one list, and observers see every step without any effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.filters import FILTERS
from models.pipeline.hydrators import HYDRATORS
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.ragged import Ragged
from models.pipeline.scoring import DEFAULT_WEIGHTS, LightScorer
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import RETRIEVING, SOURCES
from models.pipeline.stages import Filter, Observer
from models.state.rows import UserRecord
from models.state.users import Users
from schemas.records import Interaction, Item, Request, Slate
from training.replay.world import SimulatedWorker

NOW = 1_000_000
N = 20
EVERY = tuple(f"i{n}" for n in range(N))
STATES = ("plain", "unavailable", "future", "removed", "other category")


def world_of(
    states: Sequence[str], seen: Sequence[int], *, with_release: bool = False
) -> tuple[SimulatedWorker, UserRecord | None]:
    slot = ModelSlot()
    items = [
        Item(
            f"i{n}",
            f"thing {n % 4}",
            categories=("d",) if state == "other category" else ("c",),
            available=state != "unavailable",
        )
        for n, state in enumerate(states)
    ]
    world = SimulatedWorker(items, slot)
    for n, state in enumerate(states):
        if state == "removed":
            world.items.remove(f"i{n}")
        if state == "future":
            world.items.upsert(Item(f"i{n}", f"thing {n % 4}", categories=("c",), published_at=NOW + 1))
    world.apply([Interaction(f"e{k}", "u", f"i{n}", 1_000 + k, "like") for k, n in enumerate(seen)])
    if with_release:
        slot.swap(FakeModel(world.items))
    return world, world.record("u")


class Recorder(Observer):
    """Everything that a run reports."""

    def __init__(self) -> None:
        self.retrieved, self.dropped = Counter[str](), Counter[str]()
        self.scored = self.ranked = 0
        self.calls: list[str] = []
        self.chosen: list[list[int]] = []

    def on_hydrated(self, queries: Queries) -> None:
        self.calls.append("hydrated")

    def on_retrieved(self, queries: Queries, source: str, retrieved: Retrieved) -> None:
        self.calls.append("retrieved")
        self.retrieved[source] += len(retrieved.item_row)

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:
        self.calls.append("dropped")
        self.dropped[stage] += len(candidates)

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        self.calls.append("scored")
        self.scored = len(candidates)

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:
        self.calls.append("ranked")
        assert len(candidates.features) == len(candidates.heads) == len(candidates)
        self.ranked = len(candidates)

    def on_selected(self, queries: Queries, candidates: Candidates, chosen: Ragged) -> None:
        self.calls.append("selected")
        self.chosen = [candidates.item_row[places].tolist() for places in chosen]


def test_every_source_has_a_name_and_a_weight_of_its_own() -> None:
    names = [source.name for source in SOURCES]
    assert len(set(names)) == len(names)
    assert list(DEFAULT_WEIGHTS) == names
    assert np.isfinite(list(DEFAULT_WEIGHTS.values())).all()
    assert all(source.default_weight > 0 for source in RETRIEVING), "every retrieving source has a positive weight"
    assert [type(source) for source in CandidatePipeline(ItemStore(1)).sources] == list(SOURCES)


def test_a_source_without_a_weight_is_refused() -> None:
    class Bare:
        name = "bare"

    with pytest.raises(AttributeError, match="default_weight"):
        LightScorer([Bare()])  # type: ignore[list-item]


@pytest.mark.parametrize("light", [{}, {"popular": 1.0, "of an older Riffle": 3.0}])
def test_a_release_that_names_other_sources_still_serves(light: dict[str, float]) -> None:
    world, user = world_of(["plain"] * N, [1, 2])
    world.slot.swap(FakeModel(world.items, light))
    slate = CandidatePipeline(world.items, slot=world.slot).run([Request("r", "u", k=5)], [user], [None])[0]
    assert slate.degraded == ()
    assert len(slate.items) == 5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, N - 1), max_size=8), st.booleans(), st.lists(st.booleans(), min_size=1, max_size=4))
def test_a_slate_holds_seen_items_only_where_the_request_allows_repeats(
    seen: list[int], with_release: bool, allowed: list[bool]
) -> None:
    world, user = world_of(["plain"] * N, seen, with_release=with_release)
    pipeline = CandidatePipeline(world.items, slot=world.slot)
    requests = [Request(f"r{n}", "u", k=N, repeats=repeats) for n, repeats in enumerate(allowed)]
    slates = pipeline.run(requests, [user] * len(requests), [None] * len(requests))
    mine = {f"i{n}" for n in seen}
    for slate, repeats in zip(slates, allowed, strict=True):
        shown = {item.item_id for item in slate.items}
        assert not slate.degraded
        assert shown >= mine if repeats else not shown & mine
        for item in slate.items:
            assert ("history" in item.sources) == (item.item_id in mine)


def test_seen_candidates_of_a_request_are_ranked_where_it_allows_repeats() -> None:
    world, user = world_of(["plain"] * N, [1, 2])
    pipeline, candidates = CandidatePipeline(world.items, slot=world.slot), ("i1", "i7")
    for repeats, expected in ((False, ["i7"]), (True, ["i1", "i7"])):
        request = Request("r", "u", candidates=candidates, repeats=repeats)
        slate = pipeline.run([request], [user], [None])[0]
        assert sorted(item.item_id for item in slate.items) == expected


def test_no_two_stages_of_a_kind_share_a_name() -> None:
    for stages in (FILTERS, HYDRATORS):
        names = [stage.name for stage in stages]
        assert len(set(names)) == len(names)
    pipeline = CandidatePipeline(ItemStore(1))
    assert [type(stage) for stage in pipeline.filters] == list(FILTERS)
    assert [type(stage) for stage in pipeline.hydrators] == list(HYDRATORS)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(STATES), min_size=N, max_size=N),
    st.lists(st.integers(0, N - 1), max_size=6),
    st.lists(st.sampled_from(EVERY), max_size=6),
    st.sampled_from([(), ("c",), ("d",)]),
)
def test_every_filter_counts_what_it_drops(
    states: list[str], seen: list[int], excluded: list[str], categories: tuple[str, ...]
) -> None:
    world, user = world_of(states, seen)
    request = Request("r", "u", k=N, candidates=EVERY, exclude=tuple(excluded), categories=categories)
    for filters in (*((stage(),) for stage in FILTERS), tuple(stage() for stage in FILTERS)):
        watch = Recorder()
        pipeline = CandidatePipeline(world.items, filters=filters, clock=lambda: NOW, observers=[watch])
        slate = pipeline.run([request], [user], [None])[0]
        counted = {name: n for (kind, name), n in pipeline.counters.items() if kind == "filter"}
        assert sum(counted.values()) == N - len(slate.items)
        assert {name: watch.dropped[name] for name in counted if name not in {"unknown", "repeated"}} == {
            stage.name: counted[stage.name] for stage in filters
        }


@pytest.mark.parametrize("stage", FILTERS)
def test_every_filter_drops_something_of_its_own(stage: type[Filter]) -> None:
    world, user = world_of([STATES[n % len(STATES)] for n in range(N)], [0])
    pipeline = CandidatePipeline(world.items, filters=[stage()], clock=lambda: NOW)
    pipeline.run([Request("r", "u", k=N, candidates=EVERY, exclude=("i5",), categories=("c",))], [user], [None])
    assert pipeline.counters["filter", stage.name] > 0


@settings(max_examples=30)
@given(st.lists(st.integers(0, N - 1), max_size=6), st.integers(1, N), st.integers(1, N), st.booleans())
def test_a_run_that_is_observed_gives_the_same_slate_and_reports_every_stage(
    seen: list[int], k: int, light_top: int, with_release: bool
) -> None:
    world, user = world_of(["plain"] * N, seen, with_release=with_release)
    settings_, watch = PipelineSettings(light_top=light_top), Recorder()
    request = Request("r", "u", k=k)
    plain = CandidatePipeline(world.items, settings_, slot=world.slot).run([request], [user], [None])[0]
    observed = CandidatePipeline(world.items, settings_, slot=world.slot)
    observed.observe(watch)
    slate = observed.run([request], [user], [None])[0]
    assert [(item.item_id, item.score, item.sources) for item in slate.items] == [
        (item.item_id, item.score, item.sources) for item in plain.items
    ]
    assert list(watch.retrieved) == [source.name for source in SOURCES]
    assert list(watch.dropped) == [stage.name for stage in FILTERS]
    assert watch.ranked == (min(watch.scored, max(k, light_top)) if with_release else 0)
    assert [world.items.ids[row] for row in watch.chosen[0]] == [item.item_id for item in slate.items]
    order = ["hydrated", *["retrieved"] * len(SOURCES), *["dropped"] * len(FILTERS), "scored", "ranked", "selected"]
    assert watch.calls == [call for call in order if call != "ranked" or with_release]


def test_a_side_effect_sees_the_slates_and_one_that_fails_costs_nothing() -> None:
    class Kept:
        name = "kept"
        slates: Sequence[Slate] = ()

        def run(self, queries: Queries, slates: Sequence[Slate]) -> None:
            self.slates = slates

    class Broken:
        name = "broken"

        def run(self, queries: Queries, slates: Sequence[Slate]) -> None:
            raise RuntimeError("no")

    world, user = world_of(["plain"] * N, [1])
    kept = Kept()
    pipeline = CandidatePipeline(world.items, side_effects=[Broken(), kept])
    slates = pipeline.run([Request("r", "u", k=5)], [user], [None])
    assert slates[0].degraded == ()
    assert list(kept.slates) == slates
    assert pipeline.counters["failed", "broken"] == 1


def test_ranker_hydrator_and_selector_are_parameters() -> None:
    class Numbers:
        name = "numbers"

        def hydrate(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
            candidates.features = candidates.item_row[:, None].astype(np.float32)

    class Largest:
        name = "largest"

        def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
            candidates.heads = candidates.features
            return candidates.features[:, 0]

    class Second:
        name = "second"

        def select(self, queries: Queries, candidates: Candidates, items: ItemStore) -> Ragged:
            spans = candidates.spans(len(queries))
            return Ragged.of([np.arange(spans[n] + 1, spans[n + 1])[: r.k] for n, r in enumerate(queries.requests)])

    world, _ = world_of(["plain"] * N, [], with_release=True)
    pipeline = CandidatePipeline(
        world.items, slot=world.slot, candidate_hydrators=[Numbers()], ranker=Largest(), selector=Second()
    )
    slate = pipeline.run([Request("r", "u", k=3)], [None], [None])[0]
    assert [item.item_id for item in slate.items] == ["i18", "i17", "i16"]
    assert [list(item.features) for item in slate.items] == [[18.0], [17.0], [16.0]]


def test_a_hydrator_of_candidates_that_fails_leaves_the_light_order_and_no_features() -> None:
    class Half:
        name = "half"

        def hydrate(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
            candidates.features = np.ones((len(candidates), 3), np.float32)
            raise RuntimeError("no")

    world, _ = world_of(["plain"] * N, [], with_release=True)
    pipeline = CandidatePipeline(world.items, slot=world.slot, candidate_hydrators=[Half()])
    slate = pipeline.run([Request("r", "u", k=3)], [None], [None])[0]
    assert slate.degraded == ("ranker",)
    assert pipeline.counters["failed", "ranker"] == 1
    assert all(len(item.features) == 0 for item in slate.items)


def test_what_is_withdrawn_while_the_graphs_run_is_not_shown() -> None:
    world, user = world_of(["plain"] * N, [1], with_release=True)
    pipeline = CandidatePipeline(world.items, slot=world.slot, clock=lambda: NOW)
    shown = {item.item_id for item in pipeline.run([Request("r", "u", k=N)], [user], [None])[0].items}
    assert "i3" in shown
    steps = pipeline.steps([Request("r", "u", k=N)], Users.of([user]), [None])
    slates: list[Slate] = []
    try:
        work = next(steps)
        while True:
            done = work()
            world.items.remove("i3")
            work = steps.send(done)
    except StopIteration as ended:
        slates = ended.value
    assert {item.item_id for item in slates[0].items} == shown - {"i3"}
