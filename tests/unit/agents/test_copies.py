"""Users in rows that this worker holds without being their ready owner, on real stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.partitions.copies import STANDBY, Copies
from agents.partitions.users import USER
from agents.requests.mirrored import Mirrored
from agents.summaries import RECENT, record_of, summary
from models.items.store import ItemStore
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import After, AsOf, Interaction, Item
from streams.state.rocks import PartitionStore, block_cache
from streams.state.standby import Reach


def events_of(events: list[Interaction]) -> EventColumns:
    return EventColumns.of(events, list(range(len(events))))


def row_of(items: ItemStore, *item_ids: str) -> bytes:
    table = UserTable(items, lambda keys: [None for _ in keys])
    table.apply(events_of([Interaction(f"e{n}", "ann", item, 1_000 + n) for n, item in enumerate(item_ids)]))
    return table.take()[b"ann"] or b""


@pytest.fixture
def store(tmp_path: Path) -> PartitionStore:
    made = PartitionStore(tmp_path / "users" / "0", block_cache(8))
    made.open()
    return made


def part(store: PartitionStore, held: int) -> Any:
    state = SimpleNamespace(ready=asyncio.Event(), held=held, store=store)
    return SimpleNamespace(state=state, held_time=1_001)


def test_a_copy_answers_once_it_knows_what_it_includes(store: PartitionStore) -> None:
    items = ItemStore(1)
    store.write({USER + b"ann": row_of(items, "a", "b")}, 5)
    standby: Any = SimpleNamespace(reached={}, stores={("users", 0): store})
    copies = Copies({}, standby, items)
    assert copies.find(0, "ann") is None
    standby.reached["users", 0] = Reach(41, 1_001)
    found = copies.find(0, "ann")
    assert found is not None
    assert (found.as_of, found.degraded) == (AsOf(0, 41, 1_001), STANDBY)
    assert found.record is not None
    assert sum(found.record.counts.values()) == 2
    standby.reached["users", 0] = Reach(-1, 0)
    empty = copies.find(0, "ann")
    assert empty is not None
    assert empty.as_of is None, "no event yet"
    assert empty.reflects(None)
    assert not empty.reflects(After(0, 0))
    standby.reached["users", 0] = Reach(41, 1_001)
    unknown = copies.find(0, "bob")
    assert unknown is not None
    assert unknown.record is None
    assert copies.find(1, "ann") is None
    store.close()
    assert copies.find(0, "ann") is None


def test_a_partition_that_is_not_ready_answers_from_its_rows_on_disk(store: PartitionStore) -> None:
    items = ItemStore(1)
    store.write({USER + b"ann": row_of(items, "a")}, 5)
    standby: Any = SimpleNamespace(reached={}, stores={})
    assert Copies({0: part(store, -1)}, standby, items).find(0, "ann") is None, "nothing is known of the rows"
    found = Copies({0: part(store, 7)}, standby, items).find(0, "ann")
    assert found is not None
    assert found.as_of == AsOf(0, 7, 1_001)
    store.wipe()
    assert Copies({0: part(store, 7)}, standby, items).find(0, "ann") is None


def test_rows_that_describe_others_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.state.rocks.MAX_BATCH_BYTES", 100)

    class Watched(PartitionStore):
        def _write(self, batch: Any) -> None:
            super()._write(batch)
            present = [key for key, value in zip(rows, self.get_many(list(rows)), strict=True) if value is not None]
            assert (b"\x00applied" in present) == (len(present) == len(rows)), present
            batches.append(len(present))

    batches: list[int] = []
    rows = {b"u0": b"x" * 60, b"\x00applied": b"41", **{b"u%d" % n: b"x" * 60 for n in range(1, 9)}}
    made = Watched(tmp_path / "0", block_cache(8))
    made.open()
    made.write(rows, 5)
    assert len(batches) > 2


names = st.sampled_from([f"i{n}" for n in range(40)])
actions = st.sampled_from(["view", "like", "cart"])


@given(st.lists(st.tuples(names, actions, st.none() | st.floats(0, 5, width=32)), min_size=1, max_size=60))
def test_a_record_from_a_summary_has_the_newest_events_and_gives_the_same_summary(events: list[tuple[str, str, Any]]) -> None:
    items = ItemStore(1)
    for n in range(40):
        items.upsert(Item(f"i{n}", categories=("a",)))
    table = UserTable(items, lambda keys: [None for _ in keys])
    table.apply(
        events_of(
            [Interaction(f"e{n}", "ann", item, 1_000 + n, action, value) for n, (item, action, value) in enumerate(events)]
        )
    )
    (record,) = table.lookup(["ann"])
    assert record is not None
    told = summary(record, items)
    again = record_of(told)
    assert len(again.history) == min(len(events), RECENT)
    assert all(item in again.seen for item, _, _ in events[-RECENT:])
    seen = summary(again, items)["seen"]
    assert summary(again, items) | {"seen": told["seen"]} == told
    assert seen <= told["seen"]


async def test_a_mirrored_record_claims_no_event_and_an_odd_or_late_summary_is_none() -> None:
    items = ItemStore(1)
    table = UserTable(items, lambda keys: [None for _ in keys])
    table.apply(events_of([Interaction("e", "ann", "a", 1_000)]))
    told = summary(table.lookup(["ann"])[0], items)  # type: ignore[arg-type]

    class Mirror:
        counters: Any = None

        def __init__(self, answer: Any, wait_s: float = 0.0) -> None:
            self.answer, self.wait_s = answer, wait_s

        async def get(self, user_id: str) -> Any:
            await asyncio.sleep(self.wait_s)
            return self.answer

    async def found(answer: Any, wait_s: float = 0.0) -> Any:
        mirror: Any = Mirror(answer, wait_s)
        return await Mirrored(mirror).find("ann", 0.05)

    whole = await found(told)
    assert (whole.as_of, whole.degraded) == (None, "mirror")
    assert "a" in whole.record.seen
    assert await found(None) is None
    assert await found({"user_id": "ann"}) is None
    assert await found(told, 5.0) is None
