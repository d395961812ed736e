"""Dataset folders: whatever form the events come in they mean the same, and a bad row costs only itself."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset import folder as folder_module
from models.dataset.folder import Dataset
from schemas.errors import BadDataset

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n", exclude_categories=["Cs"]), min_size=1, max_size=8)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": NAMES,
            "item_id": NAMES,
            "event_time": st.integers(0, 2**41),
            "action": st.sampled_from(["view", "like"]),
            "value": st.none() | st.floats(-1e6, 1e6, width=32),
            "position": st.none() | st.integers(0, 50),
        }
    ),
    min_size=1,
    max_size=30,
)


def write(root: Path, events: pl.DataFrame, form: str, items: pl.DataFrame | None = None) -> Dataset:
    root.mkdir(exist_ok=True, parents=True)
    (items if items is not None else pl.DataFrame({"item_id": ["a"]})).write_parquet(root / "items.parquet")
    match form:
        case "parquet":
            events.write_parquet(root / "events.parquet")
        case "csv":
            events.write_csv(root / "events.csv")
        case "jsonl":
            (root / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events.to_dicts()))
    return Dataset.open(root)


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"value": pl.Float64, "position": pl.Int64}, infer_schema_length=None)


@settings(max_examples=40)
@given(ROWS)
def test_every_format_gives_the_same_events_in_time_order(rows: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        forms = ("parquet", "csv", "jsonl")
        seen = [list(write(Path(root) / form, frame(rows), form).events()) for form in forms]
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == len(rows)
    stable = sorted(rows, key=lambda row: row["event_time"])
    assert [(e.user_id, e.item_id, e.event_time) for e in seen[0]] == [
        (r["user_id"], r["item_id"], r["event_time"]) for r in stable
    ]
    assert len({e.event_id for e in seen[0]}) == len(rows), "the same event twice is two events"


@settings(max_examples=25, deadline=None)
@given(ROWS)
def test_large_files_give_what_small_ones_give(rows: list[dict[str, Any]]) -> None:
    kept = folder_module.ROWS_IN_MEMORY
    with tempfile.TemporaryDirectory() as root:
        for form in ("parquet", "csv"):
            dataset = write(Path(root) / form, frame(rows), form)
            whole = list(dataset.events())
            folder_module.ROWS_IN_MEMORY = 5
            try:
                assert list(dataset.events()) == whole
            finally:
                folder_module.ROWS_IN_MEMORY = kept


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-02", "2024-01-02T00:00:00Z", "2024-01-02T02:00:00+02:00", "1704153600000"],
        [datetime(2024, 1, 2, tzinfo=UTC)],
        [datetime(2024, 1, 2)],
        [date(2024, 1, 2)],
        [1704153600000.0],
    ],
)
def test_times_in_any_form(tmp_path: Path, times: list[Any]) -> None:
    events = pl.DataFrame({"user_id": "u", "item_id": "a", "event_time": times})
    assert {e.event_time for e in write(tmp_path, events, "parquet").events()} == {1704153600000}


def test_bad_events_are_named_by_row_and_field_and_cost_only_themselves(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a"]}).write_csv(tmp_path / "items.csv")
    (tmp_path / "events.csv").write_bytes(
        b"user_id,item_id,event_time,value\n"
        b"u,a,30,1\n"
        b"u,a,yesterday,\n"
        b",a,20,\n"
        b"u,a,10,much\n"
        b"u,a,15,1,extra\n"
        b"\xff,a,16,\n"
        b"u,a,5,nan\n"
    )
    dataset = Dataset.open(tmp_path)
    assert [(e.event_time, e.value) for e in dataset.events()] == [(5, None), (30, 1.0)]
    assert sorted((bad.row, bad.field) for bad in dataset.bad if bad.field) == [
        (2, "event_time"),
        (3, "user_id"),
        (4, "value"),
    ]
    assert sorted(bad.row for bad in dataset.bad) == [2, 3, 4, 5, 6]
    list(dataset.events())
    assert dataset.bad_count == 5, "a second pass does not count twice"


def test_items_from_another_domain(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    lines = [
        {"item_id": 7, "title": "Lamp", "categories": "home|light, warm", "price": "9.5", "image": "photo.png", "brand": "B"},
        {"item_id": "8", "categories": ["x", ""], "published_at": "2024-01-02", "available": "no", "image": "gone.png"},
        {"item_id": "9", "image": "../secret.png"},
        {"item_id": "10", "image": "/etc/passwd"},
        {"item_id": "11", "image": "file:///etc/passwd"},
        {"item_id": "12", "image": "https://example.org/a.png", "categories": "a, b", "tags": ["p", "q"]},
        {"item_id": "8"},
        {"title": "no id"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n")
    (tmp_path / "events.jsonl").write_text("")
    dataset = Dataset.open(tmp_path)
    found = {item.item_id: item for item in dataset.items()}
    assert list(found) == ["7", "8", "12"]
    assert (found["7"].categories, found["7"].price) == (("home", "light, warm"), 9.5)
    assert found["7"].image == str((tmp_path / "photo.png").resolve())
    assert found["7"].attributes == {"brand": "B"}
    assert (found["8"].published_at, found["8"].available, found["8"].image) == (
        1704153600000,
        False,
        str(tmp_path.resolve() / "gone.png"),
    )
    assert (found["12"].categories, found["12"].attributes) == (("a", "b"), {"tags": "p, q"})
    assert [(bad.row, bad.field) for bad in dataset.bad] == [
        (3, "image"),
        (4, "image"),
        (5, "image"),
        (7, "item_id"),
        (8, "item_id"),
        (9, None),
    ]
    assert dataset.warnings == {"image_missing": 1}
    assert list(dataset.events()) == []


def test_columns_that_a_data_frame_turned_to_floats(tmp_path: Path) -> None:
    events = pl.DataFrame(
        {"user_id": [1.0], "item_id": [2], "event_time": [5], "position": [3.0], "value": [float("nan")], "session_id": [None]}
    )
    event = next(write(tmp_path, events, "parquet").events())
    assert (event.user_id, event.item_id, event.position, event.value, event.session_id) == ("1", "2", 3, None, None)


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="not a folder"):
        Dataset.open(tmp_path / "none")
    with pytest.raises(BadDataset, match=r"no items\.parquet"):
        Dataset.open(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"no parquet")
    (tmp_path / "events.parquet").write_bytes(b"no parquet")
    dataset = Dataset.open(tmp_path)
    with pytest.raises(BadDataset, match=r"items\.parquet"):
        list(dataset.items())
    with pytest.raises(BadDataset, match=r"events\.parquet"):
        list(dataset.events())
    (tmp_path / "dataset.toml").write_text("name = ")
    with pytest.raises(BadDataset, match=r"dataset\.toml"):
        Dataset.open(tmp_path)
