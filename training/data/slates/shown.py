"""Slates from impression events. Each event (action `models.rules.SHOWN`) records one shown item, with its `request_id`.

Items shown to a user under one `request_id` form a slate, as do items shown at one moment without one. An event with a slate's
`request_id` follows it and implies that its item was shown. An event without one follows the newest slate that showed the item
to the user before it. Features were not logged: replay computes them for the time of the slate.

Of a slate whose windows are still open at the last event, a like is known, but not that none will follow. So it is left out
without a like. With one it teaches which of its items was chosen, but not how often an item is: its items have weight 0.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import count

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.rules import PositiveRule
from training.data.events import ORDER, EventFrame
from training.data.slates.examination import FIXED, Examination
from training.data.slates.logged import LoggedSlate
from training.data.table import ATTRIBUTION_MS, Heads, with_liked

__all__ = ["all_slates", "final_slates", "liked_slates", "shown_slates"]

SLATE = ["user_id", "_slate"]
FEWEST_ITEMS = 2
"Minimum number of items, because a slate of one item has no order to learn."
LOOKED_AT = 8
"Number of newest slates examined per slate taken, because few slates without a like are needed."
LIKED = 0.75
"Fraction of the slates with a liked item, where there are enough: these teach the order, the others the level."
LIKES: Heads = (("positive", 1.0),)
TEXTS = ["user_id", "item_id", "action", "request_id"]
KEPT = [*TEXTS, "value", "position", *ORDER]


def shown_slates(  # noqa: PLR0913 - the slates and how they are labelled
    shown: EventFrame,
    events: EventFrame,
    heads: Heads,
    rule: PositiveRule,
    windows_ms: Mapping[str, int],
    after_ms: int,
    most: int,
    but: Collection[tuple[str, str]] = (),
    examination: Examination = FIXED,
) -> list[LoggedSlate]:
    """At most `most` of the newest slates that began after `after_ms`, in the order of their start, without features.

    `rule` decides which events are liked. `windows_ms`: time after a slate in which an event counts, by head, a day by default.
    Slates in `but`, by user and request, are excluded, although events are still attributed to them. `examination`: how likely
    each position is looked at. Memory holds the texts of users with an eligible slate, after `after_ms`.
    """
    rows = _rows(shown, events, heads, rule, windows_ms, after_ms, but, LOOKED_AT * most)
    return [] if rows is None else _slates_of(rows, _picked(rows, most), heads, examination)


def liked_slates(
    shown: EventFrame, events: EventFrame, rule: PositiveRule, windows_ms: Mapping[str, int], first: int, most: int
) -> list[LoggedSlate]:
    """Slates with a liked item that began after event `first`, in the order of their start, with the one head `positive`.

    If there are more than `most`, these are evenly spread.
    """
    rows = _rows(shown, events, LIKES, rule, windows_ms, int(events.frame["event_time"][first]))
    if rows is None:
        return []
    taken = _starts(rows).filter(pl.col("head0") & (pl.col("_place") >= first))
    if taken.height > most:
        taken = taken[np.linspace(0, taken.height - 1, most).astype(np.int64)]
    return _slates_of(rows, taken, LIKES, FIXED)


def final_slates(
    shown: EventFrame,
    events: EventFrame,
    heads: Heads,
    rule: PositiveRule,
    windows_ms: Mapping[str, int],
    first: int,
    most: int,
) -> list[LoggedSlate]:
    """Slates that began after event `first` and whose windows are over, liked or not, in the order of their start.

    If there are more than `most`, these are evenly spread.
    """
    rows = _rows(shown, events, heads, rule, windows_ms, int(events.frame["event_time"][first]))
    if rows is None:
        return []
    taken = _starts(rows).filter(pl.col("_closed") & (pl.col("_place") >= first))
    if taken.height > most:
        taken = taken[np.linspace(0, taken.height - 1, most).astype(np.int64)]
    return _slates_of(rows, taken, heads, FIXED)


def all_slates(
    shown: EventFrame,
    events: EventFrame,
    rule: PositiveRule,
    windows_ms: Mapping[str, int],
    newest: int,
    but: Collection[tuple[str, str]] = (),
) -> pl.DataFrame:
    """Items of the `newest` slates without those in `but`, by user and request: a row for each, in the order of their start.

    Columns: `user_id`; `slate`, numbered from 0; `item_id`; `position`, null where the slate has none; `liked`, whether the
    user liked the item within the window; `closed`, whether that window was over at the last event.
    """
    rows = _rows(shown, events, LIKES, rule, windows_ms, -1, but, newest)
    if rows is None:
        return pl.DataFrame(
            schema={
                "user_id": pl.String,
                "slate": pl.Int64,
                "item_id": pl.String,
                "position": pl.Int64,
                "liked": pl.Boolean,
                "closed": pl.Boolean,
            }
        )
    number = pl.col("_began").rank("dense").cast(pl.Int64) - 1
    return rows.sort("_began", maintain_order=True).select(
        "user_id",
        number.alias("slate"),
        "item_id",
        pl.col("position").cast(pl.Int64),
        pl.col("head0").alias("liked"),
        pl.col("_closed").alias("closed"),
    )


def _rows(
    shown: EventFrame,
    events: EventFrame,
    heads: Heads,
    rule: PositiveRule,
    windows_ms: Mapping[str, int],
    after_ms: int,
    but: Collection[tuple[str, str]] = (),
    newest: int | None = None,
) -> pl.DataFrame | None:
    """Items of eligible slates, with labels in `head0`, …; None where there is none. `newest`: number of slates examined."""
    if not len(shown) or not len(events) or (newest is not None and newest <= 0):
        return None
    windows, until_ms = [windows_ms.get(name, ATTRIBUTION_MS) for name, _ in heads], int(events.frame["event_time"][-1])
    told = shown.frame.lazy().filter(pl.col("event_time") > after_ms).select(KEPT)
    acts = events.frame.lazy().with_row_index("_event").filter(pl.col("event_time") > after_ms).select("_event", *KEPT)
    slates = _slates(_members(told, acts), _begun(shown, events, after_ms))
    wanted = _wanted(slates, until_ms, but)
    wanted = wanted if newest is None else wanted.tail(newest)
    if not wanted.height:
        return None
    people = wanted.lazy().select("user_id").unique()
    told, acts = (_texts(part).join(people, on="user_id", how="semi") for part in (told, acts))
    # events are attributed among all slates of a user, not only among the eligible ones
    rows = _members(told, acts).collect().join(_placed(slates, events), on=SLATE, maintain_order="left")
    labelled = _labelled(rows, _hits(acts.collect(), heads, rule), windows)
    labelled = labelled.join(wanted.select(SLATE), on=SLATE, how="semi", maintain_order="left")
    labelled = labelled.with_columns((pl.col("_shown_ms") <= until_ms - max(windows)).alias("_closed"))
    return labelled.filter(pl.col("_closed") | pl.col("head0").any().over(SLATE))


def _texts(frame: pl.LazyFrame) -> pl.LazyFrame:
    return frame.with_columns(pl.col(TEXTS).cast(pl.String))


def _members(told: pl.LazyFrame, acts: pl.LazyFrame) -> pl.LazyFrame:
    """Every item of every slate once, at its first record, in that order."""
    told, acts = _texts(told), _texts(acts)
    request = ["user_id", "request_id"]
    requests = told.select(request).drop_nulls().unique()
    both = pl.concat([told, acts.select(KEPT).join(requests, on=request, how="semi")]).sort(ORDER)
    moment = pl.format("t{}", "event_time")
    return both.with_columns(pl.coalesce(pl.format("r{}", "request_id"), moment).alias("_slate")).unique(
        [*SLATE, "item_id"], keep="first", maintain_order=True
    )


def _begun(shown: EventFrame, events: EventFrame, after_ms: int) -> pl.LazyFrame:
    """Requests with a record up to `after_ms`."""
    parts = (frame.frame.lazy().filter(pl.col("event_time") <= after_ms) for frame in (shown, events))
    early = pl.concat([part.select(pl.col("user_id", "request_id").cast(pl.String)).drop_nulls() for part in parts])
    return early.unique().select("user_id", pl.format("r{}", "request_id").alias("_slate"))


def _slates(members: pl.LazyFrame, begun: pl.LazyFrame) -> pl.DataFrame:
    """Slates in the order of their start, numbered by `_began`, with the time and offset of the start."""
    slates = members.group_by(SLATE).agg(pl.first(*ORDER), pl.len().alias("_items"))
    slates = slates.join(begun, on=SLATE, how="anti").sort(ORDER).with_row_index("_began")
    return slates.rename({"event_time": "_shown_ms"}).collect()


def _placed(slates: pl.DataFrame, events: EventFrame) -> pl.DataFrame:
    """Add `_place`, the number of events before each slate."""
    points = (slates["_shown_ms"], slates["_partition"], slates["_offset"] - 1)
    places = events.places(*(column.cast(pl.Int64).to_numpy() for column in points))
    return slates.select(*SLATE, "_began", "_shown_ms", pl.Series("_place", places))


def _wanted(slates: pl.DataFrame, until_ms: int, but: Collection[tuple[str, str]]) -> pl.DataFrame:
    """Select the eligible slates."""
    apart = pl.DataFrame([(user, f"r{request}") for user, request in but], schema=dict.fromkeys(SLATE, pl.String), orient="row")
    slates = slates.filter((pl.col("_items") >= FEWEST_ITEMS) & (pl.col("_shown_ms") <= until_ms))
    return slates.join(apart, on=SLATE, how="anti", maintain_order="left")


def _hits(acts: pl.DataFrame, heads: Heads, rule: PositiveRule) -> pl.DataFrame:
    """Add the head labels of each event, in columns `head0`, …"""
    said = [pl.col("_liked") if name == "positive" else pl.col("action") == name for name, _ in heads]
    return with_liked(acts, rule).with_columns(one.alias(f"head{n}") for n, one in enumerate(said))


def _labelled(rows: pl.DataFrame, acts: pl.DataFrame, windows: list[int]) -> pl.DataFrame:
    """Add the head labels of each of `rows`, in columns `head0`, …"""
    names, pair, row = [f"head{n}" for n in range(len(windows))], ["user_id", "item_id"], [*SLATE, "item_id"]
    acts = acts.select(*pair, "request_id", "_event", pl.col("event_time").alias("_event_ms"), *names)
    slates = rows.select(*row, "_began", "_place", "_shown_ms")
    of_request = pl.format("r{}", "request_id").alias("_slate")
    named = acts.drop_nulls("request_id").with_columns(of_request).join(slates, on=row)
    nameless = acts.filter(pl.col("request_id").is_null()).join(slates, on=pair)
    age, later = pl.col("_event_ms") - pl.col("_shown_ms"), pl.col("_event") >= pl.col("_place")
    came = [(pl.col(name) & (age <= window)).alias(name) for name, window in zip(names, windows, strict=True)]
    nameless = nameless.filter(later & (age <= max(windows))).sort("_began").unique("_event", keep="last", maintain_order=True)
    parts = [part.with_columns(came).select(*row, *names) for part in (named.filter(later), nameless)]
    followed = pl.concat(parts).group_by(row).agg(pl.col(names).any())
    joined = rows.join(followed, on=row, how="left", maintain_order="left")
    return joined.with_columns(pl.col(names).fill_null(value=False))


def _starts(rows: pl.DataFrame) -> pl.DataFrame:
    """The slates of `rows` in the order of their start, with whether one of their items is liked in `head0`."""
    return rows.group_by(SLATE).agg(pl.col("head0").any(), pl.first("_began", "_place", "_closed")).sort("_began")


def _picked(rows: pl.DataFrame, most: int) -> pl.DataFrame:
    """Select the slates to learn from, with the number of slates that each stands for in `_traffic`.

    Of slates with a like those stand for others whose windows are over, as those without a like are.
    """
    slates = _starts(rows)
    liked, other = slates.filter("head0"), slates.filter(~pl.col("head0"))
    liking = min(liked.height, max(int(most * LIKED), most - other.height))
    parts = []
    for every, taken in ((liked, liked.tail(liking)), (other, other.tail(most - liking))):
        share = int(every["_closed"].sum()) / max(int(taken["_closed"].sum()), 1)
        parts.append(taken.with_columns(pl.lit(share, pl.Float64).alias("_traffic")))
    return pl.concat(parts).sort("_began")


def _slates_of(rows: pl.DataFrame, taken: pl.DataFrame, heads: Heads, examination: Examination) -> list[LoggedSlate]:
    names = [f"head{n}" for n in range(len(heads))]
    by_slate = rows.join(taken.select(SLATE), on=SLATE, how="semi").partition_by(SLATE, as_dict=True, maintain_order=True)
    traffic = taken["_traffic"] if "_traffic" in taken.columns else pl.Series("_traffic", [1.0] * taken.height)
    starts = taken.select(*SLATE, "_place", traffic).iter_rows()
    return [
        _slate(place, user_id, by_slate[user_id, slate], names, examination, stands_for)
        for user_id, slate, place, stands_for in starts
    ]


def _slate(
    place: int, user_id: str, rows: pl.DataFrame, names: list[str], examination: Examination, traffic: float
) -> LoggedSlate:
    labels = rows.select(names).to_numpy().astype(np.float32)
    positions = _positions(rows["position"].to_list())
    looked_at = examination.at(positions)
    weight = np.where(labels.any(axis=1), 1.0, looked_at).astype(np.float32) * np.float32(rows["_closed"][0])
    items, shown_ms = rows["item_id"].to_list(), int(rows["_shown_ms"][0])
    return LoggedSlate(place, user_id, items, None, labels, weight, shown_ms, positions, traffic)


def _positions(given: list[int | None]) -> NDArray[np.int64]:
    """Positions of a slate's items. A missing one is the lowest that is free; all are -1 where none is given."""
    known = {position for position in given if position is not None}
    if not known:
        return np.full(len(given), -1, np.int64)
    free = (position for position in count() if position not in known)
    return np.asarray([next(free) if position is None else max(position, 0) for position in given], np.int64)
