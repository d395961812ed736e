"""Laws of user records and of item statistics."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import numpy as np
import orjson
import pytest
from grown import assert_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from pybloom_live import BloomFilter
from reference import Tables, decayed, records_of

from models.items.store import ItemStore
from models.state.bloom import CAPACITY, EARLIER_CAPACITY, EARLIER_TIERS, ERROR_RATE, FIRST_TIERS, LATER_CAPACITY, MAX_TIERS
from models.state.kernels.covisits import add_pairs, grouped, merge_rows
from models.state.kernels.decay import halved
from models.state.kernels.hash_index import find_many
from models.state.kernels.statistics import count_events, write_rows
from models.state.kernels.user_rows import FORMAT, LONG, UNIT, apply_records
from models.state.rows import (
    AFFINITY_HALF_LIFE_MS,
    HISTORY,
    ItemStatRow,
    NeighbourRow,
    UserRecord,
    hash64,
)
from models.tables.neighbours import CovisitSums, Increments, NeighbourTable
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.errors import StoreCorrupt
from schemas.kernels import decode_block
from schemas.records import Interaction, Item

DAY = 86_400_000
START = 1_700_000_000_000
BOUND = FIRST_TIERS * CAPACITY + (MAX_TIERS - FIRST_TIERS) * LATER_CAPACITY

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


CATEGORIES = {f"i{n}": (f"c{n % 3}", f"d{n % 5}") for n in range(25)}


def play(
    stream: list[Interaction], cuts: list[int], through_bytes: bool = False
) -> tuple[dict[str, bytes], dict[str, bytes], list[bool], dict[int, bytes]]:
    """Return records, statistics, accepted flags and neighbours after `stream`, applied in chunks cut at `cuts`."""
    store = catalogue()
    columns = EventColumns.of(stream, range(len(stream)))
    people: dict[bytes, bytes | None] = {}
    rows: dict[str, bytes] = {}
    around: dict[bytes, bytes | None] = {}
    accepted: list[bool] = []

    def tables() -> tuple[UserTable, StatisticsTable, NeighbourTable]:
        statistics = StatisticsTable(store)
        for item_id, row in rows.items():
            statistics.put(item_id, ItemStatRow.decode(row))
        users = UserTable(store, lambda keys: [people.get(key) for key in keys])
        return users, statistics, NeighbourTable(lambda keys: [around.get(key) for key in keys])

    users, statistics, neighbours = tables()
    sums = CovisitSums(store)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, stop in pairwise(edges):
        chunk = columns.slice(start, stop)
        applied = users.apply(chunk)
        statistics.apply(chunk, applied)
        sums.add(applied)
        accepted += applied.accepted.astype(bool).tolist()
        people.update(users.take())
        rows.update(statistics.take())
        for _, increments in sums.take(3, sums.hashes(), most=7):
            neighbours.add(increments)
        around.update(neighbours.take())
        if through_bytes:
            users, statistics, neighbours = tables()
    return (
        {user.decode(): row for user, row in people.items() if row is not None},
        rows,
        accepted,
        {int.from_bytes(key, "little"): row for key, row in around.items() if row is not None},
    )


@settings(max_examples=200)
@given(
    events, st.lists(st.integers(0, 80), max_size=6), st.booleans(), st.sampled_from([1, 700, 3_000, 2 << 20]), st.booleans()
)
def test_the_compiled_loops_leave_what_plain_python_leaves(
    stream: list[Interaction], cuts: list[int], through_bytes: bool, group_bytes: int, little_room: bool
) -> None:
    expected = Tables.after(stream, CATEGORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.tables.users.GROUP_BYTES", group_bytes)
        patch.setattr("models.tables.users.GROWTH", 1 if little_room else 512)
        people, rows, accepted, neighbours = play(stream, cuts, through_bytes)
    assert accepted == expected.accepted
    assert people == {user: person.record().encode() for user, person in expected.people.items()}
    assert rows == {item: row.encode() for item, row in expected.statistics.items()}
    assert neighbours == {hash64(item): row.encode() for item, row in expected.neighbours().items()}


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=10)
def test_a_history_longer_than_the_window_gives_the_same_bytes_through_restarts(seed: int, late: bool) -> None:
    draw = np.random.default_rng(seed)
    jitter = DAY if late else 1
    stream = [
        Interaction(f"e{n}", "ann", f"i{draw.integers(40)}", START + n * 60_000 + int(draw.integers(jitter)))
        for n in range(3 * HISTORY)
    ]
    people, rows, accepted, _ = play(stream, list(range(0, len(stream), 37)), through_bytes=True)
    expected = Tables.after(stream, CATEGORIES)
    assert accepted == expected.accepted
    assert people["ann"] == expected.people["ann"].record().encode()
    assert rows == {item: row.encode() for item, row in expected.statistics.items()}


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


@given(st.floats(0.0, 1e6), st.integers(0, 2**53))
def test_decay_is_the_power_of_two_it_says(weight: float, age: int) -> None:
    assert halved(weight, age, DAY) == pytest.approx(weight * math.exp2(-age / DAY), rel=1e-14, abs=1e-300)


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


OLD_RECORD = (
    "01b40000002c000000020001005b7b2272617465223a312c2276696577223a317d2c5b2276696577222c2272617465225d2c"
    "7b226331223a5b312e302c313730303030303030303030305d2c226332223a5b312e302c313730303030303030313030305d"
    "2c226431223a5b312e302c313730303030303030303030305d2c226432223a5b312e302c313730303030303030313030305d"
    "7d2c313730303030303030303030302c5b227331222c313730303030303030303030302c325d2c5b325d5d0068e5cf8b0100"
    "00ae2a1effba11cf0a0000c07f0000e86be5cf8b010000209ea37d642c97320000904001001b5d5e51f54f0f04fed135082f"
    "0eff78"
)
GOLDEN_2 = (
    "020102000400020002000200020000000068e5cf8b0100000068e5cf8b010000160000007000000034000000000000000068"
    "e5cf8b010000e86be5cf8b010000ae2a1effba11cf0a209ea37d642c97321b5d5e51f54f0f04fed135082f0eff782c622af1"
    "d043f3afda26cf16cdaef8b343f000a36f6d744efcd38eb77616f227054f7d0d9e505c5db42c3e6f12633c41000000000000"
    "f03f000000000000f03f000000000000f03f000000000000f03f0068e5cf8b0100000068e5cf8b010000e86be5cf8b010000"
    "e86be5cf8b0100000000c07f00009040010000000100000000000100040004000200020002000200020016009a00cc00b101"
    "70022303db03470549051e06ec06da0747088008bf09d7098a0abd0b6c0ca60df30dcd0ef30e733176696577726174656331"
    "643163326432000000000000"
)
GOLDEN = (
    "030102000400020002000200020000000068e5cf8b0100000068e5cf8b010000120000007000000034000000000000000068"
    "e5cf8b010000e86be5cf8b010000ae2a1effba11cf0a209ea37d642c97321b5d5e51f54f0f04fed135082f0eff782c622af1"
    "d043f3afda26cf16cdaef8b343f000a36f6d744efcd38eb77616f227054f7d0d9e505c5db42c3e6f12633c41000000000000"
    "f03f000000000000f03f000000000000f03f000000000000f03f0068e5cf8b0100000068e5cf8b010000e86be5cf8b010000"
    "e86be5cf8b0100000000c07f00009040010000000100000000000100040004000200020002000200020012006f050606770b"
    "660d31159d1575161b1b8b208c212d29912b233163329734e53a843dbe417331766965777261746563316431633264320000"
    "00000000"
)
SAME = [
    Interaction("e1", "ann", "i1", START, "view", None, "s1"),
    Interaction("e2", "ann", "i2", START + 1000, "rate", 4.5, "s1"),
]


def test_golden_bytes_of_a_record() -> None:
    assert play(SAME, [])[0]["ann"].hex() == GOLDEN


def earlier_tiers(items: list[list[str]]) -> bytes:
    """Encode tiers of a seen-set of formats 1 and 2."""
    found = b""
    for held in items:
        tier = BloomFilter(EARLIER_CAPACITY, ERROR_RATE / EARLIER_TIERS)
        for item_id in held:
            tier.add(item_id)
        found += tier.bitarray.tobytes()
    return found


@pytest.mark.parametrize("old", [OLD_RECORD + earlier_tiers([["i1", "i2"]]).hex(), GOLDEN_2], ids=["format 1", "format 2"])
def test_a_record_of_an_earlier_format_reads_as_todays(old: str) -> None:
    table = UserTable(catalogue(), lambda keys: [bytes.fromhex(old) for _ in keys])
    looked_up = table.lookup(["ann"])[0]
    assert_columns(table.columns(["ann"]), [looked_up])
    assert table.apply(EventColumns.of(SAME, [0, 1])).accepted.tolist() == [0, 0]
    assert looked_up is not None
    new = UserRecord.decode(bytes.fromhex(GOLDEN))
    for read in (looked_up, UserRecord.decode(table.take()[b"ann"] or b"")):
        assert (read.counts, read.affinities, read.session) == (new.counts, new.affinities, new.session)
        assert read.first_ms == new.first_ms
        assert read.history.tobytes() == new.history.tobytes()
        assert read.arrived.tolist() == new.arrived.tolist()
        assert read.seen.to_bytes() == new.seen.to_bytes()


@given(st.lists(st.integers(0, 2_000).map("i{}".format), max_size=700, unique=True))
@settings(max_examples=25, deadline=None)
def test_what_an_earlier_seen_set_held_stays_seen(held: list[str]) -> None:
    store = ItemStore(capacity=4)
    for n in range(2_001):
        store.row_for(f"i{n}")
    tiers = [held[start : start + EARLIER_CAPACITY] for start in range(0, len(held), EARLIER_CAPACITY)]
    small = orjson.dumps([{}, [], {}, 0, ["", 0, 0], [len(tier) for tier in tiers]])
    old = struct.pack("<BIIHH", 1, len(small), 0, 0, len(tiers)) + small + earlier_tiers(tiers)
    record = UserTable(store, lambda keys: [old for _ in keys]).lookup(["u"])[0]
    assert record is not None
    assert all(item_id in record.seen for item_id in held)
    assert sum(record.seen.counts) <= len(held) + 40, "and next to nothing else"


def test_rows_of_the_first_format_read_as_todays() -> None:
    old = b'\x01[{"like":1,"view":2},3.5,1,1.25,1700000000000,1690000000000]'
    assert ItemStatRow.decode(old) == ItemStatRow({"like": 1, "view": 2}, 3.5, 1, 1.25, 1700000000000, 1690000000000)
    row = NeighbourRow.decode(b'\x01[{"i1":0.5,"i2":1.0},2.5]')
    assert row.heaviest(9) == [(hash64("i2"), 1.0), (hash64("i1"), 0.5)]
    assert row.total * UNIT == 2.5


def test_golden_bytes_of_rows() -> None:
    _, rows, _, neighbours = play(SAME, [])
    assert rows["i2"].hex() == GOLDEN_STATISTICS
    assert neighbours[hash64("i1")].hex() == GOLDEN_NEIGHBOURS


GOLDEN_STATISTICS = (
    "020001000400000000000000000012400100000000000000000000000000f03fe86be5cf8b010000e86be5cf8b0100000100"
    "0000000000000400726174650000"
)
GOLDEN_NEIGHBOURS = "02000000010000000000020000000000209ea37d642c97320000020000000000"


def test_loops_are_compiled_once_for_all_their_callers() -> None:
    """A second signature would be compiled while events wait."""
    play([*SAME, Interaction("e3", "bob", "ž", START)], [1], through_bytes=True)
    for loop in (apply_records, count_events, write_rows, add_pairs, grouped, merge_rows, decode_block, find_many):
        assert len(loop.signatures) == 1, loop


IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=200).filter(lambda text: len(text.encode()) <= 256)


@given(st.lists(IDS, min_size=1, max_size=20))
def test_the_compiled_hash_is_blake2b(texts: list[str]) -> None:
    columns = EventColumns.of([Interaction(text, "u", text, 1, text) for text in texts], range(len(texts)))
    assert columns.hashes.tolist() == [[hash64(text) for text in texts]] * 3


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
    table = NeighbourTable(lambda keys: [None] * len(keys))
    for n in range(1000):
        others = np.asarray([hash64(f"i{n}"), hash64("dear")], np.uint64)
        units = np.asarray([100 + n, 5000], np.uint64)
        table.add(Increments(np.asarray([7], np.uint64), np.asarray([2], np.int64), others, units))
    row = table.lookup([(7).to_bytes(8, "little")])[0]
    assert row is not None
    assert len(row.units) <= 256
    assert row.heaviest(2) == [(hash64("dear"), 5_000_000 * UNIT), (hash64("i999"), 1099 * UNIT)]
    assert row.total == 5_000_000 + sum(range(100, 1100))
    codes, weights = table.heaviest((7).to_bytes(8, "little"), 64)
    assert list(zip(codes.tolist(), weights.tolist(), strict=True)) == row.heaviest(64)


def test_many_actions_and_categories_stay_bounded() -> None:
    store = ItemStore(capacity=4)
    for n in range(100):
        store.upsert(Item(f"i{n}", categories=tuple(f"c{n}-{k}" for k in range(3))))
    stream = [Interaction(f"e{n}", "ann", f"i{n % 100}", START + (n * 7919) % 5000, f"a{n}") for n in range(300)]
    record = records_of(stream, store)["ann"]
    categories = {f"i{n}": tuple(f"c{n}-{k}" for k in range(3)) for n in range(100)}
    assert record.encode() == Tables.after(stream, categories).people["ann"].record().encode()
    assert len(record.counts) == 65
    assert record.counts["other"] == 300 - 64
    assert len(record.affinities) == 64


@pytest.mark.parametrize("items", [FIRST_TIERS * CAPACITY - 100, FIRST_TIERS * CAPACITY + 100, BOUND + 2 * CAPACITY])
def test_a_seen_set_grows_and_ages_out_as_the_plain_one_does(items: int) -> None:
    store, stored = ItemStore(capacity=4), dict[bytes, bytes | None]()
    plain = UserRecord()
    for start in range(0, items, 997):
        stream = [Interaction(f"e{n}", "ann", f"x{n}", START + n) for n in range(start, min(start + 997, items))]
        users = UserTable(store, lambda keys: [stored.get(key) for key in keys])
        users.apply(EventColumns.of(stream, range(len(stream))))
        stored.update(users.take())
        for event in stream:
            plain.seen.add(event.item_id)
    row = stored[b"ann"] or b""
    record = UserRecord.decode(row)
    assert record.seen.to_bytes() == plain.seen.to_bytes()
    assert record.encode() == row
    assert len(record.seen.tiers) == min(len(plain.seen.tiers), MAX_TIERS)
    assert row[0] == (FORMAT if len(record.seen.tiers) <= FIRST_TIERS else LONG)


def test_golden_bytes_of_a_record_with_many_tiers() -> None:
    stream = [Interaction(f"e{n}", "ann", f"x{n}", START + n) for n in range(5_500)]
    row = records_of(stream, ItemStore(capacity=4))["ann"].encode()
    assert row[:2] == bytes([4, 5])
    assert hashlib.sha256(row).hexdigest() == GOLDEN_LONG


GOLDEN_LONG = "6f442895fbf605275e04286c00a1eabd9681a31c6244706544146a847116bbe5"


def test_more_tiers_than_are_kept_are_refused() -> None:
    damaged = bytearray.fromhex(GOLDEN)
    damaged[1] = MAX_TIERS + 1
    with pytest.raises(StoreCorrupt, match="33 tiers of a seen-set, at most 32 are kept"):
        UserRecord.decode(bytes(damaged))


def test_every_item_that_changed_is_published_in_its_turn() -> None:
    store = ItemStore(1)
    users, statistics = UserTable(store, lambda keys: [None] * len(keys)), StatisticsTable(store)
    published: set[int] = set()
    for flush in range(4):
        # all items change again before each flush, more than one flush publishes
        stream = [Interaction(f"e{flush}-{n}", "ann", f"i{n}", START + n) for n in range(300)]
        columns = EventColumns.of(stream, range(300))
        statistics.apply(columns, users.apply(columns))
        statistics.take()
        published |= set(statistics.unpublished(100))
    assert len(published) == 300
