"""Attributes events to slates. Reads only narrow columns, and the items of a limited number of slates at a time.

An event with a `request_id` follows the slate with that id, or none if that slate is not present. An event without one follows
the newest earlier slate that showed the item to the user, and no other. The log's order decides what is earlier: a slate
records up to which offset of the user's partition it reflects (`as_of`), and an event after that offset may follow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from models.archive.files import Piece, pieces, read_pieces
from models.archive.standing import standing_events, standing_impressions
from models.archive.target import Target
from models.rules import SHOWN, PositiveRule
from training.data.table import ATTRIBUTION_MS, with_liked

__all__ = ["POSITIVE", "ImpressionSettings", "attributed", "read_slates", "recorded_slates"]

POSITIVE = "positive"
AT_ONCE = 5_000
"Number of slates whose items are in memory at once, unless a single file has more."
RECORDED = ["user_id", "request_id", "event_time", "feature_spec", "_partition", "_offset", "_timestamp"]


@dataclass(frozen=True, slots=True)
class ImpressionSettings:
    """How slates are joined with the actions that followed, and how examples are weighted."""

    positive: str = "True"
    "Rule over event columns that decides which events are liked. It defines the label `positive`."
    window_ms: int = ATTRIBUTION_MS
    "Time after a slate in which an action counts for it, ms. Must be > 0."
    windows_ms: Mapping[str, int] = field(default_factory=dict)
    "Other windows, ms, by action, or by `positive` for liked events of any action."
    position_bias: float = 0.5
    """Correction of position bias. An item at position p (0 is first) without actions weighs (1 + p) ^ -position_bias, the
    probability that it was looked at (Joachims et al. 2017), because lower positions are looked at less. An item with an action
    was looked at and weighs 1. 0: no correction."""
    largest_weight: float = 10.0
    "Upper bound of 1 / propensity."
    until_ms: int | None = None
    "Event time, ms, after which slates and actions are ignored; None: no limit."


def recorded_slates(target: Target, partition: int, settings: ImpressionSettings, erased: pl.LazyFrame) -> pl.DataFrame:
    """Slates of a partition without their items, with their offset in `_slate`. `_at` is the first interaction offset that a
    slate does not reflect.
    """
    as_of = pl.col("as_of")
    reflected = (as_of.struct.field("offset") + 1).fill_null(0).alias("_at")
    slates = standing_impressions(target, partition, erased, [*RECORDED, reflected, as_of.is_null().alias("_timeless")])
    if settings.until_ms is not None:
        slates = slates.filter(pl.col("event_time") <= settings.until_ms)
    return slates.rename({"_offset": "_slate", "_timestamp": "_shown_ms"}).collect(engine="streaming")


def read_slates(
    target: Target, partition: int, slates: pl.DataFrame, columns: Sequence[str | pl.Expr]
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Read these columns of the logged `slates`, by `_offset`, about AT_ONCE slates at a time. `slates` are in offset order."""
    held: list[Piece] = []
    start = stop = 0
    offsets = slates["_slate"]
    for piece in pieces(target, "impressions", partition):
        end = int(offsets.search_sorted(piece.last, side="right"))
        if end > stop:
            held.append(piece)
            stop = end
        if stop - start >= AT_ONCE:
            yield _read(target, held, slates[start:stop], columns)
            held, start = [], stop
    if held:
        yield _read(target, held, slates[start:stop], columns)


def _read(
    target: Target, held: Sequence[Piece], slates: pl.DataFrame, columns: Sequence[str | pl.Expr]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    read = read_pieces(target, "impressions", held).select("_offset", *columns)
    return slates, read.filter(pl.col("_offset").is_in(slates["_slate"].implode())).collect(engine="streaming").sort("_offset")


def attributed(
    target: Target, partition: int, slates: pl.DataFrame, settings: ImpressionSettings, erased: pl.LazyFrame
) -> pl.DataFrame:
    """Actions that followed each item of these slates, and `positive`: distinct (`_slate`, `item_id`, `key`).

    An event follows at most one slate of `slates`, which have the columns of `recorded_slates`.
    """
    events = _followed(target, partition, slates, settings, erased)
    items = pl.col("items").list.eval(pl.element().struct.field("item_id")).alias("item_id")
    found = [_after(some, read, events) for some, read in read_slates(target, partition, slates, [items])]
    every = (
        pl.concat(found)
        if found
        else _after(slates, pl.DataFrame(schema={"_offset": pl.Int64, "item_id": pl.List(pl.String)}), events)
    )
    newest = every.filter("_nameless").sort("_at", "_slate").unique("_event", keep="last")
    follows = pl.concat([every.filter(~pl.col("_nameless")), newest])
    key = ["_slate", "item_id"]
    actions = follows.filter("_acted").select(*key, pl.col("action").alias("key"))
    liked = follows.filter("_liked").select(*key, pl.lit(POSITIVE).alias("key"))
    return pl.concat([actions, liked]).unique()


def _followed(
    target: Target, partition: int, slates: pl.DataFrame, settings: ImpressionSettings, erased: pl.LazyFrame
) -> pl.DataFrame:
    """Events of the users of these slates, each with its window as an action and its window as a liked event."""
    people = slates.lazy().select("user_id").unique()
    events = standing_events(target, partition, erased, people).select(
        "user_id", "item_id", "request_id", "action", "value", "event_time", "_offset", "_timestamp"
    )
    events = events.filter((pl.col("_offset") >= pl.lit(slates["_at"].min(), pl.Int64)) & (pl.col("action") != SHOWN))
    if settings.until_ms is not None:
        events = events.filter(pl.col("event_time") <= settings.until_ms)
    found = events.rename({"event_time": "_event_ms", "_offset": "_event", "_timestamp": "_event_log_ms"}).collect(
        engine="streaming"
    )
    window = settings.windows_ms.get(POSITIVE, settings.window_ms)
    acted = pl.col("action").replace_strict(dict(settings.windows_ms), default=settings.window_ms, return_dtype=pl.Int64)
    liked = pl.when("_liked").then(pl.lit(window, pl.Int64)).otherwise(-1)
    found = with_liked(found, PositiveRule(settings.positive))
    return found.with_columns(liked.alias("_liked_window"), acted.alias("_window")).drop("value", "_liked")


def _after(slates: pl.DataFrame, read: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Pairs of an event and a slate that it may follow. `read`: items shown by these slates."""
    shown = read.lazy().explode("item_id", empty_as_null=False).drop_nulls("item_id").unique().rename({"_offset": "_slate"})
    shown = shown.join(slates.lazy().rename({"request_id": "_request"}), on="_slate")
    pairs = shown.join(events.lazy(), on=["user_id", "item_id"])
    # a slate with no event before it has no event time: the delay after it is then measured on the log's clock
    after = (
        pl.when("_timeless")
        .then(pl.col("_event_log_ms") - pl.col("_shown_ms"))
        .otherwise(pl.col("_event_ms") - pl.col("event_time"))
    )
    later, acted, liked = pl.col("_event") >= pl.col("_at"), after <= pl.col("_window"), after <= pl.col("_liked_window")
    # without an event time the delay may be negative: an event that is not liked must not pass its window of -1
    liked &= pl.col("_liked_window") >= 0
    nameless = pl.col("request_id").is_null()
    mine = (pl.col("request_id") == pl.col("_request")) | (nameless & (after >= 0))
    return (
        pairs.filter(later & mine & (acted | liked))
        .select(
            "_slate",
            "_at",
            "_event",
            "item_id",
            "action",
            acted.alias("_acted"),
            liked.alias("_liked"),
            nameless.alias("_nameless"),
        )
        .collect()
    )
