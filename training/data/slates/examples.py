"""Ranking examples from the archive: logged impressions, joined with the actions that followed.

`training.data.slates.attribution` decides which slate an event follows. Features are taken from the log and never recomputed,
so no later event is in them.

All records of a user are in one partition, so each partition is a job of its own. `python -m training examples … --partition 3`
gives exactly the rows that a run over all partitions gives for partition 3. Ids and times of a partition's slates and events
are held in memory; wide columns are read and written a few files at a time. Slates of ten need some 150 bytes per example, and
half a kB per example of the largest file (`benchmarks/examples.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import polars as pl

from models.archive.files import partitions as partitions_of
from models.archive.files import record_columns
from models.archive.lazy import lazily
from models.archive.standing import erasures
from models.archive.target import Target
from training.data.slates.attribution import ImpressionSettings, attributed, read_slates, recorded_slates

__all__ = ["ImpressionSettings", "build_examples", "examples_of", "made_with", "newest_examples", "newest_of", "read_examples"]

KINDS = record_columns("training_example")
SLATE = ["user_id", "request_id"]
ROWS = 50_000
"Rows of a row group in the files."
SLATES = 1_000
"Number of slates whose items are expanded to rows at once."
FOREVER = 2**63 - 1
STANDARD = ImpressionSettings()
MADE = "riffle.examples"
"Key of the settings in a file's metadata."


def examples_of(
    target: Target,
    partition: int,
    settings: ImpressionSettings = STANDARD,
    erased: pl.LazyFrame | None = None,
) -> pl.LazyFrame:
    """Make the examples of one partition, by slate and position, with the columns of schema `training_example`.

    `labels` maps each action that followed, and `positive`, to 1; an absent action did not follow. A shown item without actions
    has no labels. `erased`: result of `erasures`, so that a job computes it once.
    """

    def parts() -> Iterator[pl.LazyFrame]:
        gone = erasures(target) if erased is None else erased
        slates = recorded_slates(target, partition, settings, gone)
        names = attributed(target, partition, slates, settings, gone)
        return (rows.lazy() for rows in _rows(target, partition, slates, names, settings))

    return lazily(parts, KINDS)


def _rows(
    target: Target, partition: int, slates: pl.DataFrame, names: pl.DataFrame, settings: ImpressionSettings
) -> Iterator[pl.DataFrame]:
    """Examples of these slates of a partition. `names`: actions that followed, from `attributed`."""
    for some, read in read_slates(target, partition, slates, ["items", "release", "as_of"]):
        here = names.filter(pl.col("_slate").is_between(some["_slate"][0], some["_slate"][-1]))
        pairs = pl.struct(pl.col("key"), pl.lit(1.0, pl.Float32).alias("value"))
        labels = here.sort("_slate", "item_id", "key").group_by("_slate", "item_id").agg(pairs.alias("labels"))
        logged = read.join(some, left_on="_offset", right_on="_slate", maintain_order="left")
        for part in logged.iter_slices(SLATES):
            yield _examples(part, labels, settings)


def _examples(slates: pl.DataFrame, labels: pl.DataFrame, settings: ImpressionSettings) -> pl.DataFrame:
    rows = slates.lazy().explode("items", empty_as_null=False).unnest("items").filter(pl.col("item_id").is_not_null())
    rows = rows.unique(["_offset", "item_id"], keep="first", maintain_order=True)
    joined = rows.join(labels.lazy(), left_on=["_offset", "item_id"], right_on=["_slate", "item_id"], how="left")
    looked_at = (1.0 + pl.col("position")) ** -settings.position_bias
    share = (1.0 / pl.col("propensity").clip(1e-9)).clip(upper_bound=settings.largest_weight)
    weight = (share * pl.when(pl.col("labels").is_null()).then(looked_at).otherwise(1.0)).cast(pl.Float32)
    as_of = pl.col("as_of").struct
    return (
        joined.with_columns(weight.alias("weight"))
        .with_columns(
            pl.col("labels").fill_null(pl.lit([], KINDS["labels"])),
            pl.when(pl.col("as_of").is_not_null())
            .then(pl.struct(as_of.field("partition"), as_of.field("offset")))
            .alias("as_of"),
        )
        .sort("_offset", "position", maintain_order=True)
        .select(pl.col(name).cast(kind) for name, kind in KINDS.items())
        .collect()
    )


def build_examples(
    target: Target,
    out: Path,
    settings: ImpressionSettings = STANDARD,
    partitions: Sequence[int] | None = None,
    at_once: int = 2,
) -> list[Path]:
    """Write one Parquet file of examples per partition (all, or those named), `at_once` in parallel; returns the files.

    A file is written whole or not at all. Its metadata holds the settings it was made with (`made_with`). The same archive and
    settings give the same rows.
    """
    wanted = partitions_of(target, "impressions") if partitions is None else list(partitions)
    out.mkdir(parents=True, exist_ok=True)
    erased, made = erasures(target), json.dumps(asdict(settings))

    def one(partition: int) -> Path:
        path = out / f"training_example-{partition:05d}.parquet"
        part = path.with_suffix(".part")
        examples = examples_of(target, partition, settings, erased)
        examples.sink_parquet(part, compression="zstd", row_group_size=ROWS, metadata={MADE: made}, engine="streaming")
        part.replace(path)
        return path

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        return list(pool.map(one, wanted))


def newest_examples(
    target: Target,
    settings: ImpressionSettings,
    feature_specs: Collection[str],
    after_ms: int,
    most: int,
    erased: pl.LazyFrame | None = None,
) -> pl.DataFrame:
    """Examples of the newest slates after `after_ms` with features of these specifications, at most `most` slates.

    Features of another specification have another meaning, so such slates are excluded. Also excluded are slates without the
    time they were shown (no `as_of`) and, with `settings.until_ms`, slates whose windows are still open then, because a missing
    action is no negative yet. `erased` as in `examples_of`. Features are read only for the returned slates.
    """
    erased = erasures(target) if erased is None else erased
    usable = (
        pl.col("feature_spec").is_in(list(feature_specs))
        & (pl.col("event_time") > after_ms)
        & ~pl.col("_timeless")
        & (pl.col("event_time") <= _closed_ms(settings))
    )
    newest: dict[int, pl.DataFrame] = {}
    rivals: dict[int, pl.DataFrame] = {}
    for partition in partitions_of(target, "impressions"):
        slates = recorded_slates(target, partition, settings, erased)
        mine = _newest_shown(target, partition, slates.filter(usable), most)
        if mine.height:
            newest[partition], rivals[partition] = mine, _rivals(slates, mine)
    if not newest:
        return pl.DataFrame(schema=KINDS)
    chosen = pl.concat(newest.values()).unique(SLATE).sort("event_time", *SLATE).tail(most)
    found = [pl.DataFrame(schema=KINDS)]
    for partition, candidates in newest.items():
        mine = candidates.join(chosen, on=SLATE, how="semi").sort("_slate")
        names = attributed(target, partition, _rivals(rivals[partition], mine), settings, erased)
        found += _rows(target, partition, mine, names, settings)
    return pl.concat(found).sort("event_time", *SLATE, "position", maintain_order=True)


def newest_of(
    files: Sequence[Path],
    settings: ImpressionSettings,
    feature_specs: Collection[str],
    after_ms: int,
    most: int,
    erased: pl.LazyFrame,
) -> pl.DataFrame:
    """Result of `newest_examples`, read from files made with these settings except `until_ms`. Their labels are valid, because
    windows of the selected slates close before `until_ms`.

    `erased`: current result of `erasures`, which may hold more than when the files were made. Slates that do not reflect it are
    excluded, and those of users who were erased in a partition other than their own.
    """
    rows = read_examples(files, feature_specs).filter(
        (pl.col("event_time") > after_ms) & pl.col("as_of").is_not_null() & (pl.col("event_time") <= _closed_ms(settings))
    )
    as_of = pl.col("as_of").struct
    since = (as_of.field("partition") == pl.col("_partition")) & (as_of.field("offset") >= pl.col("_erased"))
    gone = rows.select(*SLATE, "as_of").unique(SLATE).join(erased, on="user_id").filter(~since)
    rows = rows.join(gone, on=SLATE, how="anti", maintain_order="left")
    newest = rows.select(*SLATE, "event_time").unique(SLATE).sort("event_time", *SLATE).tail(most).collect(engine="streaming")
    found = rows.join(newest.lazy(), on=SLATE, how="semi", maintain_order="left").collect(engine="streaming")
    return found.sort("event_time", *SLATE, "position", maintain_order=True)


def made_with(file: Path) -> ImpressionSettings | None:
    """Settings that a file of examples was made with; None when its metadata lacks them."""
    said = pl.read_parquet_metadata(file).get(MADE)
    return None if said is None else ImpressionSettings(**json.loads(said))


def _closed_ms(settings: ImpressionSettings) -> int:
    """Latest time of a slate whose windows close by `settings.until_ms`."""
    if settings.until_ms is None:
        return FOREVER
    return settings.until_ms - max(settings.window_ms, *settings.windows_ms.values(), 0)


def _newest_shown(target: Target, partition: int, slates: pl.DataFrame, most: int) -> pl.DataFrame:
    """The `most` newest of these slates of a partition that showed at least one item."""
    rest, found = slates.sort("event_time", *SLATE), [slates.clear()]
    while most > 0 and rest.height:
        rest, some = rest.head(max(rest.height - most, 0)), rest.tail(most).sort("_slate")
        there = pl.col("items").list.eval(pl.element().struct.field("item_id").drop_nulls()).list.len() > 0
        for part, read in read_slates(target, partition, some, [there.alias("_there")]):
            found.append(part.join(read.filter("_there"), left_on="_slate", right_on="_offset", how="semi"))
            most -= found[-1].height
    return pl.concat(found)


def _rivals(slates: pl.DataFrame, mine: pl.DataFrame) -> pl.DataFrame:
    """Slates of a partition, in order, that compete with `mine` for the events that follow."""
    return (
        slates.filter(pl.col("_at") >= pl.lit(mine["_at"].min(), pl.Int64)).join(mine, on="user_id", how="semi").sort("_slate")
    )


def read_examples(files: Sequence[Path], feature_specs: Collection[str]) -> pl.LazyFrame:
    """Read examples of these feature specifications; features of another one have another meaning."""
    if not files:
        return pl.LazyFrame(schema=KINDS)
    return pl.scan_parquet(list(files), glob=False, schema=KINDS).filter(pl.col("feature_spec").is_in(list(feature_specs)))
