"""Laws of the person's record and of item statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.items import ItemStore
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

DAY = 86_400_000
START = 1_700_000_000_000

events = st.lists(
    st.builds(
        Interaction,
        event_id=st.integers(0, 120).map("e{}".format),
        user_id=st.sampled_from(["ann", "bob", "čeda"]),
        item_id=st.integers(0, 25).map("i{}".format),
        event_time=st.integers(START, START + 90 * DAY) | st.integers(0, 2**53 - 1),
        action=st.sampled_from(["view", "like", "rate"]),
        value=st.none() | st.floats(-1e6, 1e6, width=32),
        session_id=st.none() | st.sampled_from(["s1", "s2"]),
    ),
    max_size=80,
)


def catalogue() -> ItemStore:
    store = ItemStore(capacity=4)
    for n in range(25):
        store.upsert(Item(f"i{n}", f"Title {n}", categories=(f"c{n % 3}", f"d{n % 5}")))
    return store


STORE = catalogue()


def play(
    stream: list[Interaction], cuts: list[int], through_bytes: bool = False
) -> tuple[dict[str, bytes], dict[str, bytes], list[bool], dict[str, dict[str, float]]]:
    """Records, statistics, what was accepted and summed co-visits after `stream`, applied in chunks cut at `cuts`."""
    columns = InteractionColumns.of(stream, range(len(stream)))
    records = {event.user_id: UserRecord() for event in stream}
    rows: dict[str, ItemStatRow] = {}
    accepted: list[bool] = []
    covisits: dict[str, dict[str, float]] = {}
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, stop in pairwise(edges):
        chunk = columns.slice(start, stop)
        applied = apply_interactions(records, chunk, STORE.categories_of_hash, STORE.id_of_hash)
        apply_statistics(rows, chunk, applied.accepted)
        accepted += applied.accepted.tolist()
        for item_id, others in applied.covisits.items():
            mine = covisits.setdefault(item_id, {})
            for other, weight in others.items():
                mine[other] = mine.get(other, 0.0) + weight
        if through_bytes:
            records = {user: UserRecord.decode(record.encode()) for user, record in records.items()}
            rows = {item_id: ItemStatRow.decode(row.encode()) for item_id, row in rows.items()}
    return (
        {user: record.encode() for user, record in records.items()},
        {item_id: row.encode() for item_id, row in rows.items()},
        accepted,
        covisits,
    )


@given(events, st.lists(st.integers(0, 80), max_size=6), st.booleans())
def test_any_chunking_and_any_restart_gives_the_same_bytes(
    stream: list[Interaction], cuts: list[int], through_bytes: bool
) -> None:
    whole, parts = play(stream, []), play(stream, cuts, through_bytes)
    assert whole[:3] == parts[:3]
    assert whole[3].keys() == parts[3].keys()
    for item_id, others in whole[3].items():
        assert others == pytest.approx(parts[3][item_id])


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=10)
def test_a_history_longer_than_the_window_gives_the_same_bytes_through_restarts(seed: int, late: bool) -> None:
    draw = np.random.default_rng(seed)
    jitter = DAY if late else 1
    stream = [
        Interaction(f"e{n}", "ann", f"i{draw.integers(40)}", START + n * 60_000 + int(draw.integers(jitter)))
        for n in range(3 * HISTORY)
    ]
    assert play(stream, [])[:3] == play(stream, list(range(0, len(stream), 37)), through_bytes=True)[:3]


@given(events, st.data())
def test_duplicates_change_nothing(stream: list[Interaction], data: st.DataObject) -> None:
    first: dict[tuple[str, str], Interaction] = {}
    for event in stream:
        first.setdefault((event.user_id, event.event_id), event)
    unique = list(first.values())
    again = data.draw(st.lists(st.sampled_from(unique), max_size=20)) if unique else []
    once, more = play(unique, []), play(unique + again, [])
    assert once[:2] == more[:2]
    assert more[2] == [True] * len(unique) + [False] * len(again)


@given(events)
def test_bytes_give_the_same_record_back(stream: list[Interaction]) -> None:
    for data in play(stream, [])[0].values():
        assert UserRecord.decode(data).encode() == data


@given(events)
def test_history_is_in_event_time_order_and_counts_add_up(stream: list[Interaction]) -> None:
    records, _, accepted, _ = play(stream, [])
    total = 0
    for user, data in records.items():
        record = UserRecord.decode(data)
        times = record.history["time"].tolist()
        mine = [event for event, kept in zip(stream, accepted, strict=True) if kept and event.user_id == user]
        assert times == sorted(event.event_time for event in mine)[-HISTORY:]
        assert record.first_ms == min(event.event_time for event in mine)
        assert all(event.item_id in record.seen for event in mine)
        total += sum(record.counts.values())
    assert total == sum(accepted)


@given(events)
def test_affinities_are_finite_and_never_negative(stream: list[Interaction]) -> None:
    for data in play(stream, [])[0].values():
        for weight, _ in UserRecord.decode(data).affinities.values():
            assert math.isfinite(weight)
            assert weight >= 0.0


@given(st.floats(0.0, 1e6), st.integers(0, 2**52), st.integers(1, 20))
def test_a_counter_halves_in_a_half_life(weight: float, at: int, times: int) -> None:
    later, when = decayed(weight, at, at + times * AFFINITY_HALF_LIFE_MS, AFFINITY_HALF_LIFE_MS)
    assert later - 1.0 == pytest.approx(weight * 0.5**times, abs=1e-9)
    assert when == at + times * AFFINITY_HALF_LIFE_MS


@given(st.lists(st.integers(START, START + 365 * DAY), min_size=1, max_size=12), st.randoms())
def test_a_counter_does_not_depend_on_the_order_of_arrival(times: list[int], chance: object) -> None:
    shuffled = list(times)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]

    def fold(order: list[int]) -> tuple[float, int]:
        weight, at = 0.0, order[0]
        for time in order:
            weight, at = decayed(weight, at, time, AFFINITY_HALF_LIFE_MS)
        return weight, at

    assert fold(shuffled)[0] == pytest.approx(fold(sorted(times))[0])
    assert fold(shuffled)[1] == max(times)


@given(events, st.integers(0, 400), st.integers(0, 255))
def test_damaged_bytes_are_refused_as_such_or_read(stream: list[Interaction], place: int, byte: int) -> None:
    for data in play(stream, [])[0].values():
        damaged = bytearray(data)
        damaged[place % len(data)] = byte
        for bad in (bytes(damaged), data[: place % len(data)]):
            with suppress(StoreCorrupt):
                UserRecord.decode(bad)


@pytest.mark.parametrize("decode", [UserRecord.decode, ItemStatRow.decode, NeighbourRow.decode])
@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff", b"\x01", b"\x01{", b"\x01[]", b"\x01{}", b"\x01[1,2,3,4,5,6,7,8]"])
def test_bytes_of_another_format_are_refused(decode: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decode(data)


def test_golden_bytes_of_a_record() -> None:
    stream = [
        Interaction("e1", "ann", "i1", START, "view", None, "s1"),
        Interaction("e2", "ann", "i2", START + 1000, "rate", 4.5, "s1"),
    ]
    data = play(stream, [])[0]["ann"]
    bits = len(UserRecord.decode(data).seen.tiers[0])
    assert data[:-bits].hex() == GOLDEN


GOLDEN = (
    "01b40000002c000000020001005b7b2272617465223a312c2276696577223a317d2c5b2276696577222c2272617465225d2c"
    "7b226331223a5b312e302c313730303030303030303030305d2c226332223a5b312e302c313730303030303030313030305d"
    "2c226431223a5b312e302c313730303030303030303030305d2c226432223a5b312e302c313730303030303030313030305d"
    "7d2c313730303030303030303030302c5b227331222c313730303030303030303030302c325d2c5b325d5d0068e5cf8b0100"
    "00ae2a1effba11cf0a0000c07f0000e86be5cf8b010000209ea37d642c97320000904001001b5d5e51f54f0f04fed135082f"
    "0eff78"
)


@given(events)
def test_statistics_heard_again_overwrite(stream: list[Interaction]) -> None:
    rows = {item_id: ItemStatRow.decode(data) for item_id, data in play(stream, [])[1].items()}
    store = catalogue()
    for item_id, row in rows.items():
        store.set_statistics(item_id, 1, row)
    once, events_once = store.popularity_now(), store.events[: len(store)].copy()
    for item_id, row in [*rows.items(), *rows.items()]:
        store.set_statistics(item_id, 1, row)
    assert np.array_equal(once, store.popularity_now())
    assert np.array_equal(events_once, store.events[: len(store)])
    assert np.isfinite(once).all()
    assert (once >= 0).all()


@given(st.lists(st.integers(0, 60).map("i{}".format), max_size=30))
def test_rows_are_found_by_id_and_by_hash(asked: list[str]) -> None:
    expected = [STORE._row_of.get(item_id, -1) for item_id in asked]
    assert STORE.rows_of(asked).tolist() == expected
    assert STORE.rows_of_hashes(np.asarray([hash64(item_id) for item_id in asked], np.uint64)).tolist() == expected


def test_columns_survive_growth() -> None:
    store = ItemStore(capacity=2)
    for n in range(50):
        store.upsert(Item(f"i{n}", f"Title{n}", categories=(f"c{n}",)))
    assert [store.row_of(f"i{n}") for n in range(50)] == list(range(50))
    assert [store.category_names[store.category_ids[n, 0]] for n in range(50)] == [f"c{n}" for n in range(50)]
    assert np.allclose(np.linalg.norm(store.text[:50], axis=1), 1.0)


def test_a_removed_item_keeps_its_row_and_is_unavailable() -> None:
    store = catalogue()
    row = store.row_of("i3")
    store.remove("i3")
    assert store.row_of("i3") == row
    assert not store.available[row]
    store.upsert(Item("i3"))
    assert store.available[row]


def test_neighbours_are_bounded_and_the_heaviest_stay() -> None:
    row = NeighbourRow()
    for n in range(1000):
        row.add([f"i{n}", "dear"], [0.1, 1.0])
    assert len(row.weights) <= 256
    assert row.heaviest(1)[0][0] == "dear"
    assert NeighbourRow.decode(row.encode()).heaviest(64) == row.heaviest(64)
