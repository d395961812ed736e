"""Ranking examples from what was really shown: impressions of the archive, joined with what followed.

An event follows a slate when it carries the slate's `request_id`. One that carries none belongs to the newest slate that showed
that item to that person before it, and to no other. One that carries the id of a slate that is not here belongs to none.
Before and after are told by the log: a slate says up to which offset of the person's partition it reflects (`as_of`), and
whatever follows it lies beyond. Features are those that were logged: nothing is computed again, so no later event is in them.

Everything of a person is in one partition, so each is a job of its own: `python -m training examples … --partition 3` anywhere
gives exactly the rows that the whole gives for partition 3. A partition is held in memory, at some 2.4 kB an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from models.archive.files import partitions as partitions_of
from models.archive.files import record_columns
from models.archive.standing import standing_events, standing_impressions
from models.archive.target import Target
from models.rules import PositiveRule
from training.data import ATTRIBUTION_MS

__all__ = ["ImpressionSettings", "build_examples", "examples_of", "newest_examples", "read_examples"]

POSITIVE = "positive"
PAIR = ["user_id", "item_id"]


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


def _shown(target: Target, partition: int, settings: ImpressionSettings) -> pl.LazyFrame:
    """One row per item of a slate. `_at` is the first offset of interactions that the slate does not reflect."""
    slates = standing_impressions(target, partition).rename({"_timestamp": "_shown_ms"})
    if settings.until_ms is not None:
        slates = slates.filter(pl.col("event_time") <= settings.until_ms)
    slates = slates.with_columns(
        (pl.col("as_of").struct.field("offset") + 1).fill_null(0).alias("_at"),
        pl.col("as_of").is_null().alias("_timeless"),
    )
    rows = slates.explode("items", empty_as_null=False).unnest("items").filter(pl.col("item_id").is_not_null())
    return rows.unique(["user_id", "request_id", "item_id"], keep="first", maintain_order=True)


def _followed(target: Target, partition: int, settings: ImpressionSettings) -> pl.LazyFrame:
    """What people did, with the label it gives and how long it may come after the slate, as an action and as what is liked."""
    acted = pl.col("action").replace_strict(dict(settings.windows_ms), default=settings.window_ms, return_dtype=pl.Int64)
    events = standing_events(target, partition).select(
        *PAIR, "request_id", "action", "value", "event_time", "_offset", "_timestamp", acted.alias("_window")
    )
    if settings.until_ms is not None:
        events = events.filter(pl.col("event_time") <= settings.until_ms)
    kinds = events.select("action", "value").unique().collect(engine="streaming")
    rule = PositiveRule(settings.positive)
    liked = [rule(action, value) for action, value in kinds.iter_rows()]
    window = settings.windows_ms.get(POSITIVE, settings.window_ms)
    windows = pl.Series("_liked_window", [window if like else -1 for like in liked], pl.Int64)
    named = kinds.with_columns(windows).lazy()
    return events.join(named, on=["action", "value"], how="left", nulls_equal=True).rename(
        {"event_time": "_event_ms", "_offset": "_event", "_timestamp": "_event_log_ms"}
    )


def _attributed(shown: pl.LazyFrame, followed: pl.LazyFrame) -> pl.LazyFrame:
    """(user, request, item, action, acted, liked) of every event that follows a slate; each event at most once."""
    slate = shown.select(*PAIR, "request_id", "event_time", "_shown_ms", "_at", "_timeless", pl.col("_offset").alias("_slate"))
    # without an event before it a slate has no event time: then the log's clock tells how long after it something came
    after = (
        pl.when("_timeless")
        .then(pl.col("_event_log_ms") - pl.col("_shown_ms"))
        .otherwise(pl.col("_event_ms") - pl.col("event_time"))
    )
    later, acted, liked = pl.col("_event") >= pl.col("_at"), after <= pl.col("_window"), after <= pl.col("_liked_window")
    # a slate without an event before it may be told to come after what followed: what is not liked is not liked then either
    liked &= pl.col("_liked_window") >= 0
    within = acted | liked
    named = followed.filter(pl.col("request_id").is_not_null())
    named = named.join(slate, on=[*PAIR, "request_id"], how="inner").filter(later & within)
    nameless = followed.filter(pl.col("request_id").is_null()).drop("request_id")
    nameless = nameless.join(slate, on=PAIR, how="inner").filter(later & within & (after >= 0))
    newest = ["_at", "_slate"]
    nameless = nameless.sort(newest).unique(["_event"], keep="last", maintain_order=True)
    columns = [*PAIR, "request_id", "action", acted.alias("_acted"), liked.alias("_liked")]
    return pl.concat([named.select(columns), nameless.select(columns)])


def examples_of(target: Target, partition: int, settings: ImpressionSettings = ImpressionSettings()) -> pl.LazyFrame:
    """The examples of one partition, by slate and position: columns of schema `training_example`.

    `labels` names each action that followed, and `positive`, with 1; what is not named did not follow. An item that was
    shown and not acted on is there without labels.
    """
    shown = _shown(target, partition, settings)
    key = ["user_id", "request_id", "item_id"]
    attributed = _attributed(shown, _followed(target, partition, settings))
    actions = attributed.filter("_acted").select(*key, pl.col("action").alias("key"))
    liked = attributed.filter("_liked").select(*key, pl.lit(POSITIVE).alias("key"))
    names = pl.concat([actions, liked]).unique().sort([*key, "key"])
    pairs = pl.struct(pl.col("key"), pl.lit(1.0, pl.Float32).alias("value"))
    labels = names.group_by(key, maintain_order=True).agg(pairs.alias("labels"))
    looked_at = (1.0 + pl.col("position")) ** -settings.position_bias
    share = (1.0 / pl.col("propensity").clip(1e-9)).clip(upper_bound=settings.largest_weight)
    weight = (share * pl.when(pl.col("labels").is_null()).then(looked_at).otherwise(1.0)).cast(pl.Float32)
    kinds, as_of = record_columns("training_example"), pl.col("as_of").struct
    joined = shown.join(labels, on=key, how="left").with_columns(weight.alias("weight"))
    joined = joined.with_columns(
        pl.col("labels").fill_null(pl.lit([], kinds["labels"])),
        pl.when(pl.col("as_of").is_not_null()).then(pl.struct(as_of.field("partition"), as_of.field("offset"))).alias("as_of"),
    )
    return joined.sort("_offset", "position").select([pl.col(name).cast(kind) for name, kind in kinds.items()])


def build_examples(
    target: Target,
    out: Path,
    settings: ImpressionSettings = ImpressionSettings(),
    partitions: Sequence[int] | None = None,
    at_once: int = 2,
) -> list[Path]:
    """Write one Parquet file of examples per partition (all, or those named), `at_once` side by side; returns the files.

    A file is whole or not there. The same archive and settings give the same rows.
    """
    wanted = partitions_of(target, "impressions") if partitions is None else list(partitions)
    out.mkdir(parents=True, exist_ok=True)

    def one(partition: int) -> Path:
        path = out / f"training_example-{partition:05d}.parquet"
        part = path.with_suffix(".part")
        examples_of(target, partition, settings).sink_parquet(part, compression="zstd", engine="streaming")
        part.replace(path)
        return path

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        return list(pool.map(one, wanted))


def newest_examples(target: Target, settings: ImpressionSettings, feature_spec: str, after_ms: int, most: int) -> pl.DataFrame:
    """The examples of the newest slates after `after_ms` whose features are of this specification, at most `most` slates.

    Slates of another specification were scored by features that mean something else. Slates that say nothing of when they
    were shown (no `as_of`) are left out, and with `settings.until_ms` those whose windows are still open then: what
    has not followed yet is no answer.
    """
    slate, found = ["user_id", "request_id"], []
    closed = pl.lit(True)
    if settings.until_ms is not None:
        closed = pl.col("event_time") <= settings.until_ms - max(settings.window_ms, *settings.windows_ms.values(), 0)
    for partition in partitions_of(target, "impressions"):
        rows = examples_of(target, partition, settings).filter(
            (pl.col("feature_spec") == feature_spec)
            & (pl.col("event_time") > after_ms)
            & pl.col("as_of").is_not_null()
            & closed
        )
        slates = rows.select(*slate, "event_time").unique(slate).sort("event_time", *slate).tail(most)
        found.append(rows.join(slates.select(slate), on=slate, how="semi").collect(engine="streaming"))
    if not found:
        return pl.DataFrame(schema=record_columns("training_example"))
    every = pl.concat(found)
    newest = every.select(*slate, "event_time").unique(slate).sort("event_time", *slate).tail(most)
    return every.join(newest.select(slate), on=slate, how="semi").sort("event_time", *slate, "position")


def read_examples(files: Sequence[Path], feature_spec: str) -> pl.LazyFrame:
    """Examples of this feature specification: others were scored by features that mean something else."""
    kinds = record_columns("training_example")
    if not files:
        return pl.LazyFrame(schema=kinds)
    return pl.scan_parquet(list(files), schema=kinds).filter(pl.col("feature_spec") == feature_spec)
