"""Records of the covisits topic: blocks, the schema before them, and what is neither."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Tables

from agents.covisits import increments_of
from models.items import ItemStore
from models.kernels.records import UNIT
from models.state import hash64
from models.tables import CovisitSums, NeighbourTable, UserTable
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
    for owner, sent in sums.take(partitions, most=most):
        columns = {"items": sent.items, "ends": sent.ends, "others": sent.others, "units": sent.units}
        datum = {name: column.astype("<u8").tobytes() for name, column in columns.items()}
        assert all(code % partitions == owner for code in sent.items.tolist())
        owners[owner].add(increments_of(encode("covisit_block", datum), ()))
    held = {key: row for table in owners for key, row in table.take().items()}
    expected = Tables.after(events, {}).neighbours()
    assert held == {hash64(item).to_bytes(8, "little"): row.encode() for item, row in expected.items()}
    assert not list(sums.take(partitions))
