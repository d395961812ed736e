"""Re-ranking: every candidate that a request names is counted, and seen items are not shown."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import records_of

from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.state.bloom import CAPACITY, ERROR_RATE, FIRST_TIERS, LATER_CAPACITY, MAX_TIERS
from models.state.rows import UserRecord
from schemas.records import Interaction, Item, Request

NOW = 1_700_000_000_000
BOUND = FIRST_TIERS * CAPACITY + (MAX_TIERS - FIRST_TIERS) * LATER_CAPACITY
IDS = [*(f"i{n}" for n in range(12)), "deleted", "met-only", "never", "neither"]


def stocked() -> ItemStore:
    store = ItemStore(1, capacity=4)
    for n in range(12):
        store.upsert(Item(f"i{n}", f"word{n % 3}", available=n != 3, published_at=NOW + 1 if n == 4 else None))
    store.upsert(Item("deleted"))
    store.remove("deleted")
    store.row_for("met-only")
    return store


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(IDS), max_size=30), st.lists(st.sampled_from(IDS), max_size=6), st.booleans()),
        min_size=1,
        max_size=3,
    )
)
def test_every_candidate_of_a_request_is_in_the_slate_or_counted_as_dropped(
    asked: list[tuple[list[str], list[str], bool]],
) -> None:
    store = stocked()
    pipeline = CandidatePipeline(store, clock=lambda: NOW)
    user = records_of([Interaction("e", "u", "i5", NOW)], store)["u"]
    requests = [
        Request("r", "u", k=500, candidates=tuple(candidates), exclude=tuple(exclude), explain=explain)
        for candidates, exclude, explain in asked
    ]
    slates = pipeline.run(requests, [user] * len(requests), [None] * len(requests))
    total = Counter[str]()
    for request, slate in zip(requests, slates, strict=True):
        candidates = list(request.candidates or ())
        unique = set(candidates)
        listed = {name for name in unique if name.startswith("i")}
        expected = Counter(
            unknown=len(unique - listed),
            repeated=len(candidates) - len(unique),
            unavailable=len(listed & {"i3"}),
            unpublished=len(listed & {"i4"}),
            seen=len(listed & {"i5"}),
            excluded=len(listed & set(request.exclude) - {"i3", "i4", "i5"}),
            category=0,
        )
        total += expected
        assert len(slate.items) == len(candidates) - expected.total()
        for item in slate.items:
            assert (item.explanation is not None) == request.explain
            if item.explanation is not None:
                assert item.explanation["dropped"] == dict(expected)
    assert Counter({name: n for (kind, name), n in pipeline.counters.items() if kind == "filter"}) == total


def test_counts_are_those_of_the_request_and_not_of_its_batch() -> None:
    pipeline = CandidatePipeline(stocked(), clock=lambda: NOW)
    requests = [
        Request("r", "u", candidates=("i0", "i0", "never"), explain=True),
        Request("r", "u", candidates=("i1",), explain=True),
        Request("r", "u", explain=True),
    ]
    found = [slate.items[0].explanation for slate in pipeline.run(requests, [None] * 3, [None] * 3)]
    dropped = [explanation["dropped"] for explanation in found if explanation is not None]
    assert [(each["unknown"], each["repeated"]) for each in dropped] == [(1, 1), (0, 0), (0, 0)]  # type: ignore[index]


# ---- seen items


def views(items: int, start: int = 0) -> list[Interaction]:
    return [Interaction(f"e{n}", "u", f"x{n}", NOW + n) for n in range(start, start + items)]


@pytest.fixture(scope="module")
def met() -> tuple[ItemStore, UserRecord]:
    """A user with as many interactions as a seen-set holds, in a catalogue that holds these items and others."""
    store = ItemStore(1)
    for n in range(BOUND):
        store.upsert(Item(f"x{n}"))
    for n in range(6_000):
        store.upsert(Item(f"y{n}"))
    return store, records_of(views(BOUND), store)["u"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, BOUND - 1), st.integers(1, 5_000), st.booleans())
def test_no_slate_holds_a_seen_item_up_to_the_bound(
    met: tuple[ItemStore, UserRecord], first: int, n: int, rerank: bool
) -> None:
    store, user = met
    new = tuple(f"y{k}" for k in range(6_000 - n, 6_000))
    candidates = (*(f"x{k}" for k in range(first, min(first + 5_000 - n, BOUND))), *new) if rerank else None
    slate = CandidatePipeline(store).run([Request("r", "u", k=500, candidates=candidates)], [user], [None])[0]
    shown = {item.item_id for item in slate.items}
    assert not any(name.startswith("x") for name in shown)
    assert len(shown) >= min(0.9 * min(n, 500), min(n, 500) - 4) if rerank else len(shown) == 500


@pytest.mark.parametrize("items", [5_000, FIRST_TIERS * CAPACITY + 1])
def test_somebody_with_thousands_of_views_is_shown_none_of_them_again(items: int) -> None:
    store = ItemStore(1)
    for n in range(items):
        store.upsert(Item(f"x{n}"))
    user = records_of(views(items), store)["u"]
    for start in range(0, items, 5_000):
        candidates = tuple(f"x{n}" for n in range(start, min(start + 5_000, items)))
        slate = CandidatePipeline(store).run([Request("r", "u", k=500, candidates=candidates)], [user], [None])[0]
        assert slate.items == ()


def test_beyond_the_bound_the_oldest_items_may_be_shown_again_and_hardly_any_others() -> None:
    store = ItemStore(1)
    more = 2 * LATER_CAPACITY
    for n in range(BOUND + more):
        store.upsert(Item(f"x{n}"))
    user = records_of(views(BOUND + more), store)["u"]
    pipeline = CandidatePipeline(store)
    again = 0
    for start in range(0, BOUND + more, 5_000):
        candidates = tuple(f"x{n}" for n in range(start, min(start + 5_000, BOUND + more)))
        request = Request("r", "u", k=500, candidates=candidates, explain=True)
        slate = pipeline.run([request], [user], [None])[0]
        again += len(slate.items)
        if start >= 5_000:
            # an item that a tier had claimed falsely, so that no later one took it, goes with that tier
            assert len(slate.items) <= 5_000 * ERROR_RATE
    assert again >= 500
