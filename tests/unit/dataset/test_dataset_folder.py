"""Dataset folders: events mean the same in every format, and a bad row affects no other."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset import event_prices
from models.dataset import folder as folder_module
from models.dataset.folder import Dataset
from schemas.errors import BadDataset, BadEvent
from schemas.validation import check_time

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
    once = {(r["user_id"], r["item_id"], r["action"], r["event_time"]): r for r in reversed(rows)}
    stable = [row for row in sorted(rows, key=lambda row: row["event_time"]) if any(row is first for first in once.values())]
    assert [(e.user_id, e.item_id, e.event_time, e.value) for e in seen[0]] == [
        (r["user_id"], r["item_id"], r["event_time"], r["value"]) for r in stable
    ]
    assert len({e.event_id for e in seen[0]}) == len(stable)


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
    assert [(e.event_time, e.value) for e in dataset.events()] == [(30, 1.0)]
    assert [(bad.row, bad.field) for bad in dataset.bad if bad.field] == [
        (3, "event_time"),
        (4, "user_id"),
        (5, "value"),
        (8, "value"),
    ]
    assert [bad.row for bad in dataset.bad] == [3, 4, 5, 6, 7, 8], "lines of the file"
    assert "is 'nan'" in dataset.bad[-1].reason
    list(dataset.events())
    assert dataset.bad_count == 6, "a second pass does not count twice"


def test_items_from_another_domain(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "text.png").write_bytes(b"no image")
    lines = [
        {"item_id": 7, "title": "Lamp", "categories": "home|light, warm", "price": "9.5", "image": "photo.png", "brand": "B"},
        {"item_id": "8", "categories": ["x", ""], "published_at": "2024-01-02", "available": "no", "image": "gone.png"},
        {"item_id": "9", "image": "../secret.png"},
        {"item_id": "10", "image": "/etc/passwd"},
        {"item_id": "11", "image": "file:///etc/passwd"},
        {"item_id": "12", "image": "https://example.org/a.png", "categories": "a, b", "tags": ["p", "q"]},
        {"item_id": "8", "image": "gone.png"},
        {"title": "no id"},
        {"item_id": "13", "image": "text.png"},
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n")
    (tmp_path / "events.jsonl").write_text("")
    dataset = Dataset.open(tmp_path)
    found = {item.item_id: item for item in dataset.items()}
    assert list(found) == ["7", "8", "12", "13"]
    assert (found["7"].categories, found["7"].price) == (("home", "light, warm"), 9.5)
    assert found["7"].image == str((tmp_path / "photo.png").resolve())
    assert found["7"].attributes == {"brand": "B"}
    assert (found["8"].published_at, found["8"].available, found["8"].image) == (
        1704153600000,
        False,
        None,
    )
    assert found["13"].image is None
    assert (found["12"].categories, found["12"].attributes) == (("a", "b"), {"tags": "p, q"})
    assert [(bad.row, bad.field) for bad in dataset.bad] == [
        (3, "image"),
        (4, "image"),
        (5, "image"),
        (7, "item_id"),
        (8, "item_id"),
        (10, None),
    ]
    assert [(warned.row, warned.field) for warned in dataset.warned] == [(2, "image"), (9, "image")]
    assert "gone.png" in dataset.warned[0].reason
    list(dataset.items())
    assert dataset.warnings == {"image_missing": 1, "not_an_image": 1}, "a second pass does not count twice"
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


def folder_of(root: Path, items: str = "item_id\na\n", events: str = "user_id,item_id,event_time\nu,a,1700000000000\n") -> Path:
    (root / "items.csv").write_text(items)
    (root / "events.csv").write_text(events)
    return root


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items": ""}, "items.csv holds no rows"),
        ({"items": "item_id\n"}, "items.csv holds no rows"),
        ({"events": "user_id,item_id,event_time\n"}, "events.csv holds no rows"),
        ({"items": "id\na\nb\n"}, "items.csv has no column item_id"),
        ({"events": "user_id,item_id,when\nu,a,1700000000000\n"}, "events.csv has no column event_time"),
        ({"events": "user_id,item_id,event_time\nu,a,\nu,a,1700000000\nu,b,1700000001\n"}, "looks like seconds"),
    ],
)
def test_what_is_wrong_with_a_whole_file_is_said_once(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(BadDataset, match=message):
        Dataset.open(folder_of(tmp_path, **files)).check()


@given(st.lists(st.integers(0, 2**41), min_size=1, max_size=5))
def test_times_are_taken_for_seconds_only_when_every_one_is_small(times: list[int]) -> None:
    with tempfile.TemporaryDirectory() as root:
        text = "user_id,item_id,event_time\n" + "".join(f"u,a,{time}\n" for time in times)
        dataset = Dataset.open(folder_of(Path(root), events=text))
        if max(times) < 10**11:
            with pytest.raises(BadDataset, match="seconds"):
                dataset.check()
        else:
            dataset.check()
        dataset.check(events=False)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("seconds", "warned"), [(0, False), (2, False), (3, True)])
def test_seconds_among_milliseconds_are_a_warning_when_they_are_most(
    tmp_path: Path, kind: str, seconds: int, warned: bool
) -> None:
    times = [1_700_000_000_000, 1_700_000_000_001, *(1_700_000_000 + n for n in range(seconds))]
    dataset = write(tmp_path, pl.DataFrame({"user_id": "u", "item_id": "a", "event_time": times}), kind)
    dataset.check()
    for _ in range(2):  # a second pass does not count twice
        assert len(list(dataset.events())) == len(times)
    place = f"events.{kind} {'row 3' if kind == 'parquet' else 'line 4' if kind == 'csv' else 'line 3'}"
    said = f"{place}: 3 of 5 times lie in January 1970, this one first: are they seconds? event_time is in milliseconds"
    assert dataset.report.warning_lines() == [said] * warned
    assert dataset.bad_count == 0


@pytest.mark.parametrize("kinds", [("csv", "jsonl"), ("parquet", "csv")])
@pytest.mark.parametrize("name", ["items", "events", "users"])
def test_a_file_in_two_forms_is_refused_by_both_names(tmp_path: Path, name: str, kinds: tuple[str, str]) -> None:
    folder_of(tmp_path)
    for kind in kinds:
        (tmp_path / f"{name}.{kind}").touch()
    with pytest.raises(BadDataset, match=rf"{name}\.{kinds[0]} and {name}\.{kinds[1]}"):
        Dataset.open(tmp_path)


def test_items_alone_will_do_where_no_events_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id\na\n")
    dataset = Dataset.open(tmp_path, events=False)
    dataset.check(events=False)
    assert [item.item_id for item in dataset.items()] == ["a"]
    assert list(dataset.events()) == []
    assert dataset.counts() == (1, 0)


@given(st.permutations(range(8)), st.sampled_from(["parquet", "csv", "jsonl"]))
def test_bad_rows_come_in_their_order_whatever_their_times(order: list[int], form: str) -> None:
    rows = [{"user_id": "u", "item_id": "a", "event_time": 2**40 + n, "value": None, "position": n - 4} for n in order]
    with tempfile.TemporaryDirectory() as root:
        dataset = write(Path(root), frame(rows), form)
        assert len(list(dataset.events())) == 4
        wrong = [place for place, n in enumerate(order, 1) if n < 4]
        assert [bad.row - (form == "csv") for bad in dataset.bad] == wrong


@given(st.integers(-(2**40), 2**40))
def test_events_from_the_future_are_bad_rows_by_the_rule_that_workers_have(ahead: int) -> None:
    now = 2**41
    with tempfile.TemporaryDirectory() as root:
        text = f"user_id,item_id,event_time\nu,a,{now + ahead}\n"
        dataset = Dataset.open(folder_of(Path(root), events=text))
        kept = len(list(dataset.events(now)))
        try:
            check_time(now + ahead, now)
        except BadEvent:
            assert (kept, [bad.field for bad in dataset.bad]) == (0, ["event_time"])
        else:
            assert (kept, dataset.bad) == (1, [])
        assert len(list(dataset.events())) == 1


@pytest.mark.parametrize("field", ["user_id", "item_id"])
@pytest.mark.parametrize("value", [["u"], {"id": "u"}, True, 1.5])
def test_an_id_that_is_no_id_is_a_bad_row(tmp_path: Path, field: str, value: object) -> None:
    folder_of(tmp_path)
    (tmp_path / "events.csv").unlink()
    row = {"user_id": "u", "item_id": "a", "event_time": 1_700_000_000_000}
    (tmp_path / "events.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, field: value}) + "\n")
    dataset = Dataset.open(tmp_path)
    assert len(list(dataset.events())) == 1
    assert [(bad.row, bad.field) for bad in dataset.bad] == [(2, field)]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("rating >= 4", "there is no column rating"),
        ("len(action) > 2", "may not use calls"),
        ("value + 1 > 2", "may not use arithmetic"),
        ("action in ['a']", "may not use"),
        ("value >", "cannot be read"),
    ],
)
def test_a_rule_that_does_not_fit_is_told_in_words(tmp_path: Path, rule: str, message: str) -> None:
    folder_of(tmp_path)
    (tmp_path / "dataset.toml").write_text(f'name = "x"\npositive = "{rule}"\nnmae = 1\n')
    dataset = Dataset.open(tmp_path)
    assert [(warned.file, "nmae" in warned.reason) for warned in dataset.warned] == [("dataset.toml", True)]
    with pytest.raises(BadDataset, match=message):
        dataset.check()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_events_that_is_not_read_is_a_warning_and_costs_no_row(tmp_path: Path, kind: str) -> None:
    pl.DataFrame({"item_id": ["a"], "colour": ["red"]}).write_csv(tmp_path / "items.csv")
    rows = {
        "user_id": ["u", "v"],
        "item_id": ["a", "a"],
        "event_time": [10**12, 10**12 + 1],
        "rating": [5, 3],
        "note": ["x", "y"],
    }
    frame, file = pl.DataFrame(rows), tmp_path / f"events.{kind}"
    writers: dict[str, Callable[[Path], object]] = {
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
    }
    writers[kind](file)
    dataset = Dataset.open(tmp_path)
    for _ in range(2):
        dataset.check()
        assert len(list(dataset.items())) == 1, "of items they are attributes"
        assert len(list(dataset.events())) == 2
        assert dataset.warnings == {"unknown_column": 2}, "a second look does not count twice"
        assert [(warned.file, warned.row, warned.field) for warned in dataset.warned] == [
            (file.name, 0, "rating"),
            (file.name, 0, "note"),
        ]
    assert "'rating' is not read; a rating belongs in `value`; known: action, event_id" in dataset.warned[0].reason
    (line,) = dataset.report.warning_lines()
    assert line.startswith(f"{file.name}: 2 columns are not read: 'rating', 'note'; a rating belongs in `value`; known: action")
    assert dataset.bad_count == 0


PRICES = st.lists(
    st.tuples(st.sampled_from("abc"), st.none() | st.floats(allow_nan=True, allow_infinity=True, width=32)), max_size=12
)


@settings(max_examples=20)
@given(PRICES, st.integers(1, 3))
def test_every_format_gives_the_same_medians_of_the_prices_in_events(priced: list[tuple[str, float | None]], kept: int) -> None:
    rows = [{"user_id": "u", "item_id": item, "event_time": n, "price": price} for n, (item, price) in enumerate(priced)]
    kinds = {"user_id": pl.String, "item_id": pl.String, "event_time": pl.Int64, "price": pl.Float64}
    catalogue, found = pl.DataFrame({"item_id": list("abc")}), []
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_prices, "KEPT", kept)
        for form in ("parquet", "csv"):
            dataset = write(Path(root) / form, pl.DataFrame(rows, schema=kinds), form, catalogue)
            found.append({item.item_id: item.price for item in dataset.items()})
    usable = {
        name: [p for item, p in priced if item == name and p is not None and 0 <= p < float("inf")][:kept] for name in "abc"
    }
    for name, of in usable.items():
        for prices in found:
            assert prices[name] == (pytest.approx(np.median(of)) if of else None)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_prices_in_events_are_read_once_and_only_when_an_item_lacks_its_own(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(events: Path) -> dict[str, float]:
        reads.append(events)
        return event_prices.median_prices(events)

    monkeypatch.setattr(folder_module, "median_prices", counted)
    events = pl.DataFrame({"user_id": "u", "item_id": "a", "event_time": [1, 2, 3], "price": [1.0, 9.0, 2.0]})
    own = write(tmp_path / "own", events, form, pl.DataFrame({"item_id": ["a"], "price": [5.0]}))
    assert [item.price for item in own.items()] == [5.0]
    assert reads == []
    dataset = write(tmp_path / "none", events, form)
    for _ in range(3):
        assert [item.price for item in dataset.items()] == [2.0]
    assert len(reads) == 1
