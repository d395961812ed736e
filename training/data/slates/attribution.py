"""Which slate an event follows: over narrow columns alone, some slates' items at a time.

An event follows a slate when it carries the slate's `request_id`. One that carries none belongs to the newest slate that showed
that item to that person before it, and to no other. One that carries the id of a slate that is not here belongs to none.
Before and after are told by the log: a slate says up to which offset of the person's partition it reflects (`as_of`), and
whatever follows it lies beyond.
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
"Slates whose items are held at once, unless one file has more."
RECORDED = ["user_id", "request_id", "event_time", "feature_spec", "_partition", "_offset", "_timestamp"]


@dataclass(frozen=True, slots=True)
class ImpressionSettings:
    """How slates are joined with what followed, and what an example weighs."""

    positive: str = "True"
    "Rule over event columns that says which events are liked: the label `positive`."
    window_ms: int = ATTRIBUTION_MS
    "How long after the slate an action still counts for it. Must be > 0."
    windows_ms: Mapping[str, int] = field(default_factory=dict)
    "Other windows, by action, or `positive` for what is liked whatever its action is."
    position_bias: float = 0.5
    """What was shown lower was looked at less: an item at position p (0 is first) that was not acted on weighs
    (1 + p) ^ -position_bias, the chance that it was looked at (Joachims et al. 2017); one that was acted on was looked at. 0:
    no correction."""
    largest_weight: float = 10.0
    "Bound of 1 / propensity."
    until_ms: int | None = None
    "Event time after which nothing is looked at, neither slates nor what followed; None: everything."


def recorded_slates(target: Target, partition: int, settings: ImpressionSettings, erased: pl.LazyFrame) -> pl.DataFrame:
    """The slates of a partition without their items, by `_slate`, their offset. `_at` is the first offset of interactions that
    the slate does not reflect.
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
    """Some of `slates`, which are in order, and these columns of what was logged of them, by `_offset`: some AT_ONCE a time."""
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
    """(`_slate`, `item_id`, `key`), each once: which actions followed which item of these slates, and `positive`.

    An event follows at most one slate of `slates`, which have columns as of `recorded_slates`.
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
    """What the people of these slates did, with how long it may come after a slate, as an action and as what is liked."""
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
    """The events that may follow some slates, with each slate that they may follow. `read`: which items these showed."""
    shown = read.lazy().explode("item_id", empty_as_null=False).drop_nulls("item_id").unique().rename({"_offset": "_slate"})
    shown = shown.join(slates.lazy().rename({"request_id": "_request"}), on="_slate")
    pairs = shown.join(events.lazy(), on=["user_id", "item_id"])
    # without an event before it a slate has no event time: then the log's clock tells how long after it something came
    after = (
        pl.when("_timeless")
        .then(pl.col("_event_log_ms") - pl.col("_shown_ms"))
        .otherwise(pl.col("_event_ms") - pl.col("event_time"))
    )
    later, acted, liked = pl.col("_event") >= pl.col("_at"), after <= pl.col("_window"), after <= pl.col("_liked_window")
    # a slate without an event before it may be told to come after what followed: what is not liked is not liked then either
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
