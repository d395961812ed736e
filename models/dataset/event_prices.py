"""Prices of items from those in events, for a catalogue without: of hotels or flights, whose price depends on the date."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from models.dataset.fields import typed
from models.dataset.row_parsing import columns, rows
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
            _collect(events, found)
    return {item: float(np.median(prices)) for item, prices in found.items()}


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
