"""Readers of Parquet, CSV and JSON-lines files, row by row. A bad row never affects the next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from models.dataset.csv_rows import OPEN_QUOTE, Bad, CsvRows, Doubt, header
from models.dataset.fields import TIMES
from models.dataset.text import escaped, is_utf8, opened
from schemas.errors import BadDataset
from schemas.parsing import json_fault
from schemas.validation import INTERACTION_FIELDS, ITEM_FIELDS

__all__ = ["OPEN_QUOTE", "Bad", "Row", "columns", "count", "header", "in_ms", "left_out", "readable", "rows", "schema"]

ROWS_PER_SLICE = 50_000
INDEX = re.compile(r"|Unnamed: [0-9]+|__index_level_[0-9]+__")
"Names of the index column that data frames write."
PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}
CALENDAR_MS = -62_135_596_800_000, 253_402_300_799_999
"Range of Python's dates, the years 1 to 9999, in epoch ms."
FIELDS = ITEM_FIELDS | INTERACTION_FIELDS

Row = dict[str, Any] | Bad
"A row's fields, or the error if it cannot be read."


def rows(path: Path, doubt: Doubt | None = None) -> Iterator[tuple[int, Row]]:
    """Yield (position, row). The position is the line where the row begins; in Parquet, the row's number from 1.

    Columns of `left_out` are dropped. Parquet's dates and datetimes become epoch milliseconds. `doubt`: see `CsvRows`.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    with readable(path):
        if path.suffix == ".parquet":
            yield from enumerate(_parquet(path), 1)
        elif path.suffix == ".csv":
            yield from _csv(path, doubt)
        else:
            yield from _jsonl(path)


def count(path: Path) -> int:
    """Count the rows of a file; in text files the lines, which is accurate enough for a progress bar.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    with readable(path):
        if path.suffix == ".parquet":
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        with opened(path) as lines:
            return max(0, sum(1 for line in lines if line not in {"\n", "\r\n", "\r"}) - (path.suffix == ".csv"))


def columns(path: Path) -> list[str]:
    """Return the names of a file's columns; for JSON lines those of the first 100 objects.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    if path.suffix == ".parquet":
        return list(schema(path))
    if path.suffix == ".csv":
        with readable(path), opened(path) as lines:
            return CsvRows(lines).names
    first = (row for _, row in islice(rows(path), 100) if isinstance(row, dict))
    return list(dict.fromkeys(name for row in first for name in row))


def schema(path: Path) -> dict[str, pl.DataType]:
    """Return the types of a Parquet file's columns.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    with readable(path):
        return dict(pl.scan_parquet(path).collect_schema())


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Convert errors of Polars and of the file system to one exception.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    try:
        yield
    # Polars panics on some damaged files
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as exc:
        raise BadDataset("unreadable", f"{path}: {exc}") from exc


def in_ms(name: str, kind: pl.DataType) -> pl.Expr:
    """Convert a column of dates or datetimes of any unit to epoch milliseconds, rounded down; leave others unchanged."""
    column = pl.col(name)
    if isinstance(kind, pl.Date):
        return column.to_physical().cast(pl.Int64) * 86_400_000
    if isinstance(kind, pl.Datetime):
        return column.to_physical() // PER_MS[kind.time_unit]
    return column


def left_out(path: Path) -> dict[str, str]:
    """Return the columns that `rows` drops, each with a description; for JSON lines those of the first 100 objects.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    if path.suffix == ".parquet":
        return {name: what for name, kind in schema(path).items() if (what := _unfit(name, kind))}
    return {name: what for name in columns(path) if (what := _unfit(name))}


@lru_cache(4_096)
def _unfit(name: str, kind: pl.DataType | None = None) -> str:
    if INDEX.fullmatch(name):
        return "row numbers of a data frame" if name else "without a name"
    return "" if kind is None or name in FIELDS else _nested(kind)


def _nested(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List | pl.Array):
        inner = kind.inner if isinstance(kind.inner, pl.DataType) else kind.inner()
        return "lists of lists" if inner.is_nested() and not isinstance(inner, pl.Struct) else _nested(inner)
    if isinstance(kind, pl.Struct):
        return "structs or a map"
    if isinstance(kind, pl.Binary):
        return "binary"
    return "durations" if isinstance(kind, pl.Duration) else "objects" if isinstance(kind, pl.Object) else ""


def _parquet(path: Path) -> Iterator[Row]:
    kinds = schema(path)
    chosen = [_in_python(name, kind) for name, kind in kinds.items() if not _unfit(name, kind)]
    scan = pl.scan_parquet(path).select(chosen)
    for start in range(0, count(path), ROWS_PER_SLICE):
        yield from scan.slice(start, ROWS_PER_SLICE).collect().iter_rows(named=True)


def _in_python(name: str, kind: pl.DataType) -> pl.Expr:
    """Convert event times to milliseconds, and other dates to text, because Python's dates cover only the years 1 to 9999."""
    ms, column = in_ms(name, kind), pl.col(name)
    if name in TIMES or not isinstance(kind, pl.Date | pl.Datetime):
        return ms
    form = "%F" if isinstance(kind, pl.Date) else "%F %T%.f" + "%:z" * (kind.time_zone is not None)
    inside = pl.when(ms.is_between(*CALENDAR_MS)).then(column)
    return pl.coalesce(inside.dt.strftime(form), ms.cast(pl.String)).alias(name)


def _csv(path: Path, doubt: Doubt | None) -> Iterator[tuple[int, Row]]:
    with opened(path) as lines:
        found = CsvRows(lines, doubt)
        unfit = {name for name in found.names if _unfit(name)}
        for line, cells in found:
            if isinstance(cells, Bad):
                yield line, cells
            else:
                row = dict(zip(found.names, cells, strict=True))
                for name in unfit:
                    del row[name]
                yield line, row


def _jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with opened(path) as lines:
        first = True
        for number, line in enumerate(lines, 1):
            text = line.strip(" \t\r\n")
            if not text:
                continue
            row = _object(text)
            if first and isinstance(row, Bad) and text.startswith("["):
                raise BadDataset("not_lines", f"{path.name} begins with a JSON array: write one object on each line")
            first = False
            yield number, {name: row[name] for name in row if not _unfit(name)} if isinstance(row, dict) else row


def _object(text: str) -> Row:
    if not is_utf8(text):
        return Bad("invalid_row", f"not UTF-8: {escaped(text)}; is the file in Latin-1? save it as UTF-8")
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        return Bad("invalid_row", f"{json_fault(exc, f'character {exc.pos + 1}')[1]}: {escaped(text)}")
    return row if isinstance(row, dict) else Bad("invalid_row", f"not a JSON object: {escaped(text)}")
