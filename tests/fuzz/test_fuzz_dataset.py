"""Fuzzers of dataset files: each row of a file is loaded or reported, or the whole file is refused."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

import polars as pl
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st

from models.dataset.csv_rows import Bad, CsvRows
from models.dataset.folder import Dataset
from models.dataset.row_parsing import rows
from schemas.errors import BadDataset
from schemas.parsing import epoch_ms
from schemas.records import Item
from schemas.validation import event_id_of

Read = Callable[[str], tuple[list[tuple[int, list[str] | Bad]], set[int]]]
"A reader: from text to (line, cells or the reason against them), and the lines of doubtful rows."

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
HEADER = ["item_id", "title", "price"]
CELLS = st.sampled_from(
    [
        "a",
        "b",
        "",
        "1",
        '"',
        '""',
        '"x"',
        '"x',
        'x"',
        '"x, y"',
        'five " pipe',
        '"weird al" yankovic',
        ' "x"',
        '"a""b"',
        '"\n"',
        "\r",
    ]
)
LINES = st.one_of(
    st.lists(CELLS, min_size=1, max_size=4).map(",".join),
    st.lists(CELLS, min_size=3, max_size=3).map(",".join),
    st.just("c,plain,3"),
    st.just(""),
    st.text('ab,"\n\r ;é', max_size=12),
)
TEXTS = st.builds(
    lambda lines, end, last: end.join([",".join(HEADER), *lines]) + end * last,
    st.lists(LINES, max_size=12),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)


def read(text: str) -> tuple[list[tuple[int, list[str] | Bad]], set[int]]:
    doubtful: set[int] = set()
    found = CsvRows(io.StringIO(text, newline=""), lambda line, _: doubtful.add(line))
    return list(found), doubtful


def read_by_csv(text: str) -> tuple[list[tuple[int, list[str] | Bad]], set[int]]:
    """Read with Python's `csv` in its usual configuration."""
    reader = csv.reader(io.StringIO(text, newline=""))
    found, before = list[tuple[int, list[str] | Bad]](), 0
    for cells in reader:
        line, before = before + 1, reader.line_num
        if cells and line > 1:
            found.append((line, cells if len(cells) == len(HEADER) else Bad("invalid_row", f"{len(cells)} fields")))
    return found, set()


def _alone(line: str) -> bool:
    """Whether a line is a row by itself: it has no quote, and as many fields as the header."""
    return '"' not in line and line.count(",") == len(HEADER) - 1


def _encodes(cells: list[str], text: str) -> bool:
    """Whether this text consists of exactly these cells, each plain or in quotes."""
    at = 0
    for n, cell in enumerate(cells):
        quoted = '"' + cell.replace('"', '""') + '"'
        for form in (quoted, cell):
            after = at + len(form)
            if text.startswith(form, at) and (after == len(text) if n == len(cells) - 1 else text.startswith(",", after)):
                at = after + 1
                break
        else:
            return False
    return True


def every_line_is_accounted_for(reader: Read, text: str) -> None:
    lines = [line for line in LINE.findall(text) if line]
    found, doubtful = reader(text)
    starts = [line for line, _ in found]
    filled = [n for n, line in enumerate(lines, 1) if line.strip("\r\n") and n > 1]
    assert starts == sorted(set(starts))
    assert starts[:1] == filled[:1]
    for (line, row), after in zip(found, [*starts, len(lines) + 1][1:], strict=True):
        assert line in filled
        mine = [n for n in range(line, after) if n in filled]
        if isinstance(row, Bad):
            others = [lines[n - 1].strip("\r\n") for n in mine[1:]]
            assert not others or not all(_alone(other) for other in others), "rows that are fine vanish in one that is not"
            assert not others or f"line {mine[-1]}" in row.reason
        else:
            assert len(row) == len(HEADER)
            assert _encodes(row, "".join(lines[line - 1 : mine[-1]]).rstrip("\r\n")), "what was read is not what is there"
            if (
                len(mine) > 1
                and lines[line - 1].count(",") == 2
                and all(_alone(lines[n - 1].strip("\r\n")) for n in mine[1:-1])
            ):
                last = lines[mine[-1] - 1].strip("\r\n")
                assert line in doubtful or last.count(",") != 2 or re.search('(?:^|,) *"', last)


@fuzz
@given(TEXTS)
def test_every_line_of_csv_is_accounted_for(text: str) -> None:
    every_line_is_accounted_for(read, text)


def test_the_fuzzer_finds_what_pythons_own_reader_loses() -> None:
    every_line_is_accounted_for(read, must_find(every_line_is_accounted_for, read_by_csv, TEXTS))
    lost = st.lists(st.sampled_from(["b,plain,1", 'a,"open,2']), min_size=2).map(
        lambda rows: "\n".join([",".join(HEADER), *rows])
    )
    assert must_find(every_line_is_accounted_for, read_by_csv, lost).count("\n") == 2


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12) | st.text('ab,"\n\r ', max_size=8)


def what_was_written_is_read(reader: Read, case: tuple[list[list[str]], Literal[0, 1, 2, 3], str]) -> None:
    written, quoting, end = case
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=quoting, lineterminator=end)
    writer.writerows([HEADER, *written])
    assert [row for _, row in reader(out.getvalue())[0]] == written


ROUNDS = st.tuples(
    st.lists(st.lists(WORDS, min_size=3, max_size=3), max_size=8),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n", "\r"]),
) | st.tuples(
    # `csv` quotes only those line ends that it writes itself
    st.lists(st.lists(WORDS, min_size=3, max_size=3), max_size=8),
    st.just(csv.QUOTE_MINIMAL),
    st.just("\r\n"),
)


@fuzz
@given(ROUNDS)
def test_what_a_csv_writer_wrote_is_read(case: tuple[list[list[str]], Literal[0, 1, 2, 3], str]) -> None:
    what_was_written_is_read(read, case)


def test_the_fuzzer_finds_a_reader_that_splits_at_every_comma() -> None:
    def naive(text: str) -> tuple[list[tuple[int, list[str] | Bad]], set[int]]:
        return [(n, line.split(",")) for n, line in enumerate(text.splitlines(), 1) if n > 1], set()

    must_find(what_was_written_is_read, naive, ROUNDS)


# complete folders

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ODD = PLAIN | st.sampled_from(
    ["NaN", "1_000", "٣", " 1", "-1", "1e3", "978_300_760_000", "2024-01-02", "9999-12-31T23:59:59.9999"]
)
NESTED = st.lists(ODD, max_size=3) | st.dictionaries(st.text(max_size=3), ODD, max_size=2)
IDS = st.sampled_from(["a", "b", "c"]) | st.integers(0, 3)
TIMES = st.integers(10**12, 10**12 + 9) | st.just(1e12) | st.just("2001-09-09T01:46:40Z") | ODD
ITEMS = st.fixed_dictionaries(
    {"item_id": st.text("abcdefgh", max_size=3) | ODD},
    optional={
        "title": ODD,
        "categories": ODD | NESTED | st.sampled_from(["a|b", '["a", "b"]', "['a']"]),
        "image": ODD | st.sampled_from(["x.png", "../x", "a" * 300, "\0", "https://h/x.png"]),
        "price": ODD,
        "available": ODD,
        "published_at": TIMES,
        "attributes": ODD | NESTED,
        "further": ODD | NESTED,
        "__index_level_0__": st.integers(0, 9),
    },
)
EVENTS = st.fixed_dictionaries(
    {"user_id": IDS | ODD, "item_id": IDS, "event_time": TIMES},
    optional={
        "event_id": IDS | ODD | NESTED,
        "action": st.sampled_from(["view", "like"]) | ODD,
        "value": ODD | NESTED,
        "position": ODD,
        "price": ODD,
    },
)
MUTATIONS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "delete", "cut"]), st.binary(min_size=1, max_size=4)),
    max_size=3,
)
FOLDERS = st.tuples(
    st.lists(ITEMS, min_size=1, max_size=6),
    st.lists(EVENTS, min_size=1, max_size=8),
    st.sampled_from(["csv", "jsonl", "parquet"]),
    st.one_of(st.just([]), MUTATIONS),
    st.sampled_from(["items", "events"]),
)
FRAMES = {
    "text": pl.String,
    "whole": pl.Int64,
    "float": pl.Float64,
    "bool": pl.Boolean,
    "date": pl.Date,
    "ms": pl.Datetime("ms"),
    "us": pl.Datetime("us", "UTC"),
    "ns": pl.Datetime("ns"),
    "binary": pl.Binary,
    "struct": pl.Struct({"x": pl.Int64}),
    "map": pl.List(pl.Struct({"key": pl.String, "value": pl.String})),
    "list": pl.List(pl.String),
    "lists": pl.List(pl.List(pl.Int64)),
    "array": pl.Array(pl.Int64, 2),
    "decimal": pl.Decimal(20, 2),
    "duration": pl.Duration("us"),
    "time": pl.Time,
    "enum": pl.Enum(["a", "b"]),
}
"Column types of Parquet files. A column gets the type that fits most of its values."


def written(name: str, kind: str, found: list[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(key for row in found for key in row))
    if kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in found]
        return "".join(line + "\n" for line in lines).encode(errors="surrogatepass")
    if kind == "csv":
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(names)
        writer.writerows([["" if row.get(key) is None else row[key] for key in names] for row in found])
        return out.getvalue().encode(errors="surrogatepass")
    body = io.BytesIO()
    pl.DataFrame([_series_of(key, [row.get(key) for row in found]) for key in names]).write_parquet(body)
    return body.getvalue()


def _series_of(name: str, values: list[Any]) -> pl.Series:
    """Build a column of the first of these types that fits all values, as text if none does."""
    known = [value for value in values if value is not None]
    for types, kind in (((bool,), pl.Boolean), ((int,), pl.Int64), ((int, float), pl.Float64), ((list,), pl.List(pl.String))):
        if known and all(type(value) in types and (type(value) is not int or abs(value) < 2**62) for value in known):
            return pl.Series(name, values, kind, strict=False)
    return pl.Series(name, [None if value is None else str(value) for value in values], pl.String)


def mutated(body: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    for where, how, what in mutations:
        at = int(where * len(body))
        if how == "cut":
            body = body[:at]
        else:
            body = body[:at] + (b"" if how == "delete" else what) + body[at + (0 if how == "insert" else len(what)) :]
    return body


def rows_of(path: Path) -> int:
    """Count the rows of a file, independently of its reader where possible."""
    if path.suffix == ".parquet":
        return int(pl.read_parquet(path, columns=[0]).height)
    body = path.read_bytes()
    if path.suffix == ".csv" and b'"' in body:
        return sum(1 for _ in rows(path))
    lines = [line.removeprefix(b"\xef\xbb\xbf") for line in re.split(rb"\r\n|\r|\n", body)]
    filled = [line for line in lines if (line.strip() if path.suffix == ".jsonl" else line)]
    return len(filled) if path.suffix == ".jsonl" else max(0, len(filled) - 1)


def every_row_is_loaded_or_reported(opened: Callable[[Path], Dataset], root: Path) -> None:
    dataset = opened(root)
    try:
        dataset.check()
    except BadDataset as exc:
        assert exc.message
    try:
        loaded = len(list(dataset.items()))
        assert loaded + dataset.bad_count == rows_of(next(root.glob("items.*")))
    except BadDataset as exc:
        assert exc.message
    before = dataset.bad_count
    try:
        loaded = len(list(dataset.events(2**45)))
        reported = dataset.bad_count - before + dataset.warnings["repeated_event"]
        assert loaded + reported == rows_of(next(root.glob("events.*")))
    except BadDataset as exc:
        assert exc.message
    assert all(bad.reason and "Traceback" not in bad.reason for bad in dataset.bad)
    assert len(dataset.report.warning_lines()) <= len(dataset.warned)


def in_folder(case: Any) -> Iterator[Path]:
    items, events, kind, mutations, which = case
    bodies = {"items": written("items", kind, items), "events": written("events", kind, events)}
    bodies[which] = mutated(bodies[which], mutations)
    with tempfile.TemporaryDirectory() as root:
        for name, body in bodies.items():
            (Path(root) / f"{name}.{kind}").write_bytes(body)
        yield Path(root)


def folders_are_accounted_for(opened: Callable[[Path], Dataset], case: Any) -> None:
    for root in in_folder(case):
        every_row_is_loaded_or_reported(opened, root)


@fuzz
@given(FOLDERS)
def test_every_row_of_a_folder_is_loaded_or_reported(case: Any) -> None:
    folders_are_accounted_for(Dataset.open, case)


def test_the_fuzzer_finds_a_dataset_that_leaves_rows_out() -> None:
    class Forgetful(Dataset):
        def items(self) -> Iterator[Item]:
            return (item for item in super().items() if item.price != 1.0)

    few: st.SearchStrategy[Any] = st.tuples(
        st.lists(st.fixed_dictionaries({"item_id": IDS, "price": st.integers(0, 2)}), min_size=1, max_size=3),
        st.just([{"user_id": "u", "item_id": "a", "event_time": 10**12}]),
        st.just("csv"),
        st.just([]),
        st.just("items"),
    )
    folders_are_accounted_for(Dataset.open, found := must_find(folders_are_accounted_for, Forgetful.open, few))
    assert [item["price"] for item in found[0]] == [1]


TYPED = st.sampled_from(list(FRAMES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.none() | _values(kind), min_size=1, max_size=5))
)


def _values(kind: str) -> st.SearchStrategy[Any]:
    years = st.integers(-(2**62), 2**62) | st.integers(-1_500, 2**41)
    return {
        "text": ODD.map(str),
        "whole": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(),
        "bool": st.booleans(),
        "date": st.integers(-(2**31), 2**31 - 1),
        "ms": years,
        "us": years,
        "ns": years,
        "binary": st.binary(max_size=4),
        "struct": st.fixed_dictionaries({"x": st.integers(0, 9)}),
        "map": st.lists(st.fixed_dictionaries({"key": st.text(max_size=2), "value": st.text(max_size=2)}), max_size=2),
        "list": st.lists(st.none() | st.text(max_size=3), max_size=3),
        "lists": st.lists(st.lists(st.integers(0, 9), max_size=2), max_size=2),
        "array": st.lists(st.integers(0, 9), min_size=2, max_size=2),
        "decimal": st.decimals(-(10**9), 10**9, places=2),
        "duration": st.timedeltas(timedelta(-999), timedelta(999)),
        "time": st.times(),
        "enum": st.sampled_from(["a", "b"]),
    }[kind]


def _series(name: str, kind: str, values: list[Any]) -> pl.Series:
    if kind in {"date", "ms", "us", "ns"}:
        physical = pl.Series(name, values, pl.Int32 if kind == "date" else pl.Int64)
        return physical.cast(FRAMES[kind])  # type: ignore[arg-type]
    return pl.Series(name, values, FRAMES[kind], strict=False)  # type: ignore[arg-type]


@fuzz
@given(
    st.sampled_from(["item_id", "title", "categories", "image", "price", "available", "published_at", "attributes", "further"]),
    st.sampled_from(["user_id", "event_id", "event_time", "action", "value", "position", "further"]),
    TYPED,
)
def test_columns_of_every_type_are_read_or_reported(of_items: str, of_events: str, typed: tuple[str, list[Any]]) -> None:
    kind, values = typed
    n = len(values)
    items: dict[str, Any] = {"item_id": [f"i{k}" for k in range(n)]} | {of_items: _series(of_items, kind, values)}
    events: dict[str, Any] = {"user_id": ["u"] * n, "item_id": ["i0"] * n, "event_time": range(10**12, 10**12 + n)}
    with tempfile.TemporaryDirectory() as root:
        pl.DataFrame(items).write_parquet(Path(root) / "items.parquet")
        pl.DataFrame(events | {of_events: _series(of_events, kind, values)}).write_parquet(Path(root) / "events.parquet")
        every_row_is_loaded_or_reported(Dataset.open, Path(root))
        spelled = [text for item in Dataset.open(Path(root)).items() for text in (*item.attributes.values(), *item.categories)]
        assert not any(text.startswith(("b'", "{'", "[{'", "datetime.")) for text in spelled) or kind in {"text", "list", "map"}


INSTANTS = st.integers(0, 2**41 * 1000)
"Times in microseconds."


FORMS: dict[str, Callable[[list[int]], Any]] = {
    "csv": lambda us: [_moment(n).isoformat() for n in us],
    "jsonl": lambda us: [_moment(n).replace(tzinfo=None).isoformat(" ") for n in us],
    "parquet": lambda us: [_moment(n).astimezone(timezone(timedelta(hours=5))).isoformat() for n in us],
    "parquet us": lambda us: pl.Series(us).cast(pl.Datetime("us", "UTC")),
    "parquet ns": lambda us: pl.Series([n * 1000 + 999 for n in us]).cast(pl.Datetime("ns")),
}


def _moment(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


@fuzz
@given(st.lists(INSTANTS, min_size=1, max_size=9), st.sampled_from(list(FORMS)))
def test_an_instant_is_the_same_milliseconds_in_every_file(instants: list[int], form: str) -> None:
    ids, times, expected = [f"i{n}" for n in range(len(instants))], FORMS[form](instants), [us // 1000 for us in instants]
    events = pl.DataFrame({"user_id": ["u"] * len(ids), "item_id": ids, "event_time": times})
    items = pl.DataFrame({"item_id": ids, "published_at": times})
    with tempfile.TemporaryDirectory() as root:
        for name, frame in (("events", events), ("items", items)):
            kind = form.split(maxsplit=1)[0]
            writers: dict[str, Callable[[Path], object]] = {
                "csv": frame.write_csv,
                "jsonl": frame.write_ndjson,
                "parquet": frame.write_parquet,
            }
            writers[kind](Path(root) / f"{name}.{kind}")
        dataset = Dataset.open(Path(root))
        found = {event.item_id: event for event in dataset.events()}
        assert [item.published_at for item in dataset.items()] == expected
    assert [found[name].event_time for name in ids] == expected == [epoch_ms(_moment(us)) for us in instants]
    made = [event_id_of("u", name, "view", ms) for name, ms in zip(ids, expected, strict=True)]
    assert [found[name].event_id for name in ids] == made


def test_floats_that_are_no_times(tmp_path: Path) -> None:
    times = [1e12, 1e12 + 0.5, math.nan, math.inf, -1.0, 2.0**60]
    pl.DataFrame({"item_id": ["a"]}).write_csv(tmp_path / "items.csv")
    pl.DataFrame({"user_id": ["u"] * 6, "item_id": ["a"] * 6, "event_time": times}).write_parquet(tmp_path / "events.parquet")
    dataset = Dataset.open(tmp_path)
    assert [event.event_time for event in dataset.events()] == [10**12]
    assert [bad.row for bad in dataset.bad] == [2, 3, 4, 5, 6]
