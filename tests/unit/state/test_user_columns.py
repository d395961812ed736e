"""Laws of records read as columns: they hold what `UserRecord.decode` gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from grown import ITEMS, START, STREAMS, assert_columns, rows_of, store, stream, table_of
from hypothesis import given, settings
from hypothesis import strategies as st

from models.state.bloom import MAX_TIERS, TIER_BYTES, SeenSet
from models.state.kernels.user_columns import read_columns
from models.state.kernels.user_rows import ACTIONS
from models.state.rows import EVENT, HISTORY, UserRecord, hash64
from models.state.users import Users, _Names
from models.tables.users import UserTable
from schemas.errors import StoreCorrupt
from schemas.records import Interaction


def decoded(rows: Sequence[bytes | None]) -> list[UserRecord | None]:
    return [None if row is None else UserRecord.decode(row) for row in rows]


def read_with(names: _Names, rows: Sequence[bytes | None]) -> Users:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.state.users._names", names)
        return Users.read(rows)


@settings(max_examples=50, deadline=None)
@given(STREAMS, st.sampled_from([0, 3, 100_000]))
def test_columns_hold_what_decoding_gives_whatever_names_are_remembered(
    streams: dict[str, list[Interaction]], most: int
) -> None:
    rows, names = rows_of(streams), _Names(most)
    for _ in range(2):
        assert_columns(read_with(names, rows), decoded(rows))
        assert len(names.names) <= most
    assert_columns(read_with(names, rows[::-1]), decoded(rows[::-1]))


@settings(max_examples=20, deadline=None)
@given(STREAMS)
def test_columns_of_records_are_those_of_their_rows(streams: dict[str, list[Interaction]]) -> None:
    rows = rows_of(streams)
    made, read = Users.of(decoded(rows)), Users.read(rows)
    for field in dataclasses.fields(Users):
        assert np.array_equal(getattr(made, field.name), getattr(read, field.name), equal_nan=field.name == "value")


def test_several_tiers_sparse_and_dense_are_read() -> None:
    rows = rows_of({"ann": stream("ann", 1, ITEMS, ITEMS, 2), "bob": stream("bob", 2, 20, 40, 2)})
    users = Users.read(rows)
    assert users.seen_starts.tolist() == [0, 4, 5]
    assert_columns(users, decoded(rows))


def test_columns_have_their_types() -> None:
    types = {
        "known": np.bool_,
        "size": np.int32,
        "item": np.uint64,
        "value": np.float32,
        "action": np.int32,
        "affinity_category": np.uint64,
        "affinity_weight": np.float64,
        "seen_tiers": np.uint8,
    }
    for rows in ([], [None], rows_of({"ann": stream("ann", 1, 3, 40, 2)})):
        users = Users.read(rows)
        for field in dataclasses.fields(Users):
            if field.name != "actions":
                assert getattr(users, field.name).dtype == types.get(field.name, np.int64), field.name


@settings(max_examples=20, deadline=None)
@given(STREAMS, st.booleans())
def test_a_tables_columns_are_its_records(streams: dict[str, list[Interaction]], stored: bool) -> None:
    table, loads = table_of(streams), list[int]()
    if stored:
        rows = table.take()

        def load(keys: Sequence[bytes]) -> list[bytes | None]:
            loads.append(len(keys))
            return [rows.get(key) for key in keys]

        table = UserTable(store(), load)
    wanted = [*streams, "nobody", *streams]
    users = table.columns(wanted)
    assert loads == ([len(wanted)] if stored else [])
    assert_columns(users, table.lookup(wanted))


def test_an_erased_user_is_unknown() -> None:
    table = table_of({"ann": stream("ann", 1, 3, 40, 2)})
    table.erase(b"ann")
    assert table.columns(["ann"]).known.tolist() == [False]


def test_an_empty_row_is_refused_and_a_missing_one_is_unknown() -> None:
    with pytest.raises(StoreCorrupt):
        Users.read([b""])
    assert UserTable(store(), lambda keys: [b""] * len(keys)).columns(["ann"]).known.tolist() == [False]


def test_a_damaged_hash_gives_its_name_to_no_other_record() -> None:
    def event(user: str, action: str) -> Interaction:
        return Interaction("e1", user, "i1", START, action)

    sound = rows_of({"ann": [event("ann", "like")]})[0]
    foreign = rows_of({"bob": [event("bob", "view")]})[0]
    assert sound is not None
    assert foreign is not None
    view, like = (hash64(name).to_bytes(8, "little") for name in ("view", "like"))
    assert foreign.count(view) == 1
    damaged = foreign.replace(view, like)
    for order in ([damaged, sound], [sound, damaged]):
        names = _Names()
        for _ in range(2):
            assert_columns(read_with(names, order), decoded(order))
        assert names.names == ["like"]


def test_threads_that_meet_new_names_at_once_read_the_same() -> None:
    batches = [rows_of({f"u{n}": stream(f"u{n}", n, 150, 40, 10 * n + 1) for n in range(k, k + 3)}) for k in range(5)]
    expected = [decoded(rows) for rows in batches]
    for _ in range(5):
        names = _Names(60)
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(5) as pool:
            patch.setattr("models.state.users._names", names)
            found = list(pool.map(Users.read, batches * 3))
        for users, records in zip(found, expected * 3, strict=True):
            assert_columns(users, records)
        assert len(set(names.names)) == len(names.names) <= 60


def test_the_loop_is_compiled_once_for_all_its_callers() -> None:
    rows = rows_of({"ann": stream("ann", 1, 3, 40, 6)})
    names = _Names()
    for batch in ([], [None], rows, rows * 2, [None, (rows[0] or b"")[:-1]]):
        with suppress(StoreCorrupt):
            read_with(names, batch)
    assert names.names
    assert len(read_columns.signatures) == 1


def beyond(what: str) -> UserRecord:
    """A record that exceeds one of the bounds by one."""
    record = UserRecord({"view": 1})
    if what == "events":
        record.history = np.zeros(HISTORY + 1, EVENT)
    elif what == "actions":
        record.counts = {f"action {n}": 1 for n in range(ACTIONS + 2)}
    elif what == "tiers":
        record.seen = SeenSet.of_bytes([0] * (MAX_TIERS + 1), bytes((MAX_TIERS + 1) * TIER_BYTES))
    else:
        record.history = np.ones(1, EVENT)
    return record


@pytest.mark.parametrize("what", ["events", "actions", "tiers", "an action's number"])
def test_a_record_beyond_a_bound_is_refused_as_decoding_refuses_it(what: str) -> None:
    row = beyond(what).encode()
    with pytest.raises(StoreCorrupt) as expected:
        UserRecord.decode(row)
    with pytest.raises(StoreCorrupt) as found:
        Users.read([None, row])
    assert str(found.value) == str(expected.value)
