"""Laws of what is kept of people and items."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pybloom_live import BloomFilter

from models.bloom import CAPACITY, ERROR_RATE, MAX_TIERS, SeenSet, positions
from models.items import ItemStore, text_vector
from models.state import (
    AFFINITY_HALF_LIFE_MS,
    HISTORY,
    ItemStatRow,
    NeighbourRow,
    UserRecord,
    apply_interactions,
    apply_statistics,
    decayed,
    hash64,
)
from schemas.columns import InteractionColumns
from schemas.errors import StoreCorrupt
from schemas.records import Interaction, Item

NAMES = [f"i{n}" for n in range(30)]
KNOWN = {hash64(name): name for name in NAMES}
CATEGORIES = {hash64(name): (f"c{n % 4}",) for n, name in enumerate(NAMES)}
EVENTS = st.lists(
    st.builds(
        lambda n, user, item, time, action, value: Interaction(f"e{n}", f"u{user}", NAMES[item], time, action, value),
        st.integers(0, 60),
        st.integers(0, 3),
        st.integers(0, 29),
        st.integers(0, 10**11),
        st.sampled_from(["view", "like"]),
        st.none() | st.floats(-5, 5, width=32),
    ),
    max_size=60,
)


def run(events: list[Interaction], cuts: list[int]) -> tuple[dict[str, bytes], dict[str, bytes], list[bool]]:
    users: dict[str, UserRecord] = {}
    rows: dict[str, ItemStatRow] = {}
    accepted: list[bool] = []
    bounds = [0, *sorted(c % (len(events) + 1) for c in cuts), len(events)]
    for start, stop in itertools.pairwise(bounds):
        part = InteractionColumns.of(events[start:stop], range(start, stop))
        for user in part.user_id:
            users.setdefault(user, UserRecord())
        applied = apply_interactions(users, part, CATEGORIES, KNOWN)
        apply_statistics(rows, part, applied.accepted)
        accepted += applied.accepted.tolist()
        # through the store and back, as a restart would
        users = {user: UserRecord.decode(record.encode()) for user, record in users.items()}
        rows = {item: ItemStatRow.decode(row.encode()) for item, row in rows.items()}
    return (
        {user: record.encode() for user, record in users.items()},
        {item: row.encode() for item, row in rows.items()},
        accepted,
    )


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.lists(st.integers(0, 60), max_size=4))
def test_any_chunking_and_any_restart_leaves_the_same_bytes(events: list[Interaction], cuts: list[int]) -> None:
    assert run(events, cuts) == run(events, [])


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_duplicates_change_nothing(events: list[Interaction]) -> None:
    once, _, accepted = run(events, [])
    unique = [event for event, kept in zip(events, accepted, strict=True) if kept]
    assert run(unique, [])[0] == once
    assert not any(run(events + events, [])[2][len(events) :])


@settings(max_examples=30, deadline=None)
@given(EVENTS)
def test_records_say_what_happened(events: list[Interaction]) -> None:
    users, rows, accepted = run(events, [])
    for user, data in users.items():
        record = UserRecord.decode(data)
        mine = [e for e, kept in zip(events, accepted, strict=True) if kept and e.user_id == user]
        assert sum(record.counts.values()) == len(mine)
        assert record.history["time"].tolist() == sorted(e.event_time for e in mine)
        assert record.first_ms == min(e.event_time for e in mine)
        assert all(e.item_id in record.seen for e in mine)
        assert all(weight >= 0 and math.isfinite(weight) for weight, _ in record.affinities.values())
    assert sum(sum(ItemStatRow.decode(row).counts.values()) for row in rows.values()) == sum(accepted)


def test_history_is_bounded_and_keeps_the_newest_by_event_time() -> None:
    events = [Interaction(f"e{n}", "u", NAMES[n % 30], (n * 7919) % 1000) for n in range(1000)]
    record = UserRecord.decode(run(events, [])[0]["u"])
    assert len(record.history) == HISTORY
    assert record.history["time"].tolist() == list(range(800, 1000))


def test_a_weight_halves_after_a_half_life() -> None:
    weight, at = decayed(8.0, 0, AFFINITY_HALF_LIFE_MS, AFFINITY_HALF_LIFE_MS)
    assert weight == pytest.approx(5.0)
    assert at == AFFINITY_HALF_LIFE_MS


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**12))
def test_decay_does_not_depend_on_the_order_of_events(a: int, b: int, c: int) -> None:
    def total(order: tuple[int, ...]) -> float:
        weight, at = 0.0, order[0]
        for time in order:
            weight, at = decayed(weight, at, time, AFFINITY_HALF_LIFE_MS)
        return weight

    assert total((a, b, c)) == pytest.approx(total((c, b, a)))


def test_golden_bytes_of_a_record() -> None:
    record = UserRecord()
    events = InteractionColumns.of([Interaction("e1", "u", "i1", 1_700_000_000_000, "like", 4.0)], [0])
    apply_interactions({"u": record}, events, CATEGORIES, KNOWN)
    head = record.encode()[:200].hex()
    assert head.startswith("01")
    assert head == GOLDEN


GOLDEN = (
    "015700000016000000010001005b7b226c696b65223a317d2c5b226c696b65225d2c7b226331223a5b312e302c3137303030"
    "30303030303030305d7d2c313730303030303030303030302c5b22222c313730303030303030303030302c315d2c5b315d5d"
    "0068e5cf8b010000ae2a1effba11cf0a0000804000001b5d5e51f54f0f040000000000000000000000000000000000000000"
    "0000000000100000000000000000000000000000000000000000000000000000000002000000000000000000000000000000"
)


@pytest.mark.parametrize("data", [b"", b"\x09" * 40, b"\x01\x00\x00", b"\x01" + b"\xff" * 30])
def test_unreadable_records_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        UserRecord.decode(data)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=CAPACITY, unique=True), st.lists(st.text(max_size=12)))
def test_seen_set_answers_as_pybloom_does(held: list[str], others: list[str]) -> None:
    mine, theirs = SeenSet(), BloomFilter(CAPACITY, ERROR_RATE / MAX_TIERS)
    for item in held:
        assert mine.add(item) == (not theirs.add(item))
    wanted = [item in theirs for item in held + others]
    where = np.stack([positions(item) for item in held + others])
    assert mine.contains_many(where).tolist() == wanted
    assert all(wanted[: len(held)])
    assert SeenSet.of_bytes(*mine.to_bytes()).contains_many(where).tolist() == wanted


def test_false_positive_rate_is_within_its_setting() -> None:
    seen = SeenSet()
    for n in range(10 * CAPACITY):
        seen.add(f"held{n}")
    where = np.stack([positions(f"other{n}") for n in range(5_000)])
    assert seen.contains_many(where).mean() <= ERROR_RATE


def test_statistics_heard_again_overwrite() -> None:
    items = ItemStore(2)
    items.upsert(Item("a"))
    row = ItemStatRow({"view": 3}, popularity=2.5, updated_ms=10, first_ms=5)
    for partition in (0, 0, 1, 0):
        items.set_statistics("a", partition, row)
    assert items.popularity_now().tolist() == [5.0]
    assert items.events[0].tolist() == [3, 3]


def test_the_store_grows_and_keeps_what_it_held() -> None:
    items = ItemStore(1, capacity=2)
    for n in range(40):
        items.upsert(Item(f"i{n}", f"title number{n}", categories=(f"c{n % 3}",)))
    assert items.rows_of(["i0", "i39", "none"]).tolist() == [0, 39, -1]
    assert items.category_names == ["c0", "c1", "c2"]
    assert np.array_equal(items.text[0], text_vector(Item("i0", "title number0", categories=("c0",))))
    assert np.array_equal(items.bloom[39], positions("i39"))


def test_neighbours_are_bounded_and_keep_the_heaviest() -> None:
    row = NeighbourRow()
    for n in range(400):
        row.add([f"n{n}"], [float(n)])
    assert len(row.weights) <= 256
    assert row.heaviest(2) == [("n399", 399.0), ("n398", 398.0)]
    assert NeighbourRow.decode(row.encode()) == row


def test_covisits_point_forward_more_than_back() -> None:
    user: dict[str, Any] = {"u": UserRecord()}
    events = [Interaction("e1", "u", "i1", 1), Interaction("e2", "u", "i2", 2)]
    covisits = apply_interactions(user, InteractionColumns.of(events, [0, 1]), CATEGORIES, KNOWN).covisits
    assert covisits == {"i1": {"i2": 1.0}, "i2": {"i1": 0.5}}
