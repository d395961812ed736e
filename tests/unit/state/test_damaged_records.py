"""A stored record with wrong bytes costs its own user only, and no read beyond its end."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.items.store import ItemStore
from models.state.kernels.user_columns import changeable
from models.state.kernels.user_rows import ACTIONS
from models.state.rows import HEAD_2, UserRecord
from models.tables.table import joined
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction

PEOPLE = ["ann", "bob", "cid"]


def some(n: int, start: int = 0) -> EventColumns:
    events = [
        Interaction(f"{user}-{start + k}", user, f"i{k % 7}", 1_000_000 + start + k, f"a{k % 3}", 1.0, f"s{k // 5}")
        for k in range(n)
        for user in PEOPLE
    ]
    return EventColumns.of(events, range(len(events)))


def stored(n: int) -> dict[bytes, bytes]:
    table = UserTable(ItemStore(), lambda keys: [None] * len(keys))
    table.apply(some(n))
    return {key: row for key, row in table.take().items() if row is not None}


def changed(rows: dict[bytes, bytes]) -> tuple[dict[bytes, bytes | None], Sequence[bytes]]:
    """The records after more events, and the users whose record was given up."""
    table = UserTable(ItemStore(), lambda keys: [rows.get(key) for key in keys])
    events = some(3, start=500)
    made = table.change(events, table.items_of(events))
    table.enter(made)
    return table.take(), made.damaged


ROWS = stored(40)
AFTER, NONE = changed(ROWS)


def test_sound_records_are_changed_as_they_are() -> None:
    assert NONE == []
    assert changeable(*joined(list(ROWS.values()))).all()
    assert changeable(*joined([b"", *ROWS.values(), b""])).all()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_wrong_bytes_cost_their_own_user_only(data: st.DataObject) -> None:
    row = bytearray(ROWS[b"bob"])
    for at in data.draw(st.lists(st.integers(0, len(row) - 1), min_size=1, max_size=8)):
        row[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 8, len(row) - 8, len(row) - 1]))
    wrong = bytes(row[: len(row) - cut])
    found, damaged = changed({**ROWS, b"bob": wrong})
    assert set(damaged) <= {b"bob"}
    assert [found[user] for user in (b"ann", b"cid")] == [AFTER[user] for user in (b"ann", b"cid")]
    if damaged:
        fresh, _ = changed({user: kept for user, kept in ROWS.items() if user != b"bob"})
        assert found[b"bob"] == fresh[b"bob"], "as a new user"


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_no_length_or_offset_of_a_head_is_trusted(field: int, value: int) -> None:
    head = list(HEAD_2.unpack_from(ROWS[b"bob"]))
    head[field] = value
    try:
        wrong = HEAD_2.pack(*head) + ROWS[b"bob"][HEAD_2.size :]
    except struct.error:
        return
    found, damaged = changed({**ROWS, b"bob": wrong})
    assert [found[user] for user in (b"ann", b"cid")] == [AFTER[user] for user in (b"ann", b"cid")]
    row = found[b"bob"]
    assert row is not None
    if damaged:
        assert UserRecord.decode(row).history["time"].min() >= 1_000_500


@pytest.mark.parametrize("count", ["hashes", "affinities", "actions"])
def test_more_than_the_loops_have_room_for_is_refused(count: str) -> None:
    record = UserRecord.decode(ROWS[b"bob"])
    if count == "hashes":
        record.arrived = np.arange(60_000, dtype=np.uint64)
    elif count == "actions":
        record.counts = {f"a{n}": 1 for n in range(ACTIONS + 1)}
    else:
        record.affinities = {f"c{n}": (1.0, 1) for n in range(10_000)}
    _, damaged = changed({**ROWS, b"bob": record.encode()})
    assert damaged == [b"bob"]
