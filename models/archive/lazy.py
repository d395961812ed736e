"""Lazy frames whose parts are created one by one while a query reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

__all__ = ["lazily"]


def lazily(parts: Callable[[], Iterator[pl.LazyFrame]], kinds: Mapping[str, Any]) -> pl.LazyFrame:
    """Concatenate the frames of `parts()`, which all have columns of these names and types. Each query calls `parts` again.

    Only the rows and columns that the query needs are collected, and each part is released before the next is created.
    """

    def read(columns: list[str] | None, predicate: pl.Expr | None, most: int | None, _: int | None) -> Iterator[pl.DataFrame]:
        for part in parts():
            found = part if predicate is None else part.filter(predicate)
            found = found if most is None else found.head(most)
            rows = (found if columns is None else found.select(columns)).collect(engine="streaming")
            yield rows
            if most is not None and (most := most - rows.height) <= 0:
                return

    return register_io_source(read, schema=dict(kinds))
