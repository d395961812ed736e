"""Prices of items from those in events, for a catalogue without: of hotels or flights, whose price depends on the date."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl

from models.dataset.fields import typed
from models.dataset.row_parsing import columns, readable, rows, schema
from schemas.errors import BadDataset, BadInput

__all__ = ["median_prices"]

COLUMN = "price"
KEPT = 1_000
"Maximum number of an item's prices, the first in the file, of which the median is taken."


def median_prices(events: Path) -> dict[str, float]:
    """Median of the prices in the events on each item, by `item_id`; without such a column none. Other values are ignored.

    A file that cannot be read has none: reading its events reports why.
    """
    found: dict[str, list[float]] = {}
    with suppress(BadDataset):
        if COLUMN in columns(events):
            if events.suffix == ".parquet" and _plain(events):
                return _in_columns(events)
            _collect(events, found)
    return {item: float(np.median(prices)) for item, prices in found.items()}


def _plain(events: Path) -> bool:
    """Whether ids are text and prices are numbers, so that no value must be parsed."""
    kinds = schema(events)
    price = kinds[COLUMN]
    return kinds.get("item_id") == pl.String and (price.is_integer() or price.is_float())


def _in_columns(events: Path) -> dict[str, float]:
    """Result of `_collect` for a Parquet file of plain columns, without an object per row."""
    price = pl.col(COLUMN).cast(pl.Float64)
    with readable(events):
        rows = pl.scan_parquet(events).select("item_id", price).filter(pl.col("item_id") != "", price.is_finite(), price >= 0)
        medians = rows.group_by("item_id").agg(price.head(KEPT).median()).collect()
    return dict(medians.iter_rows())


def _collect(events: Path, found: dict[str, list[float]]) -> None:
    for _, row in rows(events):
        if not isinstance(row, dict):
            continue
        try:
            given = typed({name: row.get(name) for name in ("item_id", COLUMN)})
        except BadInput:
            continue
        item, price = given.get("item_id"), given.get(COLUMN)
        if isinstance(price, bool) or not isinstance(price, int | float) or not np.isfinite(price) or price < 0:
            continue
        held = found.setdefault(str(item), [])
        if len(held) < KEPT:
            held.append(float(price))
