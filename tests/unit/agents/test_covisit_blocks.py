"""Records of the covisits topic: blocks, the earlier schema, and invalid ones."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Tables

from agents.partitions.covisits import increments_of
from models.items.store import ItemStore
from models.state.kernels.user_rows import UNIT
from models.state.rows import hash64
from models.tables.neighbours import CovisitSums, NeighbourTable
from models.tables.users import Applied, UserTable
from schemas.codec import encode
from schemas.columns import EventColumns
from schemas.errors import BadEvent
from schemas.records import Interaction


def block(**changed: bytes) -> bytes:
    eight = np.asarray([1], "<u8").tobytes()
    return encode("covisit_block", {"items": eight, "ends": eight, "others": eight, "units": eight, **changed})


def test_the_schema_before_blocks_is_read() -> None:
    old = encode("covisit", {"item_id": "a", "others": ["b", "c"], "weights": [1.0, 0.5]})
    read = increments_of(old, ())
    assert read.items.tolist() == [hash64("a")]
    assert read.others.tolist() == [hash64("b"), hash64("c")]
    assert (read.units * UNIT).tolist() == [1.0, 0.5]
    assert read.ends.tolist() == [2]


@pytest.mark.parametrize(
    "value",
    [
        block(items=b"1234567"),
        block(items=bytes(16)),
        block(others=b""),
        block(units=bytes(16)),
        block(ends=np.asarray([2], "<u8").tobytes()),
        block(items=bytes(16), ends=np.asarray([2**63, 1], "<u8").tobytes()),
        block(items=bytes(16), ends=np.asarray([2**64 - 5, 1], "<u8").tobytes()),
        b"\x07nonsense",
    ],
)
def test_columns_that_do_not_fit_are_refused(value: bytes) -> None:
    with pytest.raises(BadEvent):
        increments_of(value, ())


def test_json_is_no_block() -> None:
    value = json.dumps({"items": "12345678", "ends": "12345678", "others": "", "units": ""}).encode()
    with pytest.raises(BadEvent):
        increments_of(value, [("content-type", b"application/json")])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=60), st.integers(1, 5), st.integers(1, 20))
def test_what_is_sent_in_blocks_adds_up_at_the_owners(pairs: list[tuple[int, int]], partitions: int, most: int) -> None:
    events = [Interaction(f"e{n}", f"u{user}", f"i{item}", n) for n, (user, item) in enumerate(pairs)]
    store, owners = ItemStore(capacity=4), [NeighbourTable(lambda keys: [None] * len(keys)) for _ in range(partitions)]
    sums = CovisitSums(store)
    if events:
        sums.add(UserTable(store, lambda keys: [None] * len(keys)).apply(EventColumns.of(events, range(len(events)))))
    for owner, sent in sums.take(partitions, sums.hashes(), most=most):
        columns = {"items": sent.items, "ends": sent.ends, "others": sent.others, "units": sent.units}
        datum = {name: column.astype("<u8").tobytes() for name, column in columns.items()}
        assert all(code % partitions == owner for code in sent.items.tolist())
        owners[owner].add(increments_of(encode("covisit_block", datum), ()))
    held = {key: row for table in owners for key, row in table.take().items()}
    expected = Tables.after(events, {}).neighbours()
    assert held == {hash64(item).to_bytes(8, "little"): row.encode() for item, row in expected.items()}
    assert not list(sums.take(partitions, sums.hashes()))


def test_an_item_with_more_pairs_than_fit_a_record_is_in_several() -> None:
    store, pairs = ItemStore(), 70_000
    for n in range(3):
        store.row_for(f"i{n}")
    rng = np.random.default_rng(1)
    sums = CovisitSums(store)
    others = rng.integers(0, 40_000, pairs)
    for n in range(40_000):
        store.row_for(f"o{n}")
    rows = np.stack([np.zeros(pairs, np.int64), others + 3], axis=1).astype(np.int32)
    units = np.ones(pairs, np.uint64)
    sums.add(Applied(np.ones(1, np.uint8), np.zeros(1, np.int32), rows, units))
    sums.add(Applied(np.ones(1, np.uint8), np.zeros(1, np.int32), np.asarray([[1, 2]], np.int32), units[:1]))
    held: dict[int, int] = {}
    blocks = [increments for _, increments in sums.take(1, sums.hashes(), most=16_000)]
    for sent in blocks:
        assert len(sent.others) <= 16_000
        assert int(sent.ends[-1]) == len(sent.others) == len(sent.units)
        for item, weight in zip(sent.items.tolist(), np.add.reduceat(sent.units, [0, *sent.ends[:-1]]).tolist(), strict=True):
            held[item] = held.get(item, 0) + weight
    assert len(blocks) > 3
    assert held == {hash64("i0"): pairs, hash64("i1"): 1}


def test_a_store_that_grows_while_sums_are_taken_changes_nothing() -> None:
    store = ItemStore(capacity=4)
    for n in range(2_000):
        store.row_for(f"i{n}")
    rows = np.stack([np.arange(2_000), (np.arange(2_000) + 1) % 2_000], axis=1).astype(np.int32)
    for _ in range(3):
        sums = CovisitSums(store)
        sums.add(Applied(np.ones(1, np.uint8), np.zeros(1, np.int32), rows, np.ones(2_000, np.uint64)))
        found: list[int] = []
        hashes = sums.hashes()
        taking = threading.Thread(
            target=lambda: found.extend(item for _, sent in sums.take(4, hashes) for item in sent.items.tolist())  # noqa: B023
        )
        taking.start()
        for _ in range(2):
            store._grow()
        taking.join()
        assert sorted(found) == sorted(hash64(f"i{n}") for n in range(2_000))


def test_a_store_is_filled_before_it_is_seen_to_have_grown() -> None:
    store, stop = ItemStore(capacity=4), threading.Event()
    wanted = np.asarray([hash64(f"i{n}") for n in range(500)], np.uint64)
    for n in range(500):
        store.row_for(f"i{n}")
    wrong: list[int] = []

    def read() -> None:
        while not stop.is_set():
            wrong.extend(np.flatnonzero(store.hashes[:500] != wanted).tolist())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(6):
        store._grow()
    stop.set()
    reader.join()
    assert not wrong
