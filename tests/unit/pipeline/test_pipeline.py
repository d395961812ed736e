"""Laws of the pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import Tables, records_of

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import SOURCES
from models.state.rows import ItemStatRow, UserRecord
from schemas.errors import BadItem
from schemas.records import Interaction, Item, Request

if TYPE_CHECKING:
    from training.release.learned import Learned

N = 25
ITEMS = [f"i{n}" for n in range(N)]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[ItemStore, dict[str, UserRecord], list[Request]]:
    items = ItemStore(1, capacity=4)
    for n, name in enumerate(ITEMS):
        if draw(st.booleans()) or n < 10:
            categories = tuple(draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True)))
            items.upsert(Item(name, f"word{n % 4} thing", categories=categories, available=draw(st.integers(0, 5)) > 0))
    for name in draw(st.lists(st.sampled_from(ITEMS), max_size=3)):
        items.remove(name)
    events = [
        Interaction(f"e{n}", f"u{user}", ITEMS[item], 1_000 + n)
        for n, (user, item) in enumerate(draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, N - 1)), max_size=40)))
    ]
    users = records_of(events, items)
    tables = Tables.after(events, {})
    for item, row in tables.statistics.items():
        items.set_statistics(item, 0, row)
    for item, others in tables.covisits.items():
        heaviest = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
        items.set_neighbours(item, [o for o, _ in heaviest], [w for _, w in heaviest], sum(others.values()))
    requests = draw(
        st.lists(
            st.builds(
                Request,
                request_id=st.uuids().map(str),
                user_id=st.integers(0, 5).map(lambda n: f"u{n}"),
                k=st.integers(1, 30),
                exclude=st.lists(st.sampled_from(ITEMS), max_size=5).map(tuple),
                categories=st.lists(st.sampled_from(["a", "b", "nope"]), max_size=2).map(tuple),
                explain=st.booleans(),
                candidates=st.none() | st.lists(st.sampled_from([*ITEMS, "unknown"]), max_size=8).map(tuple),
            ),
            min_size=1,
            max_size=4,
        )
    )
    return items, users, requests


def slot_of(learned: Learned | None) -> ModelSlot:
    slot = ModelSlot()
    if learned is not None:
        from models.release.serving import ServingModel

        slot.swap(ServingModel(learned.release()))
    return slot


@pytest.fixture(params=["without a release", "with a release"])
def release(request: pytest.FixtureRequest) -> Learned | None:
    return request.getfixturevalue("learned") if request.param == "with a release" else None


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds())
def test_a_slate_never_holds_what_must_not_be_shown(
    release: Learned | None, world: tuple[ItemStore, dict[str, UserRecord], list[Request]]
) -> None:
    items, users, requests = world
    slot = slot_of(release)
    slates = CandidatePipeline(items, slot=slot).run(requests, [users.get(r.user_id) for r in requests], [None] * len(requests))
    for request, slate in zip(requests, slates, strict=True):
        assert slate.release == slot.name
        assert slate.degraded == ()
        shown = [item.item_id for item in slate.items]
        assert len(shown) == len(set(shown)) <= request.k
        assert not set(shown) & set(request.exclude)
        user = users.get(request.user_id)
        for name in shown:
            entry = items.items[items.row_of(name)]
            assert entry is not None
            assert items.available[items.row_of(name)]
            assert user is None or name not in user.seen
            assert not request.categories or set(entry.categories) & set(request.categories)
            assert request.candidates is None or name in request.candidates
        scores = [item.score for item in slate.items]
        assert all(np.isfinite(scores))
        assert all(item.sources for item in slate.items)
        if request.candidates is not None:
            wanted = {
                name
                for name in set(request.candidates) - set(request.exclude)
                if items.row_of(name) >= 0
                and items.available[items.row_of(name)]
                and (user is None or name not in user.seen)
                and (not request.categories or set(items.items[items.row_of(name)].categories) & set(request.categories))  # type: ignore[union-attr]
            }
            assert len(shown) == min(len(wanted), request.k)
            assert set(shown) <= wanted


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(world=worlds())
def test_an_answer_does_not_depend_on_its_batch(
    release: Learned | None, world: tuple[ItemStore, dict[str, UserRecord], list[Request]]
) -> None:
    items, users, requests = world
    pipeline = CandidatePipeline(items, slot=slot_of(release))
    together = pipeline.run(requests, [users.get(r.user_id) for r in requests], [None] * len(requests))
    for request, slate in zip(requests, together, strict=True):
        alone = pipeline.run([request], [users.get(request.user_id)], [None])[0]
        assert [i.score for i in alone.items] == pytest.approx([i.score for i in slate.items], rel=1e-4)
        if release is None:  # a graph's last bits depend on the batch's size, so that near ties may change places
            assert [i.item_id for i in alone.items] == [i.item_id for i in slate.items]


def small() -> ItemStore:
    items = ItemStore(1)
    for n, name in enumerate(ITEMS):
        items.upsert(Item(name, f"word{n}", categories=("even" if n % 2 == 0 else "odd",), published_at=n + 1))
    return items


class Failing:
    name = "failing"
    default_weight = 1.0
    retrieves = True

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        raise RuntimeError("no")


def test_a_source_that_fails_costs_its_part_and_is_named() -> None:
    pipeline = CandidatePipeline(small(), sources=[*(source() for source in SOURCES), Failing()])
    slate = pipeline.run([Request("r", "u")], [None], [None])[0]
    assert slate.degraded == ("source:failing",)
    assert len(slate.items) == 10
    assert pipeline.counters["failed", "failing"] == 1


def test_nan_scores_rank_last() -> None:
    class Odd:
        name = "odd"

        def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> Any:
            scores = candidates.item_row.astype(np.float32)
            scores[candidates.item_row == 20] = np.nan
            scores[candidates.item_row == 21] = np.inf
            return scores

    for chosen in (PipelineSettings(diversity=0.0), PipelineSettings()):
        pipeline = CandidatePipeline(small(), chosen, scorer=Odd())
        shown = [item.item_id for item in pipeline.run([Request("r", "u", k=30)], [None], [None])[0].items]
        assert len(shown) == len(set(shown)) == N
        assert set(shown[-2:]) == {"i20", "i21"}
        assert shown[0] == "i24"


def test_a_new_person_gets_a_slate_and_a_new_item_is_found() -> None:
    items = small()
    slate = CandidatePipeline(items).run([Request("r", "nobody", k=5)], [None], [None])[0]
    assert len(slate.items) == 5
    user = records_of([Interaction("e", "u", "i3", 5)], items)["u"]
    items.upsert(Item("new", "word3", categories=("odd",), published_at=10**12))
    shown = CandidatePipeline(items).run([Request("r", "u", k=3)], [user], [None])[0].items
    assert shown[0].item_id == "new"
    assert {"content", "fresh"} <= set(shown[0].sources)


def test_explanations_say_what_brought_an_item_and_what_was_dropped() -> None:
    request = Request("r", "u", k=2, exclude=("i1", "i2"), explain=True)
    slate = CandidatePipeline(small()).run([request], [None], [None])[0]
    explanation = slate.items[0].explanation
    assert explanation is not None
    nothing = dict.fromkeys(("unknown", "repeated", "unavailable", "unpublished", "seen", "category"), 0)
    assert explanation["dropped"] == {**nothing, "excluded": 2}
    assert set(explanation["sources"]) == set(slate.items[0].sources)  # type: ignore[call-overload]
    assert set(slate.timings_ms) == {"hydrate", "retrieve", "merge", "filter", "light", "rank", "select"}


def test_no_items_is_an_empty_slate() -> None:
    assert CandidatePipeline(ItemStore()).run([Request("r", "u")], [None], [None])[0].items == ()


def test_similar_leaves_out_the_item_itself_and_what_is_unavailable() -> None:
    items = small()
    items.remove("i4")
    found = [item.item_id for item in CandidatePipeline(items).similar("i2", 30)]
    assert "i2" not in found
    assert "i4" not in found


@settings(max_examples=60, deadline=None)
@given(world=worlds(), k=st.integers(1, 40))
def test_similar_items_have_a_reason_and_what_the_catalogue_lost_is_not_found(
    world: tuple[ItemStore, dict[str, UserRecord], list[Request]], k: int
) -> None:
    items, _, _ = world
    pipeline = CandidatePipeline(items)
    for name in [*ITEMS, "unknown"]:
        row = items.row_of(name)
        if row < 0 or items.items[row] is None:
            with pytest.raises(BadItem) as refused:
                pipeline.similar(name, k)
            assert refused.value.code == "not_found"
            continue
        found = pipeline.similar(name, k)
        assert len(found) <= k
        assert all(item.score > 0 for item in found)
        assert all(items.available[items.row_of(item.item_id)] for item in found)


def test_nothing_in_common_is_not_similar() -> None:
    items = ItemStore(1)
    for name, title in (("a", "red glass"), ("b", "red stone"), ("c", ""), ("d", "")):
        items.upsert(Item(name, title))
    assert [item.item_id for item in CandidatePipeline(items).similar("a", 10)] == ["b"]
    assert CandidatePipeline(items).similar("c", 10) == []


@settings(max_examples=40, deadline=None)
@given(ks=st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_the_light_cut_leaves_as_many_as_are_asked_for(ks: list[int]) -> None:
    items = ItemStore(1)
    for n in range(40):
        items.upsert(Item(f"i{n}", "red glass"))
        items.set_statistics(f"i{n}", 0, ItemStatRow({"view": 1}, 0.0, 0, 1.0 + n, 1_000, 1_000))
    pipeline = CandidatePipeline(items, PipelineSettings(light_top=5))
    requests = [Request(f"r{n}", f"u{n}", k=k) for n, k in enumerate(ks)]
    slates = pipeline.run(requests, [None] * len(ks), [None] * len(ks))
    assert [len(slate.items) for slate in slates] == ks


def test_more_of_one_category_is_held_back_a_little() -> None:
    items = small()
    even = CandidatePipeline(items, replace(PipelineSettings(), diversity=0.5))
    slate = even.run([Request("r", "u", k=6)], [None], [None])[0]
    kinds = {int(item.item_id[1:]) % 2 for item in slate.items}
    assert kinds == {0, 1}


# ---- with a release


def with_release(learned: Learned) -> tuple[CandidatePipeline, UserRecord]:
    from learning_corpus import corpus

    items = ItemStore(1)
    for item in corpus()[0]:
        items.upsert(item)
    liked = [Interaction(f"e{n}", "u", f"i{3 * n}", n * 1000 + 1, "like") for n in range(4)]
    user = records_of(liked, items)["u"]
    return CandidatePipeline(items, slot=slot_of(learned)), user


def test_a_release_ranks_explains_and_logs_what_it_saw(learned: Learned) -> None:
    from models.features.compute import FEATURES

    pipeline, user = with_release(learned)
    slate = pipeline.run([Request("r", "u", k=5, explain=True)], [user], [None])[0]
    assert slate.release == learned.manifest.name
    for item in slate.items:
        assert item.explanation is not None
        heads = item.explanation["heads"]
        assert isinstance(heads, dict)
        assert set(heads) == {head.action for head in learned.manifest.heads}
        weights = {head.action: head.weight for head in learned.manifest.heads}
        assert item.score == pytest.approx(sum(weights[name] * p for name, p in heads.items()), abs=1e-4)
        assert len(item.features) == len(FEATURES)
        assert np.isfinite(item.features).all()
    assert {"learned"} & {source for item in slate.items for source in item.sources}


def test_a_ranker_that_fails_leaves_the_light_order_and_says_so(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, user = with_release(learned)

    def fails(*args: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(pipeline.ranker, "score", fails)
    slate = pipeline.run([Request("r", "u", k=5, explain=True)], [user], [None])[0]
    assert slate.degraded == ("ranker",)
    assert len(slate.items) == 5
    light = [item.explanation["light"] for item in slate.items if item.explanation]
    assert light == sorted(light, reverse=True)  # type: ignore[type-var]
    assert pipeline.counters["failed", "ranker"] == 1


def test_a_hydrator_that_fails_costs_its_part(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, user = with_release(learned)

    def fails(*args: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(pipeline.hydrators[1], "hydrate", fails)
    slate = pipeline.run([Request("r", "u", k=5)], [user], [None])[0]
    assert set(slate.degraded) == {"hydrator:release", "ranker"}
    assert len(slate.items) == 5


def test_every_requested_candidate_is_ranked_even_beyond_the_light_cut(learned: Learned) -> None:
    pipeline, _ = with_release(learned)
    few = CandidatePipeline(pipeline.items, PipelineSettings(light_top=3), slot=pipeline.slot)
    asked = tuple(f"i{n}" for n in range(20))
    slate = few.run([Request("r", "u", k=30, candidates=asked)], [None], [None])[0]
    assert {item.item_id for item in slate.items} == set(asked)


def test_only_a_request_that_allows_repeats_gets_candidates_that_the_user_has_seen(learned: Learned) -> None:
    from models.features.compute import FEATURES

    pipeline, user = with_release(learned)
    asked, seen = tuple(f"i{n}" for n in range(20)), {"i0", "i3", "i6", "i9"}
    requests = [Request("r", "u", k=30, candidates=asked), Request("s", "u", k=30, candidates=asked, repeats=True)]
    dropping, keeping = pipeline.run(requests, [user, user], [None, None])
    assert {item.item_id for item in dropping.items} == set(asked) - seen
    assert {item.item_id for item in keeping.items} == set(asked)
    row = FEATURES.index("seen_last")
    assert {item.item_id for item in keeping.items if np.asarray(item.features)[row] > 0} == seen
    assert not any(np.asarray(item.features)[row] for item in dropping.items)


def test_an_item_that_arrives_under_a_release_is_retrieved_by_its_content(learned: Learned) -> None:
    pipeline, user = with_release(learned)
    pipeline.run([Request("r", "u")], [user], [None])
    pipeline.items.upsert(Item("late", "red thing", "made of red glass", ("red",)))
    slate = pipeline.run([Request("r", "u", k=45)], [user], [None])[0]
    late = next(item for item in slate.items if item.item_id == "late")
    assert "learned" in late.sources


@pytest.mark.parametrize("k", [1, 300, 500])
def test_somebody_new_gets_as_many_items_as_are_asked_for(k: int) -> None:
    items = ItemStore(1)
    for n in range(600):
        items.upsert(Item(f"i{n}", f"thing {n}"))
    slate = CandidatePipeline(items).run([Request("r", "nobody", k=k)], [None], [None])[0]
    assert len(slate.items) == k


@given(worlds())
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
def test_the_candidates_of_the_stages_add_up(world: tuple[ItemStore, dict[str, UserRecord], list[Request]]) -> None:
    """What sources bring is merged, what filters do not drop passes, and what is selected is shown."""
    items, users, requests = world
    pipeline = CandidatePipeline(items)
    shown = 0
    for _ in range(2):
        slates = pipeline.run(requests, [users.get(request.user_id) for request in requests], [None] * len(requests))
        shown += sum(len(slate.items) for slate in slates)
    counters = pipeline.counters
    passed = {name: counters["passed", name] for name in ("merge", "filter", "light", "select")}
    dropped = sum(counters["filter", stage.name] for stage in pipeline.filters)
    assert sum(counters["source", source.name] for source in pipeline.sources) >= passed["merge"]
    assert passed["merge"] - dropped == passed["filter"] >= passed["light"] >= passed["select"] == shown
