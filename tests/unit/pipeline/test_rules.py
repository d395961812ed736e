"""Laws of merchandising rules: the compiled loops against plain Python, and whole slates of a worker."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rules_reference import Task, arrange

from models.items.store import ItemStore
from models.pipeline.batch import Queries
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.ragged import Ragged
from models.pipeline.rules.applied import AppliedRules, RuleColumns
from models.pipeline.rules.book import RuleBook
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import RulesSource
from models.pipeline.ties import tie_keys
from models.state.rows import hash64
from models.state.users import Users
from schemas.records import Interaction, Item, Request, Slate
from schemas.rules import rules_from
from training.replay.world import SimulatedWorker

NOW = 1_700_000_000_000
DAY = 86_400_000
N, CATEGORIES = 40, 6


def world_of(*, release: bool = False, unavailable: Sequence[int] = (), seen: Sequence[int] = ()) -> SimulatedWorker:
    """A catalogue of N items; the first ten have events of others, and u has seen some."""
    items = [
        Item(
            f"i{n}",
            f"thing {n % 7}",
            categories=(f"c{n % CATEGORIES}",) if n % 7 else (),
            price=float(n) if n % 5 else None,
            available=n not in unavailable,
            attributes={"brand": f"b{n % 3}"},
        )
        for n in range(N)
    ]
    world = SimulatedWorker(items, ModelSlot())
    world.apply([Interaction(f"o{n}{k}", f"other{k}", f"i{n}", NOW - 1_000 + k, "like") for n in range(10) for k in range(12)])
    world.apply([Interaction(f"s{n}", "u", f"i{n}", NOW, "like") for n in seen])
    if release:
        world.slot.swap(FakeModel(world.items))
    return world


def slates_of(world: SimulatedWorker, rules: Sequence[dict[str, Any]], requests: Sequence[Request], **more: Any) -> list[Slate]:
    pipeline = pipeline_of(world, rules, **more)
    slates = pipeline.run(requests, [world.record(r.user_id) for r in requests], [None] * len(requests))
    assert all(slate.degraded == () for slate in slates)
    return slates


def pipeline_of(world: SimulatedWorker, rules: Sequence[dict[str, Any]], **more: Any) -> CandidatePipeline:
    pipeline = CandidatePipeline(world.items, PipelineSettings(**more), slot=world.slot, clock=lambda: NOW)
    if rules:
        pipeline.rules.swap(RuleBook(rules_from({"rules": rules}), world.items))
    return pipeline


def ids(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def number(item_id: str) -> int:
    return int(item_id[1:])


def category(item_id: str) -> int:
    return number(item_id) % CATEGORIES if number(item_id) % 7 else -1


# ---- the arrangement against plain Python

rule_kinds = st.one_of(
    st.builds(
        lambda least, more, items: {"kind": "require", "least": least, "first": least + more, "items": items},
        st.integers(1, 5),
        st.integers(0, 2),
        st.sets(st.integers(0, 19), min_size=3),
    ),
    st.fixed_dictionaries(
        {"kind": st.just("cap"), "most": st.integers(1, 3), "per": st.booleans(), "items": st.sets(st.integers(0, 19))}
    ),
    st.fixed_dictionaries(
        {"kind": st.just("fresh"), "places": st.integers(0, 3), "items": st.sets(st.integers(0, 19), min_size=1)}
    ),
    st.fixed_dictionaries({"kind": st.just("pin"), "item": st.integers(0, 22), "position": st.integers(0, 11)}),
)


@settings(max_examples=400)
@given(
    st.permutations(range(20)),
    st.integers(0, 20),
    st.integers(1, 12),
    st.lists(rule_kinds, max_size=6),
    st.lists(st.integers(-1, 3), min_size=20, max_size=20),
    st.integers(0, 2**64 - 1),
)
def test_slates_are_those_of_the_plain_reference(
    order: list[int], size: int, k: int, drawn_rules: list[dict[str, Any]], categories: list[int], salt: int
) -> None:
    pins: dict[int, int] = {}
    documents = []
    for n, rule in enumerate(drawn_rules):
        document: dict[str, Any] = {"name": f"r{n}", "kind": rule["kind"]}
        if rule["kind"] == "pin":
            if rule["position"] in pins or rule["item"] in pins.values():
                continue
            pins[rule["position"]] = rule["item"]
            document["pins"] = [{"item_id": f"i{rule['item']}", "position": rule["position"]}]
        elif rule["kind"] == "require":
            document |= {"least": rule["least"], "first": rule["first"]}
        elif rule["kind"] == "cap":
            document |= {"most": rule["most"]} | ({"per": "category"} if rule["per"] else {})
        else:
            document |= {"share": 0.1, "fewer_than": 5}
        if rule["kind"] != "pin":
            document["where"] = {"items": [f"i{i}" for i in rule["items"]] or ["none"]}
        documents.append((document, rule))
    # requirements that contradict caps are refused together, but one by one the loops take them all
    sets = [rules_from({"rules": [document]}).rules[0] for document, _ in documents]
    columns = RuleColumns.of(sets)
    masks = np.zeros((len(sets), 23), np.bool_)
    for r, (_, rule) in enumerate(documents):
        masks[r, list(rule.get("items", ()))] = True
    places = np.asarray([[rule.get("places", 0) for _, rule in documents]], np.int64).reshape(1, -1)
    hashes = np.arange(23, dtype=np.uint64) * np.uint64(7919)
    applied = AppliedRules(
        names=tuple(rule.name for rule in sets),
        columns=columns,
        active=np.ones((1, len(sets)), np.bool_),
        masks=masks,
        since=np.zeros(len(sets), np.int64),
        published=np.zeros(23, np.int64),
        events=np.zeros(23, np.int64),
        hashes=hashes,
        pin_rows=np.asarray([number(pin.item_id) for rule in sets for pin in rule.pins], np.int32),
        places=places,
        salts=np.asarray([salt], np.uint64),
    )
    there = order[:size]
    rows = np.asarray(there, np.int32)
    category_of = np.asarray([categories[row] for row in there], np.int32)
    chosen, by, _ = applied.arranged(
        Ragged(np.asarray([0, size]), np.arange(size)), rows, category_of, np.asarray([k], np.int64)
    )
    length = min(k, size)
    item_keys = tie_keys(hashes, applied.salts)
    place_keys = tie_keys(np.arange(1, length + 1, dtype=np.uint64), applied.salts)
    expected = arrange(
        Task(
            candidates=there,
            length=length,
            matches=lambda rule, c: bool(masks[rule, c]),
            category=dict(enumerate(categories)),
            pins={
                pin.position: (number(pin.item_id), r)
                for r, rule in enumerate(sets)
                for pin in rule.pins
                if pin.position < length and number(pin.item_id) in there
            },
            requires=[(r, sets[r].least, sets[r].first) for r in columns.requires.tolist()],
            caps=[(r, sets[r].most, sets[r].per is not None) for r in columns.caps.tolist()],
            fresh=[(r, int(places[0, r])) for r in columns.fresh.tolist()],
            drawn=sorted(there, key=lambda c: int(item_keys[c])),
            turn=np.argsort(place_keys).tolist(),
        )
    )
    assert [there[c] for c in chosen.values.tolist()] == [c for c, _ in expected]
    assert by.tolist() == [rule for _, rule in expected]


# ---- scores

scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=12)


@given(scores, st.lists(st.booleans(), min_size=12, max_size=12), st.floats(1.001, 1_000), st.booleans())
def test_a_boost_never_lowers_a_matching_item_and_a_bury_never_raises_it(
    given_scores: list[float], matching: list[bool], factor: float, boosts: bool
) -> None:
    values = np.sort(np.asarray(given_scores, np.float32))[::-1].copy()
    hit = np.asarray(matching[: len(values)])
    document = (
        {"name": "a", "kind": "boost", "factor": factor} if boosts else {"name": "a", "kind": "bury", "factor": 1 / factor}
    )
    applied = applied_to(document, hit)
    moved = applied.rescaled(
        values, np.zeros(len(values), np.int32), np.arange(len(values), dtype=np.int32), np.array([0, len(values)])
    )
    assert np.isfinite(moved).all()
    assert (moved[~hit] == values[~hit]).all()
    assert (moved[hit] >= values[hit]).all() if boosts else (moved[hit] <= values[hit]).all()
    rank = np.empty(len(values), int)
    rank[np.argsort(-moved, kind="stable")] = np.arange(len(values))
    assert (rank[hit] <= np.flatnonzero(hit)).all() if boosts else (rank[hit] >= np.flatnonzero(hit)).all()


def test_positive_scores_are_multiplied_and_others_are_measured_from_below_the_lowest() -> None:
    applied = applied_to({"name": "a", "kind": "boost", "factor": 2.0}, np.asarray([True, False]))
    rows, starts = np.arange(2, dtype=np.int32), np.array([0, 2])
    found = applied.rescaled(np.asarray([0.25, 0.5], np.float32), np.zeros(2, np.int32), rows, starts)
    assert found.tolist() == [0.5, 0.5]
    # lowest -1, range 3, so the base is -1.03
    found = applied.rescaled(np.asarray([-1.0, 2.0], np.float32), np.zeros(2, np.int32), rows, starts)
    assert found.tolist() == pytest.approx([-0.97, 2.0])


def applied_to(document: dict[str, Any], hit: NDArray[np.bool_]) -> AppliedRules:
    """One rule that matches these rows, for one query."""
    rule = rules_from({"rules": [{**document, "where": {"items": ["x"]}}]}).rules[0]
    size = len(hit)
    return AppliedRules(
        ("a",),
        RuleColumns.of([rule]),
        np.ones((1, 1), np.bool_),
        np.ascontiguousarray(hit[None, :]),
        np.zeros(1, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.zeros(size, np.uint64),
        np.zeros(0, np.int32),
        np.zeros((1, 1), np.int64),
        np.zeros(1, np.uint64),
    )


# ---- slates of a worker

documents = st.fixed_dictionaries(
    {},
    optional={
        "boost": st.builds(
            lambda f, c: {"factor": f, "where": {"categories": [f"c{c}"]}}, st.floats(1.1, 50), st.integers(0, 5)
        ),
        "bury": st.builds(lambda f, p: {"factor": f, "where": {"price_to": p}}, st.floats(0.01, 0.9), st.integers(0, N)),
        "pin": st.builds(
            lambda items: {"pins": [{"item_id": f"i{n}", "position": 2 * p} for p, n in enumerate(items)]},
            st.lists(st.integers(0, N + 2), min_size=1, max_size=4, unique=True),
        ),
        "require": st.builds(
            lambda least, b: {"least": least, "first": 6, "where": {"attributes": {"brand": f"b{b}"}}},
            st.integers(1, 4),
            st.integers(0, 2),
        ),
        "cap": st.builds(lambda most: {"most": most, "per": "category"}, st.integers(1, 4)),
        "fresh": st.builds(lambda share: {"share": share, "fewer_than": 5}, st.floats(0.05, 0.5)),
    },
)


def rules_of(drawn: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"name": kind, "kind": kind, **rule} for kind, rule in drawn.items()]


@settings(max_examples=80)
@given(
    documents,
    st.booleans(),
    st.sets(st.integers(0, N - 1), max_size=6),
    st.sets(st.integers(0, N - 1), max_size=6),
    st.sets(st.integers(0, N - 1), max_size=4),
    st.integers(1, 12),
    st.sampled_from([(), ("c1", "c2")]),
    st.booleans(),
    st.sampled_from([3, 300]),
)
def test_no_rule_shows_what_a_filter_drops_and_slates_keep_their_length(
    drawn: dict[str, dict[str, Any]],
    release: bool,
    unavailable: set[int],
    seen: set[int],
    excluded: set[int],
    k: int,
    asked: tuple[str, ...],
    reranks: bool,
    light_top: int,
) -> None:
    world = world_of(release=release, unavailable=sorted(unavailable), seen=sorted(seen))
    given_ids = tuple(f"i{n}" for n in range(0, N, 2)) if reranks else None
    requests = [
        Request("r1", "u", k, exclude=tuple(f"i{n}" for n in excluded), categories=asked, candidates=given_ids),
        Request("r2", "stranger", 10),
    ]
    (plain, _), (slate, other) = (slates_of(world, rules, requests, light_top=light_top) for rules in ((), rules_of(drawn)))
    assert len(slate.items) >= len(plain.items)
    assert len(slate.items) == len(plain.items) or given_ids is None
    assert len(set(ids(slate))) == len(slate.items)
    for item_id in ids(slate):
        assert number(item_id) not in unavailable | seen | excluded
        assert not asked or f"c{category(item_id)}" in asked
        assert given_ids is None or item_id in given_ids
    # the answer does not depend on the batch; the release's matrix products round differently in another batch
    alone = slates_of(world, rules_of(drawn), requests[:1], light_top=light_top)[0]
    assert [i.score for i in alone.items] == pytest.approx([i.score for i in slate.items], abs=1e-5)
    assert ids(alone) == ids(slate) or release
    if "pin" in drawn:
        for pin in drawn["pin"]["pins"]:
            n, place = number(pin["item_id"]), pin["position"]
            if n < N and n not in unavailable and place < len(other.items):
                assert ids(other)[place] == pin["item_id"]
    if drawn.keys() <= {"cap", "boost", "bury", "fresh"} and "cap" in drawn:
        most = drawn["cap"]["most"]
        counts = Counter(category(i) for i in ids(other))
        there = Counter(category(f"i{n}") for n in range(N) if n not in unavailable)
        possible = sum(n if c < 0 else min(n, most) for c, n in there.items())
        assert possible < len(other.items) or all(n <= most for c, n in counts.items() if c >= 0)
    if drawn.keys() <= {"require", "pin", "boost", "bury"} and "require" in drawn:
        brand = drawn["require"]["where"]["attributes"]["brand"]
        mine = [i for i in ids(other)[:6] if f"b{number(i) % 3}" == brand]
        pinned = sum(2 * p < 6 for p in range(4)) if "pin" in drawn else 0
        possible = sum(n % 3 == int(brand[1]) for n in range(N) if n not in unavailable)
        assert len(mine) >= min(drawn["require"]["least"], possible, 6 - pinned)
    if "fresh" in drawn and drawn.keys() <= {"fresh", "boost", "bury"}:
        new = sum(number(i) >= 10 for i in ids(other))
        assert new >= int(drawn["fresh"]["share"] * 10)


@settings(max_examples=40)
@given(documents, st.integers(2, 12), st.booleans())
def test_a_slate_breaks_a_cap_only_where_no_other_candidate_keeps_all(
    drawn: dict[str, dict[str, Any]], k: int, release: bool
) -> None:
    rules = [rule for rule in rules_of(drawn) if rule["kind"] not in {"cap", "pin"}]
    rules += [{"name": "cap", "kind": "cap", "most": 1, "where": {"price_from": 5}}]
    slate = slates_of(world_of(release=release), rules, [Request("r", "stranger", k)])[0]
    capped = [i for i in ids(slate) if number(i) % 5 and number(i) >= 5]
    others = sum(not (n % 5 and n >= 5) for n in range(N))
    assert len(capped) <= max(1, k - others)


def test_one_boosted_item_moves_up_and_one_buried_item_down_whatever_the_diversity() -> None:
    for release in (False, True):
        world = world_of(release=release)
        plain = ids(slates_of(world, (), [Request("r", "stranger", N)], diversity=0.05)[0])
        for n in range(0, N, 3):
            for kind, factor in (("boost", 3.0), ("bury", 0.3)):
                rule = {"name": "a", "kind": kind, "factor": factor, "where": {"items": [f"i{n}"]}}
                moved = ids(slates_of(world, [rule], [Request("r", "stranger", N)], diversity=0.05)[0])
                if f"i{n}" in plain:
                    before, after = plain.index(f"i{n}"), moved.index(f"i{n}")
                    assert after <= before if kind == "boost" else after >= before


def test_new_items_are_exposed_equally_at_all_places_by_user_and_request() -> None:
    world = world_of()
    rule = {"name": "new", "kind": "fresh", "share": 0.05, "fewer_than": 5, "where": {"categories": ["c1", "c2"]}}
    pool = {f"i{n}" for n in range(10, N) if category(f"i{n}") in {1, 2}}
    requests = [Request(f"r{n}", f"u{n % 50}", 10, explain=True) for n in range(4_000)]
    pipeline = pipeline_of(world, [rule])
    shown, places = Counter[str](), Counter[int]()
    for start in range(0, len(requests), 100):
        batch = requests[start : start + 100]
        for slate in pipeline.run(batch, [None] * len(batch), [None] * len(batch)):
            for place, item in enumerate(slate.items):
                assert item.explanation is not None
                if item.explanation.get("rules") == ["new"]:
                    shown[item.item_id] += 1
                    places[place] += 1
    assert set(shown) == pool
    # half of the slates have one: 2,000 places for the pool, within five standard deviations
    mean = 2_000 / len(pool)
    assert sum(shown.values()) == pytest.approx(2_000, abs=5 * 1_000**0.5)
    assert all(n == pytest.approx(mean, abs=5 * mean**0.5) for n in shown.values())
    assert set(places) == set(range(10))
    assert all(n == pytest.approx(200, abs=5 * 200**0.5) for n in places.values())


def test_new_items_are_those_drawn_first_of_all_that_the_filters_leave() -> None:
    world = SimulatedWorker([Item(f"i{n}", categories=(f"c{n % 2}",)) for n in range(4_000)], ModelSlot())
    world.apply([Interaction(f"o{n}{k}", f"o{k}", f"i{n}", NOW + k, "like") for n in range(400) for k in range(3)])
    seen = list(range(600, 900))
    world.apply([Interaction(f"s{n}", "u", f"i{n}", NOW, "like") for n in seen])
    excluded = [f"i{n}" for n in range(900, 1_000)]
    rule = {"name": "new", "kind": "fresh", "share": 0.5, "fewer_than": 2}
    request = Request("r", "u", 20, exclude=tuple(excluded), categories=("c1",), explain=True)
    (slate,) = slates_of(world, [rule], [request], light_top=30)
    shown = {i.item_id for i in slate.items if i.explanation is not None and i.explanation.get("rules") == ["new"]}
    record = world.record("u")
    assert record is not None
    left = np.asarray([n for n in range(401, 4_000, 2) if n not in seen and f"i{n}" not in excluded])
    left = left[~record.seen.contains_many(world.items.bloom[left])]
    keys = tie_keys(world.items.hashes[left], np.asarray([hash64("u\x1fr")], np.uint64))
    assert shown == {f"i{n}" for n in left[np.argsort(keys)[:10]]}


def test_the_same_request_is_answered_alike_and_another_one_draws_other_items() -> None:
    rule = [{"name": "new", "kind": "fresh", "share": 0.3, "fewer_than": 5}]
    world = world_of()
    first, again = (ids(slates_of(world, rule, [Request("r", "u")])[0]) for _ in range(2))
    assert first == again
    assert len({tuple(ids(slates_of(world, rule, [Request(f"r{n}", "u")])[0])) for n in range(8)}) == 8


def test_the_source_brings_what_rules_ask_for_once_and_nothing_to_requests_with_candidates() -> None:
    world = world_of(unavailable=[11], seen=[12, 13])
    rules = [
        {"name": "p", "kind": "pin", "pins": [{"item_id": "i39", "position": 0}, {"item_id": "i30", "position": 1}]},
        {"name": "n", "kind": "fresh", "share": 1.0, "fewer_than": 5},
        {"name": "r", "kind": "require", "least": 2, "first": 2, "where": {"price_from": 20}},
    ]
    book = RuleBook(rules_from({"rules": rules}), world.items)
    requests = [Request("a", "u", 40), Request("b", "u", 40, candidates=("i1",)), Request("c", "x", 5, categories=("c1",))]
    queries = Queries.hydrate(requests, Users.of([world.record("u"), None, None]), world.items, now_ms=NOW)
    queries.rules = book.applied(queries)
    found = RulesSource().retrieve(queries, world.items)
    pairs = list(zip(found.query_row.tolist(), found.item_row.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert {row for q, row in pairs if q == 0} == set(range(10, N)) - {11}
    assert {q for q, _ in pairs} == {0, 2}
    # pins are left to the filters, what is drawn or required is within the categories
    assert all(category(f"i{row}") == 1 or row in {39, 30} for q, row in pairs if q == 2)
    assert (np.diff(found.query_row) >= 0).all()


# ---- when, times, matching


def test_a_rule_applies_when_its_times_and_the_request_say() -> None:
    pin = {"name": "p", "kind": "pin", "pins": [{"item_id": "i39", "position": 0}]}
    world = world_of()

    def pinned(request: Request, **more: Any) -> bool:
        return ids(slates_of(world, [{**pin, **more}], [request])[0])[0] == "i39"

    plain = Request("r", "stranger")
    tv = Request("r", "stranger", context={"device": "tv"}, categories=("c3",))
    assert pinned(plain)
    assert pinned(plain, **{"from": NOW, "until": NOW + 1})
    assert not pinned(plain, **{"from": NOW + 1})
    assert not pinned(plain, until=NOW)
    assert not pinned(plain, when={"context": {"device": "tv"}})
    assert not pinned(plain, when={"categories": ["c3"]})
    assert pinned(tv, when={"context": {"device": ["tv", "web"]}, "categories": ["c3", "c4"]})
    assert not pinned(tv, when={"context": {"device": "tv", "page": "home"}})


where_cases = [
    ({"categories": ["c1", "nowhere"]}, lambda n: n % 7 and n % CATEGORIES == 1),
    ({"price_from": 3, "price_to": 7}, lambda n: n % 5 and 3 <= n <= 7),
    ({"attributes": {"brand": ["b1", "b2"]}}, lambda n: n % 3 in {1, 2}),
    ({"items": ["i1", "i2", "nobody"]}, lambda n: n in {1, 2}),
    (
        {"categories": ["c1"], "price_to": 20, "attributes": {"brand": "b1"}},
        lambda n: n % 7 and n % 6 == 1 and n <= 20 and n % 5,
    ),
    ({"published_within_days": 3}, lambda _: False),
]


@pytest.mark.parametrize(("where", "expected"), where_cases)
def test_conditions_match_the_items_that_meet_all_of_them(where: dict[str, Any], expected: Any) -> None:
    world = world_of()
    book = RuleBook(rules_from({"rules": [{"name": "a", "kind": "boost", "factor": 2, "where": where}]}), world.items)
    assert book.matched(NOW) == [sum(bool(expected(n)) for n in range(N))]


def test_recently_published_items_match_until_the_time_has_passed() -> None:
    items = ItemStore(1)
    for n in range(5):
        items.upsert(Item(f"i{n}", published_at=NOW - n * DAY))
    rule = {"name": "a", "kind": "boost", "factor": 2, "where": {"published_within_days": 1.5}}
    book = RuleBook(rules_from({"rules": [rule]}), items)
    assert [book.matched(NOW + n * DAY)[0] for n in range(3)] == [2, 1, 0]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=40), st.integers(1, 6))
def test_masks_follow_changes_of_the_catalogue(changes: list[tuple[int, int, bool]], step: int) -> None:
    items = ItemStore(1, capacity=2)
    rules = rules_from(
        {
            "rules": [
                {"name": "a", "kind": "boost", "factor": 2, "where": {"categories": ["c1"], "price_from": 2}},
                {"name": "b", "kind": "bury", "factor": 0.5, "where": {"attributes": {"x": "1"}}},
                {"name": "c", "kind": "cap", "most": 1, "where": {"items": ["i3", "i4"]}},
            ]
        }
    )
    book = RuleBook(rules, items)
    for n, (row, kind, remove) in enumerate(changes):
        if remove:
            items.remove(f"i{row}")
        else:
            items.upsert(Item(f"i{row}", categories=(f"c{kind}",), price=float(kind + row), attributes={"x": str(kind)}))
        if n % step == 0:
            book.matched(NOW)
    while not book.refresh(2):
        pass
    assert book.matched(NOW) == RuleBook(rules, items).matched(NOW)
    listed = list(items.items)
    assert book.matched(NOW) == [
        sum(item.categories == ("c1",) and (item.price or 0) >= 2 for item in listed),
        sum(item.attributes["x"] == "1" for item in listed),
        sum(item.item_id in {"i3", "i4"} for item in listed),
    ]


# ---- explanations, counters, failures


def test_explanations_name_the_rules_that_moved_an_item() -> None:
    rules: list[dict[str, Any]] = [
        {"name": "push", "kind": "boost", "factor": 5, "where": {"items": ["i5"]}},
        {"name": "top", "kind": "pin", "pins": [{"item_id": "i5", "position": 0}]},
        {"name": "two of b2", "kind": "require", "least": 2, "first": 2, "where": {"items": ["i38", "i39", "i5"]}},
    ]
    slate = slates_of(world_of(), rules, [Request("r", "stranger", explain=True)])[0]
    named = [item.explanation.get("rules") for item in slate.items if item.explanation is not None]
    assert named[0] == ["push", "top"]
    assert named[1] == ["two of b2"]
    assert named[2:] == [None] * 8
    assert RulesSource.name in slate.items[0].sources


def test_skipped_pins_are_counted_by_reason() -> None:
    pins = [{"item_id": name, "position": place} for name, place in (("i1", 0), ("i2", 1), ("nobody", 2), ("i3", 30))]
    pipeline = pipeline_of(world_of(unavailable=[2], seen=[1]), [{"name": "p", "kind": "pin", "pins": pins}])
    world = world_of(seen=[1])
    pipeline.run([Request("r", "u", 5)], [world.record("u")], [None])
    assert {name: n for (kind, name), n in pipeline.counters.items() if kind == "pin"} == {
        "filtered": 2,
        "unknown": 1,
        "beyond_slate": 1,
    }
    pipeline.run([Request("r", "stranger", 5, candidates=("i4", "i5"))], [None], [None])
    assert pipeline.counters["pin", "not_a_candidate"] == 2


def test_rules_that_fail_leave_the_slate_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    world, rule = world_of(), [{"name": "p", "kind": "pin", "pins": [{"item_id": "i39", "position": 0}]}]
    plain = ids(slates_of(world, (), [Request("r", "stranger")])[0])
    for broken in ("applied", "arranged"):
        pipeline = pipeline_of(world, rule)
        with monkeypatch.context() as patch:

            def fails(*_: Any, **__: Any) -> None:
                raise RuntimeError("no")

            patch.setattr(RuleBook if broken == "applied" else AppliedRules, broken, fails)
            slate = pipeline.run([Request("r", "stranger")], [None], [None])[0]
        assert (ids(slate), slate.degraded) == (plain, ("rules",))
        assert pipeline.counters["failed", "rules"] == 1


def test_without_rules_there_is_no_work_and_other_rules_can_be_tried_without_serving() -> None:
    world = world_of()
    pipeline = pipeline_of(world, ())
    assert pipeline.rules.current is None
    pipeline.rules.swap(RuleBook(rules_from({"rules": []}), world.items))
    assert pipeline.rules.current is None, "an empty set is no set"
    tried = RuleBook(
        rules_from({"rules": [{"name": "p", "kind": "pin", "pins": [{"item_id": "no", "position": 0}]}]}), world.items
    )
    steps = pipeline.steps([Request("r", "stranger")], Users.of([None]), [None], rules=tried)
    with pytest.raises(StopIteration) as end:
        next(steps)
    assert len(end.value.value[0].items) == 10
    assert not [name for kind, name in pipeline.counters if kind == "pin"], "what is tried is not counted"


def test_rules_leave_queries_that_they_do_not_apply_to_as_they_are() -> None:
    rng = random.Random(3)
    world = world_of(release=True)
    rule = [{"name": "b", "kind": "boost", "factor": 9, "where": {"categories": ["c1"]}, "when": {"context": {"page": "home"}}}]
    rule += [{"name": "c", "kind": "cap", "most": 1, "per": "category", "when": {"context": {"page": "home"}}}]
    requests = [Request(f"r{n}", f"s{n}", 10, {"page": rng.choice(["home", "cart"])}) for n in range(12)]
    plain, ruled = slates_of(world, (), requests), slates_of(world, rule, requests)
    for request, before, after in zip(requests, plain, ruled, strict=True):
        same = [(i.item_id, i.score) for i in before.items] == [(i.item_id, i.score) for i in after.items]
        assert same == (request.context["page"] == "cart")


def test_a_batch_without_a_live_rule_has_none() -> None:
    world = world_of()
    book = RuleBook(
        rules_from({"rules": [{"name": "a", "kind": "cap", "most": 1, "per": "category", "until": NOW}]}), world.items
    )
    queries = Queries.hydrate([Request("r", "u")], Users.of([None]), world.items, now_ms=NOW)
    assert book.applied(queries) is None
    assert book.expired(NOW) == 1
