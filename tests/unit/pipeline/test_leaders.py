"""The first items, found from the few that changed, are those that a look at all items finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.items.journal import Journal
from models.items.store import ItemStore
from models.pipeline import leaders
from models.pipeline.leaders import Leaders, descending
from models.pipeline.popular import popularity_of
from models.pipeline.scratch import LAST_MARK, Scratch
from models.pipeline.sources import FreshSource
from models.state.rows import POPULARITY_HALF_LIFE_MS, ItemStatRow
from schemas.records import Item

HOUR = 3_600_000
NAMES = [f"i{n}" for n in range(30)]
STEP = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(0, 20), st.booleans()),
    st.tuples(st.just("count"), st.sampled_from(NAMES), st.integers(1, 12), st.integers(0, 40)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES)),
    st.tuples(st.just("time"), st.integers(0, POPULARITY_HALF_LIFE_MS)),
    st.tuples(st.just("clock"), st.integers(0, 21)),
    st.tuples(st.just("look"), st.integers(1, 12)),
)


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "LEAST_POOL", 3)
    monkeypatch.setattr(leaders, "ROOM", 1)


@given(st.lists(STEP, max_size=80), st.integers(4, 40))
def test_the_leaders_are_the_first_of_all_items(steps: list[tuple], kept: int) -> None:  # type: ignore[type-arg]
    store, fresh, now = ItemStore(2, capacity=2), FreshSource(), 10
    store.journal = Journal(kept)
    followed = ((Leaders(popularity_of), popularity_of), (fresh._leaders, fresh._published))
    for step in [*steps, ("look", 5)]:
        match step:
            case ("put", name, published, available):
                store.upsert(Item(name, published_at=published or None, available=available))
            case ("count", name, n, hours):
                time = store.stream_time_ms + hours * HOUR
                store.set_statistics(name, n % 2, ItemStatRow({"view": n}, 0.0, 0, float(n), time, 1))
            case ("remove", name):
                store.remove(name)
            case ("time", ms):
                store.stream_time_ms += ms
            case ("clock", time):
                now = time
            case ("look", most):
                eligible = store.eligible(now)
                size = len(store)
                assert eligible.tolist() == (store.available[:size] & (store.published_ms[:size] <= now)).tolist()
                for held, value in followed:
                    values = value(store, slice(size), eligible)
                    rows, found = held.first(store, eligible, most)
                    expected = descending(values, most)
                    assert rows[: len(expected)].tolist() == expected.tolist()
                    assert found.tolist() == values[rows].tolist()


def test_a_batch_that_began_before_the_catalogue_grew_finds_its_leaders() -> None:
    store, leaders = ItemStore(1), Leaders(popularity_of)
    store.upsert(Item("a"))
    store.set_statistics("a", 0, ItemStatRow({"view": 1}, 0.0, 0, 1.0, 1, 1))
    earlier = store.eligible(10)
    store.upsert(Item("b"))
    store.set_statistics("b", 0, ItemStatRow({"view": 2}, 0.0, 0, 2.0, 1, 1))
    for eligible, expected in ((store.eligible(10), [1, 0]), (earlier, [0]), (store.eligible(10), [1, 0])):
        assert leaders.first(store, eligible, 5)[0].tolist() == expected


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=12), st.integers(1, 12))
def test_a_journal_returns_the_rows_since_a_position_or_nothing_if_it_forgot_them(parts: list[list[int]], kept: int) -> None:
    journal, every = Journal(kept), list[int]()
    for n, part in enumerate(parts):
        if n % 2:
            journal.extend(np.asarray(part, np.int64))
        else:
            for row in part:
                journal.add(row)
        every += part
        assert journal.position == len(every)
        for position in range(len(every) + 1):
            found = journal.since(position)
            if len(every) - position > kept:
                assert found is None
            else:
                assert found is not None
                assert found.tolist() == sorted(set(every[position:]))


def test_marks_are_never_on_an_item_before_they_are_given() -> None:
    work = Scratch()
    for size, kinds in ((3, 2), (3, 5), (9, 2), (3, LAST_MARK - 20), (3, 30), (12, 1)):
        marks, first = work.marks(size, kinds)
        assert len(marks) >= size
        assert 0 < first <= first + kinds - 1 <= LAST_MARK
        assert (marks < first).all()
        marks[: size - 1] = first + kinds - 1
