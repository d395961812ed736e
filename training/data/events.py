"""Events as columns that behave like a list of records, so that an archive of millions needs no object per event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from operator import attrgetter
from typing import overload

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.records import Interaction

__all__ = ["NAMES", "EventFrame"]

NAMES = [field.name for field in fields(Interaction)]
"Columns of `EventFrame.frame` that are fields of an event."
FIELDS = attrgetter(*NAMES)
REPEATED = ["user_id", "item_id", "action"]
"Columns with many repeated texts; each text is stored once."
ORDER = ["event_time", "_partition", "_offset"]
BATCH = 10_000
TYPES = {
    **dict.fromkeys(NAMES, pl.String),
    "event_time": pl.Int64,
    "value": pl.Float64,
    "position": pl.Int64,
    "_partition": pl.Int32,
    "_offset": pl.Int64,
}


class EventFrame(Sequence[Interaction]):
    """n events by event time, then partition and offset. Slices share the columns; an element is created on access."""

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame`: columns NAMES and ORDER, sorted by ORDER."""
        self.frame = frame

    @classmethod
    def collect(cls, parts: Iterable[pl.LazyFrame], newest: int = 0) -> EventFrame:
        """Read `parts` one after the other with the streaming engine. Rows of a part may be in any order.

        Of events with the same `user_id` and `event_id` the earliest is kept; a user may be in two parts. With `newest`, only
        that many of the newest events are kept. Memory is then bounded by them and by the needs of one part. A duplicate whose
        earlier copy in another part was already dropped as too old is then kept.
        """
        held: list[pl.DataFrame] = []
        for part in parts:
            read = part.select(pl.col(name).cast(kind) for name, kind in TYPES.items())
            if newest:
                held = [_once(pl.concat([*held, read.top_k(newest, by=ORDER).collect(engine="streaming")])).tail(newest)]
            else:
                held.append(_coded(read).collect(engine="streaming"))
        return cls(_coded(_once(pl.concat(held or [pl.DataFrame(schema=TYPES)])).lazy()).collect())

    @classmethod
    def of(cls, events: Iterable[Interaction], newest: int = 0) -> EventFrame:
        """Columns of `events`, which are in event-time order. Reads them once, in batches. `newest` as in `collect`."""
        held = _Held(newest)
        for part in _parts(events):
            held.add(part)
        return cls(held.frame())

    @classmethod
    def apart(cls, events: Iterable[Interaction], action: str, newest: int = 0) -> tuple[EventFrame, EventFrame]:
        """Separate events with `action` from the others: (others, those). `newest` limits each; 0 equals `of`, then `split`."""
        others, its = _Held(newest), _Held(newest)
        for part in _parts(events):
            is_it = part["action"] == action
            others.add(part.filter(~is_it))
            its.add(part.filter(is_it))
        return cls(others.frame()), cls(its.frame())

    def __len__(self) -> int:
        return self.frame.height

    @overload
    def __getitem__(self, index: int) -> Interaction: ...

    @overload
    def __getitem__(self, index: slice) -> EventFrame: ...

    def __getitem__(self, index: int | slice) -> Interaction | EventFrame:
        if isinstance(index, slice):
            return EventFrame(self.frame[index])
        return Interaction(*self.frame.row(index)[: len(NAMES)])

    def __iter__(self) -> Iterator[Interaction]:
        for start in range(0, len(self), BATCH):
            for row in self.frame[start : start + BATCH].select(NAMES).iter_rows():
                yield Interaction(*row)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def of_items(self, item_ids: Sequence[str]) -> EventFrame:
        """Select events on the items in `item_ids`."""
        return EventFrame(self.frame.filter(pl.col("item_id").cast(pl.String).is_in(list(item_ids))))

    def split(self, action: str) -> tuple[EventFrame, EventFrame]:
        """Separate events with `action` from the others: (others, those)."""
        is_it = pl.col("action").cast(pl.String) == action
        return EventFrame(self.frame.filter(~is_it)), EventFrame(self.frame.filter(is_it))

    def codes(self, name: str, known: Sequence[str] | None = None) -> NDArray[np.int64]:
        """A text column as numbers: the index in `known`, -1 if absent. Without `known`: the order of first appearance."""
        texts = self.frame[name].cast(pl.String)
        names = texts.unique(maintain_order=True) if known is None else pl.Series(list(known), dtype=pl.String)
        place = pl.DataFrame({name: names}).with_row_index("_place")
        joined = texts.to_frame().join(place, on=name, how="left", maintain_order="left")
        return joined["_place"].cast(pl.Int64).fill_null(-1).to_numpy()

    def places(self, time_ms: NDArray[np.int64], partition: NDArray[np.int64], offset: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of events up to each point: earlier, or at that time and up to that partition and offset."""
        points = pl.DataFrame({"event_time": time_ms, "_partition": partition, "_offset": offset}).with_row_index("_n")
        points = points.with_columns(pl.lit(1, pl.Int8).alias("_point"), pl.col("_partition").cast(pl.Int32))
        mine = self.frame.select(ORDER).with_columns(pl.lit(0, pl.UInt32).alias("_n"), pl.lit(0, pl.Int8).alias("_point"))
        both = pl.concat([mine, points.select(mine.columns)]).sort([*ORDER, "_point"])
        before = both.with_columns((1 - pl.col("_point")).cast(pl.Int64).cum_sum().alias("_before")).filter(
            pl.col("_point") == 1
        )
        return before.sort("_n")["_before"].to_numpy()


class _Held:
    """Collects events that arrive in parts, in event-time order: all of them, or the newest."""

    def __init__(self, newest: int) -> None:
        self._newest = newest
        self._parts: deque[pl.DataFrame] = deque()
        self._height = 0

    def add(self, part: pl.DataFrame) -> None:
        # texts of events that may be dropped again must not stay in memory
        self._parts.append(part if self._newest else _coded(part.lazy()).collect())
        self._height += part.height
        while self._newest and self._height - self._parts[0].height >= self._newest:
            self._height -= self._parts.popleft().height

    def frame(self) -> pl.DataFrame:
        held = pl.concat(self._parts) if self._parts else pl.DataFrame(schema=TYPES)
        return _coded((held.tail(self._newest) if self._newest else held).lazy()).collect().rechunk()


def _parts(events: Iterable[Interaction]) -> Iterator[pl.DataFrame]:
    rest, done = iter(events), 0
    while rows := [(*FIELDS(event), 0, n) for n, event in enumerate(islice(rest, BATCH), done)]:
        done += len(rows)
        yield pl.DataFrame(rows, schema=TYPES, orient="row")


def _once(events: pl.DataFrame) -> pl.DataFrame:
    return events.sort(ORDER).unique(["user_id", "event_id"], keep="first", maintain_order=True)


def _coded(events: pl.LazyFrame) -> pl.LazyFrame:
    return events.with_columns(pl.col(REPEATED).cast(pl.Categorical))
