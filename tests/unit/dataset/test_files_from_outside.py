"""Files of users: errors are reported by line, and no row is lost or misread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from agents.cli.loading import load
from models.dataset.folder import Dataset
from schemas.errors import BadDataset, BadItem
from schemas.parsing import shown
from schemas.validation import item_from

NOW = 1_700_000_000_000
EVENTS = f"user_id,item_id,event_time\nu,a,{NOW}\n"


def folder_of(root: Path, items: str | bytes = "item_id\na\n", events: str | bytes = EVENTS, kind: str = "csv") -> Dataset:
    for name, body in (("items", items), ("events", events)):
        (root / f"{name}.{kind}").write_bytes(body if isinstance(body, bytes) else body.encode())
    return Dataset.open(root)


def reasons(dataset: Dataset) -> list[tuple[int, str]]:
    return [(bad.row, bad.reason) for bad in dataset.bad]


# quotes


def test_a_quote_that_is_never_closed_costs_its_own_row_and_is_an_error(tmp_path: Path) -> None:
    rows = [f"r{n},plain,{n}" for n in range(200)]
    rows[100] = 'r100,"never closed,100'
    dataset = folder_of(tmp_path, "item_id,title,price\n" + "\n".join(rows) + "\n")
    assert [item.item_id for item in dataset.items()] == [f"r{n}" for n in range(200) if n != 100]
    assert reasons(dataset) == [(102, "a quote opened in line 102 is never closed")]
    assert dataset.torn
    done = CliRunner().invoke(load, [str(tmp_path), "--strict"])
    assert done.exit_code == 1
    assert "items.csv line 102: a quote opened in line 102 is never closed" in done.stderr


@pytest.mark.parametrize(
    ("rows", "ids", "bad"),
    [
        # a later quote closes it: the rows between are rows nevertheless
        (['b,"open,1', "c,plain,2", 'd,"fine, yes",3', "e,plain,4"], ["c", "d", "e"], [2]),
        # it would be closed within a row that holds a quote where none belongs, too
        (['b,"open,1', "c,plain,2", 'd,five" pipe,3', "e,plain,4"], ["c", "e"], [2, 4]),
        (['"b","open,"1"', '"c","plain","2"'], ["c"], [2]),
        (['b,"one ""quote"" and a\r\nline break, here",1', "c,plain,2"], ["b", "c"], []),
        (['b,"open,1'], [], [2]),
    ],
)
def test_rows_after_a_quote_that_is_not_closed_are_read(
    tmp_path: Path, rows: list[str], ids: list[str], bad: list[int]
) -> None:
    dataset = folder_of(tmp_path, "item_id,title,price\n" + "\n".join(rows) + "\n")
    assert [item.item_id for item in dataset.items()] == ids
    assert [line for line, _ in reasons(dataset)] == bad


def test_quotes_are_kept_or_the_row_is_reported(tmp_path: Path) -> None:
    rows = ['a,five" pipe', 'b,"weird al" yankovic', 'c,"""weird al"" yankovic"', 'd,say "hi"', 'e, "blank"']
    dataset = folder_of(tmp_path, "item_id,title\n" + "\n".join(rows) + "\n")
    assert [(i.item_id, i.title) for i in dataset.items()] == [
        ("a", 'five" pipe'),
        ("c", '"weird al" yankovic'),
        ("d", 'say "hi"'),
    ]
    assert [line for line, _ in reasons(dataset)] == [3, 6]
    assert "text follows the closing quote of field 2: ' yankovic'" in dataset.bad[0].reason
    assert not dataset.torn, "no other row depends on it"


def test_rows_that_are_probably_within_a_text_are_a_warning(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, 'item_id,title,price\na,"open,1\nb,plain,2\nc,open too",3\nd,plain,4\n')
    assert [item.item_id for item in dataset.items()] == ["a", "d"]
    assert dataset.warnings == {"unclear_quote": 1}
    assert dataset.report.warning_lines() == [
        "items.csv line 2: lines 2 to 4 are one row, but each looks like a row: is a quote not closed?"
    ]


# lines


def test_rows_are_named_by_their_line_of_the_file(tmp_path: Path) -> None:
    dataset = folder_of(
        tmp_path,
        '\r\nitem_id,title\r\n\r\na,"two\r\nlines"\r\n\r\n,none\r\nb,B,C\r\n\r\nc\r\n',
        f"user_id,item_id,event_time\n\n,a,{NOW}\n",
    )
    assert [item.title for item in dataset.items()] == ["two\r\nlines"]
    assert [line for line, _ in reasons(dataset)] == [7, 8, 10]
    assert list(dataset.events()) == []
    assert dataset.bad[-1].row == 3
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    lines = folder_of(tmp_path, '{"item_id": "a"}\n\n{"item_id": ""}\n', "\n[1]\n", kind="jsonl")
    assert [item.item_id for item in lines.items()] == ["a"]
    assert lines.bad[0].row == 3


def test_a_row_of_another_length_says_what_was_found_and_why_that_may_be(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, "item_id,title,price\na,A\nb,B,or not,1\nc;C;1\nd\n")
    fewer = "write what is missing as an empty field, or put a text with a line break in double quotes"
    assert list(dataset.items()) == []
    assert reasons(dataset) == [
        (
            2,
            f"2 fields, but the header has 3: 'a,A'; {fewer}",
        ),
        (3, "4 fields, but the header has 3: 'b,B,or not,1'; put a text with a comma in double quotes"),
        (4, "1 field, but the header has 3: 'c;C;1'; its fields seem to be separated by semicolons, not by commas"),
        (
            5,
            f"1 field, but the header has 3: 'd'; {fewer}",
        ),
    ]


# separators and encodings


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_every_line_end_is_one_and_a_byte_order_mark_is_no_text(tmp_path: Path, end: str, start: str) -> None:
    dataset = folder_of(tmp_path, start + end.join(["item_id,title", "a,A", "b,B"]) + end)
    dataset.check()
    assert [(item.item_id, item.title) for item in dataset.items()] == [("a", "A"), ("b", "B")]
    assert dataset.counts()[0] == 2
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    (tmp_path / "dataset.toml").write_text(f'{start}name = "x"')
    lines = folder_of(tmp_path, start + end.join(['{"item_id": "a"}', '{"item_id": "b"}']), "{}", kind="jsonl")
    assert (lines.name, [item.item_id for item in lines.items()], lines.bad) == ("x", ["a", "b"], [])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "item_id;title\na;b\n",
            "no column item_id: its header is 'item_id;title', whose names seem to be separated by semicolons",
        ),
        ("item_id\ttitle\na\tb\n", r"separated by tabs"),
        ("id,title\na,b\n", "no column item_id: its header is 'id,title'"),
        ("item_id,title\na,b\n".encode("utf-16"), "probably UTF-16: save it as UTF-8"),
        ("item_id,title\na,b\n".encode("utf-16-be"), "probably UTF-16: save it as UTF-8"),
        ("item_id,título\na,b\n".encode("latin-1"), r"not UTF-8: save the file as UTF-8"),
        (b"PK\x03\x04rest", "a spreadsheet or a ZIP archive"),
        (b"\x1f\x8brest", "compressed by gzip"),
        ("item_id,title,title\na,b,c\n", "names 'title' twice"),
        ('item_id,"title\na,b\n', "the header in line 1: a quote is never closed"),
        ("", "holds no rows"),
        ("item_id,title\n", "holds no rows, only the header 'item_id,title'"),
    ],
)
def test_what_is_no_csv_in_utf8_is_refused_as_a_whole_in_words(tmp_path: Path, body: str | bytes, said: str) -> None:
    dataset = folder_of(tmp_path, body)
    with pytest.raises(BadDataset, match=said):
        dataset.check()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('[\n{"item_id": "a"}\n]\n', "begins with a JSON array: write one object on each line"),
        ('{"item_id": "a"}\n'.encode("utf-16-le"), "probably UTF-16"),
        ('{"id": "a"}\n', "no column item_id: its header is 'id'"),
    ],
)
def test_what_is_no_json_lines_is_refused_as_a_whole_in_words(tmp_path: Path, body: str | bytes, said: str) -> None:
    dataset = folder_of(tmp_path, body, '{"user_id": "u"}', kind="jsonl")
    with pytest.raises(BadDataset, match=said):
        dataset.check()


def test_latin_1_is_named_with_its_field_and_value(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, "item_id,title\na,b\nc,café\n".encode("latin-1"))
    assert [item.item_id for item in dataset.items()] == ["a"]
    assert reasons(dataset) == [(3, r"title is not UTF-8: 'caf\\xe9'; is the file in Latin-1? save it as UTF-8")]


def test_files_with_another_name_are_named(tmp_path: Path) -> None:
    (tmp_path / "items.tsv").touch()
    (tmp_path / "Items.csv.gz").touch()
    with pytest.raises(
        BadDataset, match=r"no items\.parquet, items\.csv or items\.jsonl; Items\.csv\.gz, items\.tsv is not read"
    ):
        Dataset.open(tmp_path)


# numbers, times, flags


@pytest.mark.parametrize("odd", ["-1", "1_000", "٣", "NaN", "inf", " 5", "+5", "1e999", "5 EUR", "0x1f"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_price_that_is_none_is_refused_with_its_value_as_over_http(tmp_path: Path, odd: str, kind: str) -> None:
    body = f"item_id,price\na,{odd}\nb,5\n" if kind == "csv" else f'{{"item_id": "a", "price": "{odd}"}}\n{{"item_id": "b"}}\n'
    dataset = folder_of(tmp_path, body, kind=kind)
    assert [item.item_id for item in dataset.items()] == ["b"]
    assert dataset.bad[0].field == "price"
    assert f"is {shown(float(odd) if odd == '-1' else odd)}" in dataset.bad[0].reason
    with pytest.raises(BadItem, match="price must"):
        item_from({"item_id": "a", "price": -1 if odd == "-1" else odd})


@pytest.mark.parametrize(
    "odd", ["978_300_760_000", "٣", "1e12", " 1700000000000", "1969-12-31", "-1", "NaN", "tomorrow", "1.5"]
)
@pytest.mark.parametrize("field", ["event_time", "published_at"])
def test_a_time_that_is_none_is_refused_with_its_value(tmp_path: Path, odd: str, field: str) -> None:
    dataset = folder_of(tmp_path, f"item_id,published_at\na,{odd}\n", f"user_id,item_id,event_time\nu,a,{odd}\n")
    assert (list(dataset.items()), list(dataset.events())) == ([], [])
    found = {bad.field: bad.reason for bad in dataset.bad}
    assert f"is {odd!r}" in found[field]


@pytest.mark.parametrize(("field", "odd"), [("position", "1_0"), ("position", "1.5"), ("value", "nan"), ("position", "٣")])
def test_numbers_of_events_are_read_as_strictly(tmp_path: Path, field: str, odd: str) -> None:
    dataset = folder_of(tmp_path, events=f"user_id,item_id,event_time,{field}\nu,a,{NOW},{odd}\nu,a,{NOW},3.0\n")
    assert [getattr(event, field) for event in dataset.events()] == [3]
    assert [(bad.row, bad.field) for bad in dataset.bad] == [(2, field)]
    assert f"is {shown(1.5 if odd == '1.5' else odd)}" in dataset.bad[0].reason


@pytest.mark.parametrize("odd", ["ja", "2", " true", "tru"])
def test_flags_are_read_as_strictly(tmp_path: Path, odd: str) -> None:
    dataset = folder_of(tmp_path, f"item_id,available\na,{odd}\nb,No\nc,on\nd,1\ne,\n")
    assert [item.available for item in dataset.items()] == [False, True, True, True]
    assert reasons(dataset) == [(2, f"available must be true or false, is {odd!r}")]


def test_nan_of_a_data_frame_is_null_and_its_other_odd_numbers_are_not(tmp_path: Path) -> None:
    prices = [float("nan"), 5.0, float("inf"), -1.0]
    items = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "price": prices, "note": [float("nan"), 1.5, None, 2.0]})
    items.write_parquet(tmp_path / "items.parquet")
    (tmp_path / "events.csv").write_text(EVENTS)
    dataset = Dataset.open(tmp_path)
    assert [(i.item_id, i.price, i.attributes) for i in dataset.items()] == [("a", None, {}), ("b", 5.0, {"note": "1.5"})]
    assert [line for line, _ in reasons(dataset)] == [3, 4]


def test_an_id_that_a_float_does_not_hold_exactly_is_refused(tmp_path: Path) -> None:
    lines = ['{"item_id": 123456789012345678901}', '{"item_id": 9007199254740993}', '{"item_id": 7.0}']
    dataset = folder_of(tmp_path, "\n".join(lines), '{"user_id": 1e20, "item_id": "a", "event_time": 1700000000000}', "jsonl")
    assert [item.item_id for item in dataset.items()] == ["9007199254740993", "7"]
    assert list(dataset.events()) == []
    assert [(bad.row, bad.field) for bad in dataset.bad] == [(1, "item_id"), (1, "user_id")]


@pytest.mark.parametrize("us", [678_901, 678_999, 678_000])
def test_an_instant_has_one_event_id_in_every_form(tmp_path: Path, us: int) -> None:
    text = f"2024-01-02T03:04:05.{us}"
    moment = pl.Series([text]).str.to_datetime(time_unit="us")
    finer = (moment.to_physical() * 1_000 + 999).cast(pl.Datetime("ns"))
    found = set()
    for n, times in enumerate((None, moment, finer)):
        root = tmp_path / str(n)
        root.mkdir()
        (root / "items.csv").write_text("item_id\na\n")
        if times is None:
            (root / "events.csv").write_text(f"user_id,item_id,event_time\nu,a,{text}\n")
        else:
            pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "event_time": times}).write_parquet(root / "events.parquet")
        found |= {(event.event_time, event.event_id) for event in Dataset.open(root).events()}
    assert [time for time, _ in found] == [1_704_164_645_678]


# unusable columns


def test_columns_without_plain_values_are_left_out_and_reported(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "item_id": ["a"],
        "struct": [{"x": 1}],
        "map": pl.Series([[{"key": "k", "value": "v"}]]),
        "binary": [b"x"],
        "lists": [[[1]]],
        "__index_level_0__": [0],
        "Unnamed: 0": [0],
        "flag": [True],
        "tags": [["p", None, "q"]],
        "year": [1999],
    }
    pl.DataFrame(columns).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "events.csv").write_text(EVENTS)
    dataset = Dataset.open(tmp_path)
    dataset.check()
    (item,) = dataset.items()
    assert item.attributes == {"flag": "true", "tags": "p, q", "year": "1999"}
    assert dataset.warnings == {"left_out": 6}
    (line,) = dataset.report.warning_lines()
    assert line.startswith(
        "items.parquet: 6 columns are left out: 'struct' (structs or a map), 'map' (structs or a map), 'binary'"
    )
    assert dataset.bad_count == 0


def test_a_column_without_a_name_is_left_out_of_csv_and_nested_values_of_json_lines(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, ",item_id,title,\n0,a,A,\n")
    dataset.check()
    assert [item.attributes for item in dataset.items()] == [{}]
    assert dataset.warnings == {"left_out": 1}
    for file in tmp_path.glob("*.csv"):
        file.unlink()
    row = {"item_id": "a", "size": {"w": 1}, "tags": [["x"]], "flag": False, "attributes": {"brand": "B", "deep": {"x": 1}}}
    lines = folder_of(tmp_path, json.dumps(row), "{}", kind="jsonl")
    assert [item.attributes for item in lines.items()] == [{"brand": "B", "flag": "false"}]
    assert sorted(warned.about for warned in lines.warned) == ["'deep'", "'size'", "'tags'"]
    assert "3 values are not text, numbers, flags or lists of these: " in lines.report.warning_lines()[0]


@pytest.mark.parametrize(
    "attributes",
    [{"brand": "B", "gone": None}, [{"key": "brand", "value": "B"}, {"key": "gone", "value": None}], '{"brand": "B"}'],
)
def test_attributes_as_riffle_writes_them_are_read(tmp_path: Path, attributes: Any) -> None:
    pl.DataFrame({"item_id": ["a"], "attributes": pl.Series([attributes])}).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "events.csv").write_text(EVENTS)
    assert [item.attributes for item in Dataset.open(tmp_path).items()] == [{"brand": "B"}]


def test_arrays_in_a_csv_cell_are_read_or_refused(tmp_path: Path) -> None:
    dataset = folder_of(
        tmp_path,
        'item_id,categories,tags\na,"[""x"", ""y, z""]","[""p"", ""q""]"\nb,x|y,[p\nc,"x, y",\nd,"[\'x\', \'y\']",\n',
    )
    assert [(i.item_id, i.categories, i.attributes) for i in dataset.items()] == [
        ("a", ("x", "y, z"), {"tags": "p, q"}),
        ("b", ("x", "y"), {"tags": "[p"}),
        ("c", ("x", "y"), {}),
    ]
    assert reasons(dataset) == [(5, """categories are not a JSON array: "['x', 'y']"; write a|b, or ["a", "b"]""")]


@pytest.mark.parametrize("value", [b"a", {"x": 1}, [["a"]], True, 1.5])
@pytest.mark.parametrize("field", ["user_id", "event_id"])
def test_no_id_of_a_parquet_file_is_in_pythons_spelling(tmp_path: Path, value: Any, field: str) -> None:
    pl.DataFrame({"item_id": ["a"]}).write_csv(tmp_path / "items.csv")
    for time in (NOW, str(NOW)):
        columns = {"user_id": ["u"], "item_id": ["a"], "event_time": [time], field: [value]}
        pl.DataFrame(columns).write_parquet(tmp_path / "events.parquet")
        dataset = Dataset.open(tmp_path)
        assert list(dataset.events()) == []
        assert [(bad.row, bad.field) for bad in dataset.bad] == [(1, field)]


def test_an_item_larger_than_a_record_is_refused_by_itself(tmp_path: Path) -> None:
    row = {"item_id": "a"} | {f"further{n}": "é" * 4_000 for n in range(99)} | {"title": "é" * 65_536, "text": "é" * 65_536}
    dataset = folder_of(tmp_path, json.dumps(row) + '\n{"item_id": "b"}\n', "{}", kind="jsonl")
    assert [item.item_id for item in dataset.items()] == ["b"]
    assert "at most 1,040,384 fit into a record" in dataset.bad[0].reason


# images, and columns of events with other names


def test_many_missing_images_are_one_line_with_their_count_and_first_names(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    rows = [f"i{n},gone{n}.png" for n in range(15)] + ["x,text.png", f"y,{'a' * 300}.png", "z,."]
    dataset = folder_of(tmp_path, "item_id,image\n" + "\n".join(rows) + "\n")
    assert all(item.image is None for item in dataset.items())
    assert dataset.warnings == {"image_missing": 16, "not_an_image": 2}
    missing, odd = dataset.report.warning_lines()
    assert missing == (
        "items.csv: 16 images are missing: 'gone0.png' (line 2), 'gone1.png' (line 3), 'gone2.png' (line 4), "
        "'gone3.png' (line 5), 'gone4.png' (line 6), …; the item is loaded without one"
    )
    assert odd.startswith("items.csv: 2 files are not readable images: 'text.png' (line 17), 'aaa")
    assert dataset.bad_count == 0


def test_a_price_in_events_is_said_to_belong_into_value(tmp_path: Path) -> None:
    dataset = folder_of(tmp_path, events=f"user_id,item_id,event_time,price\nu,a,{NOW},5\n")
    dataset.check()
    (line,) = dataset.report.warning_lines()
    assert line.startswith("events.csv: column 'price' is not read; a price paid belongs in `value`; items without a price")
