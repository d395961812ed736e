"""Current content of an archive: no deleted items, no erased users, and all earlier file formats."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.data.events
from models.archive.files import ArchiveFile, columns, parquet, read_archive
from models.archive.standing import standing_events, standing_impressions, standing_items
from models.archive.target import LocalFolder
from schemas.records import Interaction, Item
from training.data.events import EventFrame
from training.data.table import EventTable, heads_of, of_known_items, vocabulary_of

DAY = 1_700_000_000_000
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from(["act", "act", "act", "erase", "again"])), max_size=30
)


def write(target: LocalFolder, topic: str, partition: int, rows: list[dict[str, object]], first: int) -> None:
    file = ArchiveFile.of(topic, partition, first, first + len(rows) - 1, DAY)
    target.write(file.path, parquet(topic, rows))


def event(n: int, user: int, offset: int, partition: int, item: int = 0, **more: object) -> dict[str, object]:
    made = asdict(Interaction(f"e{n}", f"u{user}", f"i{item}", DAY + n, "view", 1.0))
    return {**made, "_partition": partition, "_offset": offset, "_timestamp": DAY + n, "_removed": False, **more}


@settings(max_examples=50, deadline=None)
@given(STEPS, st.integers(1, 7), st.booleans())
def test_what_was_done_before_an_erasure_is_gone_and_what_came_after_stays(
    steps: list[tuple[int, int, str]], size: int, overlap: bool
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        target = LocalFolder(Path(folder))
        partitions: dict[int, list[dict[str, object]]] = {0: [], 1: []}
        expected: dict[int, list[str]] = {}
        acted: list[tuple[int, int]] = []
        for n, (user, item, what) in enumerate(steps):
            rows = partitions[user % 2]
            if what == "erase":
                origin = {"_partition": user % 2, "_offset": len(rows), "_timestamp": DAY + n}
                rows.append({"user_id": f"u{user}", **origin, "_removed": True})
                expected[user] = []
            else:
                mine = [e for e in acted if e[1] == user]
                number = mine[-1][0] if what == "again" and mine else n
                rows.append(event(n, user, len(rows), user % 2, item, event_id=f"e{number}"))
                if f"e{number}" not in expected.setdefault(user, []):
                    expected[user].append(f"e{number}")
                acted.append((number, user))
        for partition, rows in partitions.items():
            for start in range(0, len(rows), size):
                # two writers may have covered the same range
                first = max(0, start - 1) if overlap else start
                write(target, "interactions", partition, rows[first : start + size], first)
        found = standing_events(target).collect()
        for user in range(3):
            assert found.filter(pl.col("user_id") == f"u{user}")["event_id"].to_list() == expected.get(user, [])
        for partition in (0, 1):
            alone = standing_events(target, partition).collect()
            assert alone.equals(found.filter(pl.col("_partition") == partition))


def test_slates_shown_before_an_erasure_are_gone_too(tmp_path: Path) -> None:
    target = LocalFolder(tmp_path)
    erase = {"user_id": "u0", "_partition": 0, "_offset": 0, "_timestamp": DAY + 5, "_removed": True}
    write(target, "interactions", 0, [erase], 0)

    def slate(n: int, user: int, request: str) -> dict[str, object]:
        plain: dict[str, object] = {"release": "none", "arm": "default", "feature_spec": "none", "as_of": None, "items": []}
        origin = {"_partition": 0, "_offset": n, "_timestamp": DAY + n}
        return {"request_id": request, "user_id": f"u{user}", "event_time": DAY, **plain, **origin}

    rows = [slate(3, 0, "a"), slate(4, 1, "b"), slate(6, 0, "c"), slate(7, 0, "c")]
    write(target, "impressions", 0, rows, 3)
    assert standing_impressions(target).collect()["request_id"].to_list() == ["b", "c"]


def test_an_item_that_was_deleted_comes_back_only_when_it_is_put_again(tmp_path: Path) -> None:
    target = LocalFolder(tmp_path)

    def put(offset: int, item: str, title: str) -> dict[str, object]:
        row = {**asdict(Item(item, title)), "categories": [], "attributes": []}
        return {**row, "_partition": 0, "_offset": offset, "_timestamp": DAY, "_removed": False}

    def gone(offset: int, item: str) -> dict[str, object]:
        return {"item_id": item, "_partition": 0, "_offset": offset, "_timestamp": DAY, "_removed": True}

    rows = [
        put(0, "a", "1"),
        put(1, "b", "1"),
        put(2, "c", "1"),
        gone(3, "a"),
        gone(4, "b"),
        put(5, "b", "2"),
        gone(6, "never"),
    ]
    write(target, "items", 0, rows, 0)
    found = standing_items(target).sort("item_id").collect()
    assert list(zip(found["item_id"], found["title"], strict=True)) == [("b", "2"), ("c", "1")]


@pytest.mark.parametrize("topic", ["interactions", "items"])
def test_files_from_before_there_were_removals_are_read_beside_new_ones(tmp_path: Path, topic: str) -> None:
    target = LocalFolder(tmp_path)
    kinds = columns(topic)
    old = {name: kind for name, kind in kinds.items() if name != "_removed"}
    row = {"item_id": "a", "user_id": "u", "event_id": "e", "event_time": 1, "_partition": 0, "_timestamp": DAY}
    out = io.BytesIO()
    known = {name: value for name, value in row.items() if name in old}
    pl.DataFrame([{**known, "_offset": 0}], schema=old).write_parquet(out)
    target.write(ArchiveFile.of(topic, 0, 0, 0, DAY).path, out.getvalue())
    write(target, topic, 0, [{**known, "_offset": 1, "_removed": True}], 1)
    found = read_archive(target, topic).collect()
    assert found["_removed"].to_list() == [False, True]
    standing = standing_items(target) if topic == "items" else standing_events(target)
    assert standing.collect().height == 0


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9), st.sampled_from("abc"), st.none() | st.integers(0, 3)),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.data())
def test_columns_behave_like_the_list_of_their_records(
    drawn: list[tuple[int, int, int, str, int | None]], data: st.DataObject
) -> None:
    rows = [
        event(n, user, n, user % 2, item, event_time=time, action=action, value=value)
        for n, (user, item, time, action, value) in enumerate(drawn)
    ]
    frame = EventFrame.collect([pl.LazyFrame(rows, schema=columns("interactions"))])
    rows.sort(key=lambda r: (r["event_time"], r["_partition"], r["_offset"]))
    records = [Interaction(**{k: v for k, v in row.items() if k[0] != "_"}) for row in rows]  # type: ignore[arg-type]
    assert list(frame) == records
    assert [frame[n] for n in range(len(frame))] == records
    if records:
        assert frame[-1] == records[-1]
    start, stop = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 40))
    assert list(frame[start:stop]) == records[start:stop]
    items = [Item(f"i{n}") for n in range(4)]
    assert list(of_known_items(frame, items)) == of_known_items(records, items)
    if not records:
        return
    one, other = (vocabulary_of(events, "action == 'a'") for events in (frame, records))
    assert one.scale.tolist() == other.scale.tolist()
    assert vars(one) | {"_rule": 0, "scale": 0} == vars(other) | {"_rule": 0, "scale": 0}
    heads = heads_of(records, one, "action == 'a'")
    assert heads_of(frame, one, "action == 'a'") == heads
    tables = [EventTable.of(events, items, one, heads) for events in (frame, records)]
    for name in EventTable.__slots__:
        assert (getattr(tables[0], name) == getattr(tables[1], name)).all()
    points = data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1), st.integers(-1, 40)), max_size=5))
    if points:
        columns_ = [pl.Series(list(column), dtype=pl.Int64).to_numpy() for column in zip(*points, strict=True)]
        keys = [(r["event_time"], r["_partition"], r["_offset"]) for r in rows]
        assert frame.places(*columns_).tolist() == [sum(key <= point for key in keys) for point in points]


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.integers(0, 45), st.integers(1, 3))
def test_the_newest_events_are_those_that_reading_all_would_end_with(
    drawn: list[tuple[int, int, int, str, int | None]], newest: int, parts: int
) -> None:
    rows = [
        event(n, user, n, user % parts, item, event_time=time, action=action, value=value)
        for n, (user, item, time, action, value) in enumerate(drawn)
    ]
    schema = columns("interactions")
    frames = [pl.LazyFrame([row for row in rows if row["_partition"] == p], schema=schema) for p in range(parts)]
    every, some = EventFrame.collect(frames), EventFrame.collect(frames, newest)
    assert list(every) == list(EventFrame.collect([pl.LazyFrame(rows, schema=schema)]))
    assert list(some) == (list(every)[-newest:] if newest else list(every))
    listed = EventFrame.of(iter(list(every)), newest)
    assert list(listed) == list(some)
    assert listed.codes("item_id").tolist() == some.codes("item_id").tolist()
    for mine, all_ in zip(EventFrame.apart(iter(list(every)), "a", newest), every.split("a"), strict=True):
        assert list(mine) == (list(all_)[-newest:] if newest else list(all_))


TWINS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=20)


@settings(max_examples=60, deadline=None)
@given(TWINS, st.integers(1, 22))
def test_one_event_in_two_partitions_counts_once(drawn: list[tuple[int, int]], newest: int) -> None:
    rows = [event(n, 0, k, partition) for k, (partition, n) in enumerate(drawn)]
    unique = {(row["_partition"], row["event_id"]): row for row in rows}.values()
    schema = columns("interactions")
    frames = [pl.LazyFrame([row for row in unique if row["_partition"] == p], schema=schema) for p in range(3)]
    every = list(EventFrame.collect(frames))
    assert sorted(found.event_id for found in every) == sorted({f"e{n}" for _, n in drawn})
    assert list(EventFrame.collect(frames, newest)) == every[-newest:]


def test_texts_of_events_that_are_left_out_are_never_made_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    coded: list[int] = []
    whole = training.data.events._coded

    def counting(events: pl.LazyFrame) -> pl.LazyFrame:
        coded.append(events.collect().height)
        return whole(events)

    monkeypatch.setattr("training.data.events._coded", counting)
    events = [Interaction(f"e{n}", f"u{n}", f"i{n}", n) for n in range(30_000)]
    assert list(EventFrame.of(iter(events), 100)) == events[-100:]
    rows = [event(n, n, n, 0) for n in range(500)]
    assert len(EventFrame.collect([pl.LazyFrame(rows, schema=columns("interactions"))], 100)) == 100
    # codes keep their texts for as long as the process lives
    assert sum(coded) == 200


def test_long_histories_are_cut_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.events.BATCH", 7)
    events = [Interaction(f"e{n}", f"u{n % 3}", f"i{n % 5}", n // 2, value=n / 2) for n in range(100)]
    for newest in (0, 1, 6, 7, 8, 50, 99, 100, 500):
        assert list(EventFrame.of(events, newest)) == events[-newest:]
        rare = [replace(event, action="rare" if n % 10 == 0 else "view") for n, event in enumerate(events)]
        views, rares = EventFrame.apart(rare, "rare", newest)
        assert list(rares) == rare[::10][-newest:]
        assert list(views) == [event for event in rare if event.action == "view"][-newest:]
