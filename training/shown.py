"""Slates told by the events themselves: each says that one item was shown (action `models.rules.SHOWN`), with its `request_id`.

What a person was shown under one `request_id` is a slate, and so is what they were shown at one moment without one. An event
with a slate's `request_id` follows it, and its item was shown whether that is said or not; one without belongs to the newest
slate that showed the item to the person before it. Features were not logged: replay computes them as the slate was shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import polars as pl

from models.rules import PositiveRule
from training.data import ATTRIBUTION_MS, Heads
from training.events import ORDER, EventFrame
from training.impressions import ImpressionSettings
from training.logged import LoggedSlate

__all__ = ["shown_slates"]

SLATE = ["user_id", "_slate"]
FEWEST_ITEMS = 2
"A slate of one item says nothing of an order."
LOOKED_AT = 8
"Newest slates that are looked at, per slate that is taken: those without a like are rarely wanted."
LIKED = 0.75
"Share of the slates that hold a liked item, where there are enough: they teach the order, the others the level."
TEXTS = ["user_id", "item_id", "action", "request_id"]
KEPT = [*TEXTS, "value", "position", *ORDER]


def shown_slates(
    shown: EventFrame,
    events: EventFrame,
    heads: Heads,
    rule: PositiveRule,
    windows_ms: Mapping[str, int],
    after_ms: int,
    most: int,
    but: Collection[tuple[str, str]] = (),
) -> list[LoggedSlate]:
    """At most `most` of the newest slates after `after_ms`, in the order of their places among `events`, without features.

    `rule` says what is liked; `windows_ms`: how long after a slate an event still counts, by head, a day where not said. Slates
    whose windows were still open at the last event are left out, and those of `but`, by user and request.
    """
    if not len(shown) or not len(events) or most <= 0:
        return []
    windows = [windows_ms.get(name, ATTRIBUTION_MS) for name, _ in heads]
    told, acts = _texts(shown), _texts(events).with_row_index("_event")
    slates = _slates(told, acts, after_ms, int(events.frame["event_time"][-1]) - max(windows), but).tail(LOOKED_AT * most)
    if not slates.height:
        return []
    points = (slates["event_time"], slates["_partition"], slates["_offset"] - 1)
    slates = slates.with_columns(pl.Series("_place", events.places(*(p.cast(pl.Int64).to_numpy() for p in points))))
    rows = _members(told, acts).join(slates.select(*SLATE, "_place", pl.col("event_time").alias("_shown_ms")), on=SLATE)
    labelled = _labelled(rows, _hits(acts, heads, rule), windows)
    return _picked(labelled, len(heads), most)


def _texts(frame: EventFrame) -> pl.DataFrame:
    return frame.frame.select(KEPT).with_columns(pl.col(TEXTS).cast(pl.String))


def _members(told: pl.DataFrame, acts: pl.DataFrame) -> pl.DataFrame:
    """Every item of every slate, once, where it is told first."""
    request = ["user_id", "request_id"]
    requests = told.select(request).drop_nulls().unique()
    both = pl.concat([told, acts.select(told.columns).join(requests, on=request, how="semi")]).sort(ORDER)
    moment = pl.format("t{}", "event_time")
    return both.with_columns(pl.coalesce(pl.format("r{}", "request_id"), moment).alias("_slate")).unique(
        [*SLATE, "item_id"], keep="first", maintain_order=True
    )


def _slates(
    told: pl.DataFrame, acts: pl.DataFrame, after_ms: int, until_ms: int, but: Collection[tuple[str, str]]
) -> pl.DataFrame:
    """The slates that may be taken, oldest first: when each was shown, and where."""
    slates = _members(told, acts).group_by(SLATE, maintain_order=True).agg(pl.first(*ORDER), pl.len().alias("_items"))
    apart = pl.DataFrame([(user, f"r{request}") for user, request in but], schema=dict.fromkeys(SLATE, pl.String), orient="row")
    slates = slates.filter((pl.col("_items") >= FEWEST_ITEMS) & pl.col("event_time").is_between(after_ms + 1, until_ms))
    return slates.join(apart, on=SLATE, how="anti", maintain_order="left").sort(ORDER)


def _hits(acts: pl.DataFrame, heads: Heads, rule: PositiveRule) -> pl.DataFrame:
    """What each event says of each head, in columns `head0`, …"""
    kinds = acts.select("action", "value").unique()
    liked = [rule(action, value) for action, value in kinds.iter_rows()]
    acts = acts.join(kinds.with_columns(pl.Series("_liked", liked, pl.Boolean)), on=["action", "value"], nulls_equal=True)
    said = [pl.col("_liked") if name == "positive" else pl.col("action") == name for name, _ in heads]
    return acts.with_columns(one.alias(f"head{n}") for n, one in enumerate(said))


def _labelled(rows: pl.DataFrame, acts: pl.DataFrame, windows: list[int]) -> pl.DataFrame:
    """`rows` with the labels of each, in columns `head0`, …"""
    names = [f"head{n}" for n in range(len(windows))]
    acts = acts.select("user_id", "item_id", "request_id", "_event", pl.col("event_time").alias("_event_ms"), *names)
    slates = rows.select("user_id", "item_id", "_slate", "_place", "_shown_ms")
    of_request = pl.format("r{}", "request_id").alias("_slate")
    named = acts.drop_nulls("request_id").with_columns(of_request).join(slates, on=["user_id", "item_id", "_slate"])
    nameless = acts.filter(pl.col("request_id").is_null()).join(slates, on=["user_id", "item_id"])
    age, later = pl.col("_event_ms") - pl.col("_shown_ms"), pl.col("_event") >= pl.col("_place")
    came = [(pl.col(name) & (age <= window)).alias(name) for name, window in zip(names, windows, strict=True)]
    columns = [*SLATE, "item_id", *names]
    named = named.filter(later).with_columns(came)
    nameless = nameless.filter(later & (age <= max(windows))).sort("_place", "_slate")
    nameless = nameless.unique("_event", keep="last", maintain_order=True).with_columns(came)
    followed = (
        pl.concat([named.select(columns), nameless.select(columns)]).group_by([*SLATE, "item_id"]).agg(pl.col(names).any())
    )
    joined = rows.join(followed, on=[*SLATE, "item_id"], how="left", maintain_order="left")
    return joined.with_columns(pl.col(names).fill_null(value=False))


def _picked(rows: pl.DataFrame, heads: int, most: int) -> list[LoggedSlate]:
    slates = rows.group_by(SLATE, maintain_order=True).agg(pl.col("head0").any(), pl.first("_place")).sort("_place", *SLATE)
    liked, other = slates.filter("head0"), slates.filter(~pl.col("head0"))
    liking = min(liked.height, max(int(most * LIKED), most - other.height))
    taken = pl.concat([liked.tail(liking), other.tail(most - liking)]).sort("_place", *SLATE)
    names, bias = [f"head{n}" for n in range(heads)], ImpressionSettings().position_bias
    by_slate = rows.join(taken.select(SLATE), on=SLATE, how="semi").partition_by(SLATE, as_dict=True, maintain_order=True)
    places = taken.select(*SLATE, "_place").iter_rows()
    return [_slate(place, user_id, by_slate[user_id, slate], names, bias) for user_id, slate, place in places]


def _slate(place: int, user_id: str, rows: pl.DataFrame, names: list[str], bias: float) -> LoggedSlate:
    labels = rows.select(names).to_numpy().astype(np.float32)
    position = rows["position"].fill_null(0).clip(0).to_numpy().astype(np.float32)
    weight = np.where(labels.any(axis=1), 1.0, (1.0 + position) ** -bias).astype(np.float32)
    return LoggedSlate(place, user_id, rows["item_id"].to_list(), None, labels, weight, int(rows["_shown_ms"][0]))
