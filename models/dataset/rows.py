"""Rows of Parquet, CSV and JSON-lines files, one at a time, with a bad row never affecting the next."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from schemas.errors import BadDataset

__all__ = ["columns", "count", "rows", "time_ms", "typed"]

ROWS_PER_SLICE = 50_000
NUMBERS = frozenset(("value", "price"))
WHOLE = frozenset(("position",))
IDS = frozenset(("event_id", "user_id", "item_id", "action", "session_id", "request_id"))
TIMES = frozenset(("event_time", "published_at"))
FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Row = dict[str, Any] | str
"A row's fields, or the reason why there are none."


def rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(row number, row); the first row is number 1, a CSV header not counted.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    read = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}[path.suffix]
    try:
        yield from enumerate(read(path), 1)
    except (pl.exceptions.PolarsError, OSError, csv.Error) as exc:
        raise BadDataset("unreadable", f"{path}: {exc}") from exc


def count(path: Path) -> int:
    """Rows of a file; for text files its lines, which is what a progress bar needs.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    try:
        if path.suffix == ".parquet":
            return int(pl.scan_parquet(path).select(pl.len()).collect().item())
        with path.open("rb") as lines:
            return max(0, sum(1 for line in lines if line.strip()) - (path.suffix == ".csv"))
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise BadDataset("unreadable", f"{path}: {exc}") from exc


def columns(path: Path) -> list[str]:
    """Names of a file's columns; of JSON lines, those of its first 100 objects.

    Raises:
        BadDataset: the file cannot be read at all.
    """
    try:
        if path.suffix == ".parquet":
            return list(pl.scan_parquet(path).collect_schema())
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                return [name.strip() for name in next(csv.reader(lines), [])]
    except (pl.exceptions.PolarsError, OSError, csv.Error) as exc:
        raise BadDataset("unreadable", f"{path}: {exc}") from exc
    first = (row for _, row in islice(rows(path), 100) if isinstance(row, dict))
    return list(dict.fromkeys(name for row in first for name in row))


def _parquet(path: Path) -> Iterator[Row]:
    scan = pl.scan_parquet(path)
    for start in range(0, count(path), ROWS_PER_SLICE):
        yield from scan.slice(start, ROWS_PER_SLICE).collect().iter_rows(named=True)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines)
        header = next(reader, None)
        if header is None:
            return
        names = [name.strip() for name in header]
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                yield f"{len(cells)} fields, the header has {len(names)}"
            elif not _is_utf8(cells):
                yield "not UTF-8"
            else:
                yield dict(zip(names, cells, strict=True))


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError as exc:
                yield f"not JSON: {exc}"
            else:
                yield row if isinstance(row, dict) else "not a JSON object"


def time_ms(value: object) -> int | None:
    """Epoch milliseconds of a time in any form that a dataset may use; None when it is none of them."""
    if isinstance(value, str):
        text = value.strip()
        try:
            return int(text)
        except ValueError:
            pass
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(value, float):
        return int(value) if math.isfinite(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def typed(source: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something, in the types that `schemas.validation` asks for.

    Text files have only text, and data frames turn whole columns to floats for the sake of one null: numbers, flags and
    times in text, whole numbers as floats, NaN for null. What does not convert stays as it is and is refused there.
    """
    found: dict[str, Any] = {}
    for name, given in source.items():
        value = float(given) if isinstance(given, Decimal) else given
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            continue
        if name in TIMES:
            ms = time_ms(value)
            value = value if ms is None else ms
        elif name in IDS or name in WHOLE:
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            elif name in WHOLE and isinstance(value, str):
                value = _number(value)
                value = int(value) if isinstance(value, float) and value.is_integer() else value
        elif name in NUMBERS and isinstance(value, str):
            value = _number(value)
            if isinstance(value, float) and math.isnan(value):
                continue
        elif name == "available" and isinstance(value, str | int):
            value = FLAGS.get(str(value).strip().lower(), value)
        found[name] = value
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
