"""User records grown by the real table from generated events, and their columns in plain Python."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.state.rows import HISTORY, UserRecord, hash64
from models.state.users import Users
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction, Item

START = 1_700_000_000_000
ACTIONS = ["view", "like", "rate", "přidat", "🛒", "", *(f"action {n}" for n in range(80))]
"More names than a record keeps."
ITEMS = 4_250
"Enough for a seen-set of four tiers, the last of them sparse."


@functools.cache
def store() -> ItemStore:
    """A catalogue with more categories than a record keeps."""
    made = ItemStore(capacity=ITEMS)
    for n in range(ITEMS):
        made.upsert(Item(f"i{n}", f"Title {n}", categories=(f"c{n % 50}", f"žánr {n % 45}")))
    return made


def stream(user: str, seed: int, size: int, items: int, actions: int) -> list[Interaction]:
    """`size` events of a user on the first `items` items, with the first `actions` names; times and sessions vary."""
    draw = np.random.default_rng(seed)
    values = np.where(draw.random(size) < 0.3, np.nan, draw.choice([0.0, 0.7, 3.0, 4.0, 5.0, -2.5e6], size))
    return [
        Interaction(
            event_id=f"e{n}",
            user_id=user,
            item_id=f"i{n % items if size > HISTORY else draw.integers(items)}",
            event_time=START + int(n * 60_000 + draw.integers(0, 10 ** draw.integers(1, 10))),
            action=ACTIONS[draw.integers(actions)],
            value=None if np.isnan(values[n]) else float(values[n]),
            session_id=[None, "s1", "š2"][draw.integers(3)],
        )
        for n in range(size)
    ]


def table_of(streams: Mapping[str, Sequence[Interaction]]) -> UserTable:
    """The table after the users' events."""
    table = UserTable(store(), lambda keys: [None] * len(keys))
    events = [event for mine in streams.values() for event in mine]
    if events:
        table.apply(EventColumns.of(events, range(len(events))))
    return table


def rows_of(streams: Mapping[str, Sequence[Interaction]]) -> list[bytes | None]:
    """The users' records as stored, None for a user without events."""
    rows = table_of(streams).take()
    return [rows.get(user.encode()) for user in streams]


SIZES = st.integers(0, 30) | st.integers(60, HISTORY + 50) | st.sampled_from([1, 64, 65, HISTORY, ITEMS])
DRAWN = st.tuples(st.integers(0, 2**32), SIZES, st.sampled_from([1, 40, ITEMS]), st.integers(1, 80))
STREAMS = st.lists(DRAWN, max_size=5).map(lambda drawn: {f"u{n}": stream(f"u{n}", *one) for n, one in enumerate(drawn)})
"Events of up to five users: none, few, more than a history holds, or enough for several tiers."


def padded(values: Sequence[object], filler: object, dtype: type) -> NDArray[np.generic]:
    """A history's column, newest first, filled to HISTORY."""
    return np.asarray([*values[::-1], *[filler] * (HISTORY - len(values))], dtype)


def assert_columns(users: Users, records: Sequence[UserRecord | None], skip_affinities: int = -1) -> None:
    """`users` are the columns of `records`; the affinities of one record may be left out."""
    assert len(users) == len(records)
    assert len(set(users.actions)) == len(users.actions)
    assert users.affinity_starts[0] == users.seen_starts[0] == 0
    assert users.affinity_starts[-1] == len(users.affinity_category) == len(users.affinity_weight) == len(users.affinity_ms)
    assert users.seen_starts[-1] == len(users.seen_tiers)
    for q, found in enumerate(records):
        record = found or UserRecord()
        history = record.history
        assert bool(users.known[q]) == (found is not None)
        assert users.size[q] == len(history)
        assert users.time[q].tobytes() == padded(history["time"].tolist(), 0, np.int64).tobytes()
        assert users.item[q].tobytes() == padded(history["item"].tolist(), 0, np.uint64).tobytes()
        expected = padded(history["value"].tolist(), np.nan, np.float32)
        assert np.array_equal(users.value[q], expected, equal_nan=True)
        names = [users.actions[n] for n in users.action[q, : len(history)].tolist()]
        assert names == [record.actions[n] for n in history["action"][::-1].tolist()]
        assert (users.action[q, len(history) :] == -1).all()
        numbers = users.events[q], users.first_ms[q], users.last_ms[q], users.session_events[q], users.seen_items[q]
        total = sum(record.counts.values())
        assert numbers == (total, record.first_ms, record.last_ms, record.session[2], sum(record.seen.counts))
        tiers = users.seen_tiers[users.seen_starts[q] : users.seen_starts[q + 1]]
        assert tiers.tobytes() == record.seen.to_bytes()[1]
        if q != skip_affinities:
            mine = slice(users.affinity_starts[q], users.affinity_starts[q + 1])
            assert users.affinity_category[mine].tolist() == [hash64(name) for name in record.affinities]
            kept = np.asarray([weight for weight, _ in record.affinities.values()], np.float64)
            assert users.affinity_weight[mine].tobytes() == kept.tobytes()
            assert users.affinity_ms[mine].tolist() == [at for _, at in record.affinities.values()]
