"""Ties: the loading order of the catalogue has no effect, and no item is last for every user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Tables, records_of

from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.ragged import Scored
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import (
    ContentSource,
    CovisitationSource,
    EaseSource,
    FreshSource,
    LearnedSource,
    PopularSource,
    RequestedSource,
)
from models.pipeline.ties import Ties
from models.state.rows import hash64
from schemas.records import Interaction, Item, Request, Slate, SlateItem

if TYPE_CHECKING:
    from training.release.learned import Learned

N = 60


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]), max_size=40), st.integers(1, 30), st.integers(0, 2**64 - 1))
def test_the_best_are_those_that_sorting_by_score_and_key_gives(scores: list[float], most: int, salt: int) -> None:
    ties = Ties(np.asarray([hash64(f"i{n}") for n in range(len(scores))], np.uint64), np.asarray([salt], np.uint64))
    rows = np.arange(len(scores), dtype=np.int32)
    keys = ties.keys(np.zeros(len(scores), np.intp), rows).tolist()
    expected = sorted((n for n, score in enumerate(scores) if score > 0), key=lambda n: (-scores[n], keys[n]))[:most]
    found = Scored(np.asarray([0, len(scores)]), rows, np.asarray(scores, np.float32)).best(most, ties)
    assert found.rows.tolist() == sorted(expected)


@dataclass(frozen=True)
class World:
    """A catalogue, events and requests; the order of the catalogue is not fixed yet."""

    items: Sequence[Item]
    events: Sequence[Interaction]
    requests: Sequence[Request]

    def loaded(self, order: Sequence[int], slot: ModelSlot) -> tuple[CandidatePipeline, list[Slate], list[list[SlateItem]]]:
        """Return a pipeline with the catalogue in this order, its slates, and the items similar to the first ones."""
        store = ItemStore(1, capacity=4)
        tables = Tables.after(self.events, {item.item_id: item.categories for item in self.items})
        for n in order:
            item = self.items[n]
            store.upsert(item)
            if item.item_id in tables.statistics:
                store.set_statistics(item.item_id, 0, tables.statistics[item.item_id])
            others = sorted(tables.covisits.get(item.item_id, {}).items(), key=lambda pair: (-pair[1], hash64(pair[0])))
            store.set_neighbours(item.item_id, [o for o, _ in others], [w for _, w in others], sum(w for _, w in others))
        users = records_of(self.events, store)
        few = (PopularSource(3), FreshSource(4, 9), CovisitationSource(3), EaseSource(3), ContentSource(4))
        sources = (*few, LearnedSource(4), RequestedSource())
        pipeline = CandidatePipeline(store, PipelineSettings(light_top=6), sources, slot=slot)
        slates = pipeline.run(self.requests, [users.get(r.user_id) for r in self.requests], [None] * len(self.requests))
        return pipeline, slates, [pipeline.similar(item.item_id, 5) for item in self.items[:5]]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    alike = draw(st.booleans(), label="many items are the same but for their id")
    kinds = 2 if alike else N
    items = [
        Item(
            f"i{n}",
            f"word{n % kinds} thing",
            categories=(f"c{n % 3 if not alike else n % 2}",),
            price=float(n % kinds),
            published_at=1_000 + n % kinds if n % 4 else None,
        )
        for n in range(N)
    ]
    pairs = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, N - 1)), max_size=30))
    events = [Interaction(f"e{n}", f"u{user}", f"i{item}", 2_000 + n, "like") for n, (user, item) in enumerate(pairs)]
    requests = [
        Request(f"r{user}", f"u{user}", k=k, candidates=candidates, categories=categories, explain=True)
        for user in range(5)
        for k, candidates, categories in [
            (draw(st.integers(1, 12)), None, ()),
            (draw(st.integers(1, 12)), tuple(f"i{n}" for n in range(0, N, 2)), ()),
            (4, None, ("c1",)),
        ]
    ]
    return World(items, events, requests)


@pytest.fixture(params=["without a release", "with a release"])
def slot(request: pytest.FixtureRequest) -> list[ModelSlot]:
    """Two slots with a release, or without one."""
    slots = [ModelSlot(), ModelSlot()]
    if request.param == "with a release":
        from models.release.serving import ServingModel

        learned: Learned = request.getfixturevalue("learned")
        for each in slots:
            each.swap(ServingModel(learned.release()))
    return slots


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds(), order=st.permutations(range(N)))
def test_the_order_of_the_catalogue_changes_no_slate(slot: list[ModelSlot], world: World, order: list[int]) -> None:
    for each in slot:
        if each.current is not None:
            from models.release.serving import ServingModel

            assert isinstance(each.current, ServingModel)
            each.swap(ServingModel(each.current.release))
    _, slates, similar = world.loaded(range(N), slot[0])
    _, again, similar_again = world.loaded(order, slot[1])
    for one, other in zip(slates, again, strict=True):
        assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
        assert [item.sources for item in one.items] == [item.sources for item in other.items]
        assert [item.score for item in one.items] == pytest.approx([item.score for item in other.items], rel=1e-4)
        if slot[0].current is None:
            assert [item.explanation for item in one.items] == [item.explanation for item in other.items]
    assert similar == similar_again


def test_among_equals_everybody_has_an_order_of_their_own_and_keeps_it() -> None:
    world = World([Item(f"i{n}", "thing", published_at=1_000) for n in range(N)], [], [Request("r", "u", k=5)])
    pipeline, _, _ = world.loaded(range(N), ModelSlot())
    first, places = Counter[str](), Counter[str]()
    for asker in range(600):
        request = Request("r", f"asker{asker}", k=5)
        shown = [item.item_id for item in pipeline.run([request], [None], [None])[0].items]
        assert shown == [item.item_id for item in pipeline.run([request], [None], [None])[0].items]
        first[shown[0]] += 1
        places.update(shown)
    assert len(places) == N, "every item is shown to somebody"
    assert max(first.values()) < 40, "and none to everybody first: 10 of 600 are expected"
