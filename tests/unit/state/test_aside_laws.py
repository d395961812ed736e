"""Chunks applied in a thread: concurrent changes of the store have no effect, and results become visible all at once."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from reference import Tables

from models.items.store import ItemStore
from models.state.kernels.covisits import KEPT
from models.state.kernels.hash_index import HashIndex
from models.state.rows import hash64
from models.tables.neighbours import CovisitSums, Increments, NeighbourTable
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction, Item
from streams.aside import LONG, aside

START = 1_700_000_000_000
PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40)


def events_of(pairs: list[tuple[int, int]]) -> list[Interaction]:
    return [Interaction(f"e{n}", f"u{user}", f"i{item}", START + n, "view") for n, (user, item) in enumerate(pairs)]


def catalogue() -> tuple[ItemStore, dict[str, tuple[str, ...]]]:
    store = ItemStore(capacity=4)
    categories: dict[str, tuple[str, ...]] = {f"i{n}": (f"c{n % 3}", f"d{n % 2}") for n in range(8)}
    for item, names in categories.items():
        store.upsert(Item(item, categories=names))
    return store, categories


@given(PAIRS, st.integers(0, 300))
def test_a_catalogue_that_changes_meanwhile_changes_no_record(pairs: list[tuple[int, int]], more: int) -> None:
    store, categories = catalogue()
    events = EventColumns.of(events_of(pairs), range(len(pairs)))
    table = UserTable(store, lambda keys: [None] * len(keys))
    found = table.items_of(events)
    for n in range(8):
        store.upsert(Item(f"i{n}", categories=tuple(f"new{n}-{k}" for k in range(8))))
    for n in range(more):
        store.row_for(f"x{n}")
    changed = table.change(events, found)
    assert table.lookup(["u0", "u1", "u2", "u3"]) == [None] * 4, "nothing shows before it is entered"
    table.enter(changed)
    expected = Tables.after(events_of(pairs), categories).people
    assert table.take() == {user.encode(): person.record().encode() for user, person in expected.items()}


def test_an_index_is_read_while_it_grows() -> None:
    index, stop = HashIndex(), threading.Event()
    wanted = np.asarray([hash64(f"i{n}") for n in range(200)], np.uint64)
    for n, code in enumerate(wanted.tolist()):
        index.add(code, n)
    wrong: list[int] = []

    def read() -> None:
        while not stop.is_set():
            rows = index.find_many(wanted)
            wrong.extend(np.flatnonzero(rows != np.arange(200)).tolist())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(200, 20_000):
            index.add(hash64(f"i{n}"), n)
    finally:
        stop.set()
        reader.join()
    assert not wrong


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=30), max_size=6
    ),
    st.integers(0, 60),
)
def test_increments_add_up_whenever_they_are_merged(blocks: list[list[tuple[int, int, int]]], most: int) -> None:
    import models.tables.neighbours

    held, models.tables.neighbours.WAITING_PAIRS = models.tables.neighbours.WAITING_PAIRS, most
    try:
        table = NeighbourTable(lambda keys: [None] * len(keys))
        sums: dict[int, dict[int, int]] = {}
        for block in blocks:
            # in the order they come: an item may occur more than once, and so may a neighbour
            items, others, units = (np.asarray(column, np.uint64) for column in zip(*block, strict=True))
            table.add(Increments(items, np.arange(1, len(block) + 1), others, units))
            for item, other, unit in block:
                mine = sums.setdefault(item, {})
                mine[other] = mine.get(other, 0) + unit
        keys = [item.to_bytes(8, "little") for item in sums]
        assert table.changed_at_most >= len(sums)
        assert table.changed <= max(len(sums), max((len(block) for block in blocks), default=0))
        rows = table.lookup(keys)
        assert [row.units for row in rows if row] == list(sums.values())
        assert set(table.take()) == set(keys)
        assert table.changed == 0
    finally:
        models.tables.neighbours.WAITING_PAIRS = held


def test_pairs_that_come_often_are_sent_once_and_none_is_lost() -> None:
    store = ItemStore(capacity=4)
    stream = [Interaction(f"e{n}", f"u{n % 50}", f"i{(n * 7919) % 300}", START + n, "view") for n in range(20_000)]
    often = [Interaction(f"o{n}", "ann", f"i{n % 2}", START + n, "view") for n in range(4_000)]
    sums, users = CovisitSums(store), UserTable(store, lambda keys: [None] * len(keys))
    brought, total = 0, 0
    for n in range(0, len(stream), 1_000):
        chunk = stream[n : n + 1_000] + often[n // 5 : n // 5 + 200]
        applied = users.apply(EventColumns.of(chunk, range(len(chunk))))
        brought += len(applied.units)
        total += int(applied.units.sum())
        sums.add(applied)
    sent = [increments for _, increments in sums.take(4, sums.hashes())]
    assert sum(int(each.units.sum()) for each in sent) == total
    assert sum(len(each.units) for each in sent) < brought
    assert sums.waiting == 0


async def test_long_work_leaves_the_event_loops_thread_and_short_work_does_not() -> None:
    assert await aside(LONG, threading.get_ident) != threading.get_ident()
    assert await aside(LONG - 1, threading.get_ident) == threading.get_ident()


@given(st.lists(st.tuples(st.sampled_from(["apply", "take", "trim", "erase"]), PAIRS, st.integers(0, 5_000)), max_size=8))
def test_what_rows_in_memory_take_is_known_and_trimmed_but_nothing_that_changed_is_dropped(
    steps: list[tuple[str, list[tuple[int, int]], int]],
) -> None:
    stored: dict[bytes, bytes | None] = {}
    users = UserTable(catalogue()[0], lambda keys: [stored.get(key) for key in keys])
    around = NeighbourTable(lambda keys: [None] * len(keys))
    number = 0
    for step, pairs, most in steps:
        if step == "apply":
            events = [Interaction(f"e{number + n}", f"u{u}", f"i{i}", START + n, "view") for n, (u, i) in enumerate(pairs)]
            users.apply(EventColumns.of(events, range(len(events))))
            number += len(events)
            ends = np.arange(1, len(pairs) + 1)
            items, others = (np.asarray(column, np.uint64) for column in zip(*pairs, strict=True))
            around.add(Increments(items, ends, others, np.ones(len(pairs), np.uint64)))
        elif step == "take":
            stored.update(users.take())
            around.take()
        elif step == "erase":
            users.erase(b"u1")
        else:
            changed = {key: row for key, row in users._rows.items() if key in users._dirty}
            users.trim(2, most)
            around.trim(2, most)
            assert changed.items() <= users._rows.items()
            assert len(users._rows) <= max(2, len(changed))
            assert users.held <= max(most, sum(len(row or b"") for row in changed.values()))
        for table in (users, around):
            assert table.held == sum(len(row or b"") for row in table._rows.values())


@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 8, 40, 60]), st.integers(1, 900))
def test_rows_keep_the_heaviest_neighbours_however_their_hashes_are_spread(seed: int, shared_bits: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    table = NeighbourTable(lambda keys: [None] * len(keys))
    sums: dict[int, dict[int, int]] = {item: {} for item in range(3)}
    for _ in range(3):
        n = int(rng.integers(1, most + 1))
        others = rng.integers(0, 2**64, n, np.uint64) >> np.uint64(shared_bits)
        others = others[rng.integers(0, n, n)]
        units = rng.integers(1, 4, n).astype(np.uint64)
        cuts = np.sort(rng.integers(0, n + 1, 2))
        ends = np.asarray([cuts[0], cuts[1], n], np.int64)
        table.add(Increments(np.arange(3, dtype=np.uint64), ends, others, units))
        table.take()
        begin = 0
        for item, end in enumerate(ends.tolist()):
            mine = sums[item]
            for other, unit in zip(others[begin:end].tolist(), units[begin:end].tolist(), strict=True):
                mine[other] = mine.get(other, 0) + unit
            if len(mine) > 2 * KEPT:
                sums[item] = dict(sorted(mine.items(), key=lambda pair: (-pair[1], pair[0]))[:KEPT])
            begin = end
    rows = table.lookup([item.to_bytes(8, "little") for item in range(3)])
    assert [row.units if row else {} for row in rows] == list(sums.values())
