"""Counts by slot are those of a recount of all that happened, whatever is read or dropped in between."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.items.history import SLOTS, WAITING, ItemHistory
from models.items.journal import Journal
from models.items.store import ACTION_SLOTS, ItemStore
from models.state.rows import ItemStatRow
from schemas.records import Item

NAMES = [f"item {n}" for n in range(6)]
ACTIONS = ["click", "like", "skip", "buy", "wish", "share"]
START_MS = 1_700_000_000_123
STEP = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(NAMES), st.integers(0, 2), st.sampled_from(ACTIONS)),
    st.tuples(st.just("show"), st.lists(st.sampled_from([*NAMES, "unknown"]), max_size=4, unique=True)),
    st.tuples(st.just("wait"), st.sampled_from([1, 59_999, 60_000, 61_000, 3_600_000, 90_000_000, 200_000_000])),
    st.tuples(st.just("put"), st.sampled_from(NAMES)),
    st.tuples(st.just("read"), st.sampled_from(NAMES), st.sampled_from(sorted(SLOTS))),
)


@dataclass
class World:
    """A store whose history is kept, and everything that happened, as a plain list."""

    items: ItemStore = field(default_factory=lambda: ItemStore(3, capacity=2))
    totals: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    happened: list[tuple[int, str, str]] = field(default_factory=list)
    "Time, item, and action, or `shown`."
    now_ms: int = START_MS

    def event(self, name: str, partition: int, action: str) -> None:
        self.totals[name, partition, action] += 1
        counts = {of[2]: n for of, n in self.totals.items() if of[:2] == (name, partition)}
        self.items.set_statistics(name, partition, ItemStatRow(counts, 0.0, 0, 1.0, self.now_ms, self.now_ms))
        self.happened.append((self.now_ms, name, action))


def roll(history: ItemHistory, world: World) -> None:
    for _ in history.roll(world.now_ms):
        pass


def agrees(history: ItemHistory, world: World, name: str, per: str) -> None:
    found = history.of(name, per, world.now_ms)
    slot_ms, kept = SLOTS[per]
    last = world.now_ms - world.now_ms % slot_ms
    assert (found.at[-1], len(found.at) <= kept) == (last, True)
    assert list(np.diff(found.at)) == [slot_ms] * (len(found.at) - 1)
    assert found.began_ms is not None
    assert found.at[0] <= found.began_ms < found.at[0] + slot_ms
    begun = max(START_MS, last - (kept - 1) * slot_ms)
    assert found.began_ms == begun, "nothing is dropped before its time"
    expected = Counter((at - at % slot_ms, what) for at, of, what in world.happened if of == name and at >= found.at[0])
    assert list(found.shown) == [expected[at, "shown"] for at in found.at]
    actions = {what for _, what in expected if what != "shown"}
    assert found.actions == {what: tuple(expected[at, what] for at in found.at) for what in actions}


@settings(max_examples=150)
@given(st.lists(STEP, max_size=40), st.lists(STEP, max_size=10), st.sampled_from([2, 1 << 16]))
def test_slots_hold_what_a_recount_of_all_that_happened_holds(
    steps: list[tuple[str, ...]], before: list[tuple[str, ...]], remembered: int
) -> None:
    world = World()
    world.items.journal = Journal(remembered)  # a short one: everything is compared again
    history = ItemHistory(world.items)
    for step in before:
        if step[0] == "event":
            world.event(*step[1:])  # type: ignore[arg-type]
        history.show(["item 0"])
    world.happened.clear()
    assert history.of("item 0", "hour", START_MS).at == ()
    for _ in history.begin(START_MS):
        pass
    for kind, *of in steps:
        if kind == "event":
            world.event(*of)  # type: ignore[arg-type]
        elif kind == "show":
            history.show(of[0])
            known = [name for name in of[0] if world.items.row_of(name) >= 0]
            world.happened += [(world.now_ms, name, "shown") for name in known]
            history.of("item 0", "minute", world.now_ms)  # they are looked up while they are known as they are now
        elif kind == "wait":
            world.now_ms += int(of[0])
            roll(history, world)
        elif kind == "put":
            world.items.upsert(Item(of[0]))
        else:
            agrees(history, world, of[0], of[1])
    for name in NAMES:
        for per in SLOTS:
            agrees(history, world, name, per)


def begun(items: ItemStore, most: int = 4_000_000) -> ItemHistory:
    history = ItemHistory(items, most)
    for _ in history.begin(START_MS):
        pass
    return history


def test_the_oldest_slots_are_dropped_when_all_hold_too_many_numbers() -> None:
    world = World()
    for name in NAMES:
        world.items.upsert(Item(name))
    history = begun(world.items, most=10)
    for _ in range(5):
        history.show(NAMES)
        world.now_ms += 60_000
        roll(history, world)
    found = history.of("item 3", "minute", world.now_ms)
    assert found.shown == (1, 0), "one slot of 6 numbers, and the open one"
    assert found.began_ms == found.at[0]
    assert sum(history.of("item 3", "hour", world.now_ms).shown) == 5


def test_shown_ids_are_looked_up_together_and_none_is_lost() -> None:
    world = World()
    world.items.upsert(Item("item 0"))
    history = begun(world.items)
    for _ in range(WAITING + 7):
        history.show(["item 0", "withdrawn long ago"])
    assert history.of("item 0", "hour", world.now_ms).shown == (WAITING + 7,)


def test_a_count_that_a_new_owner_does_not_know_is_never_negative() -> None:
    world = World()
    for _ in range(3):
        world.event("item 0", 1, "like")
    history = begun(world.items)
    world.items.set_statistics("item 0", 1, ItemStatRow({"like": 2}, 0.0, 0, 1.0, START_MS, START_MS))
    assert history.of("item 0", "minute", world.now_ms).actions == {}
    world.event("item 0", 1, "like")
    world.event("item 0", 1, "like")
    assert history.of("item 0", "minute", world.now_ms).actions == {"like": (2,)}


@pytest.mark.parametrize("per", sorted(SLOTS))
def test_actions_beyond_those_that_are_counted_by_item_are_left_out(per: str) -> None:
    world = World()
    history = begun(world.items)
    for n in range(ACTION_SLOTS + 3):
        world.event("item 0", 0, f"a{n}")
    assert len(history.of("item 0", per, world.now_ms).actions) == ACTION_SLOTS


def test_an_unknown_item_has_zeros() -> None:
    found = begun(ItemStore(1)).of("nothing", "hour", START_MS)
    assert (found.shown, found.actions) == ((0,), {})
