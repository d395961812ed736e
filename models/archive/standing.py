"""The current content of an archive: the catalogue, and events and slates that were not erased later."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from models.archive.files import read_archive
from models.archive.target import Target

__all__ = ["erasures", "standing_events", "standing_impressions", "standing_items"]

ORIGIN = ["_partition", "_offset"]


def standing_items(target: Target) -> pl.LazyFrame:
    """Return each item's newest entry; items whose newest row is a deletion are left out."""
    newest = read_archive(target, "items").sort(ORIGIN).unique("item_id", keep="last", maintain_order=True)
    return newest.filter(~pl.col("_removed")).drop("_removed")


def erasures(target: Target) -> pl.LazyFrame:
    """Return the offset and time of the newest erasure by user and partition. Reads all files of interactions immediately."""
    # the key determines a user's partition; after partitions were added, only timestamps order events of both partitions
    removed = read_archive(target, "interactions").filter(pl.col("_removed"))
    found = removed.group_by("user_id", "_partition").agg(
        pl.col("_offset").max().alias("_erased"), pl.col("_timestamp").max().alias("_erased_ms")
    )
    return found.collect(engine="streaming").lazy()


def standing_events(
    target: Target, partition: int | None = None, erased: pl.LazyFrame | None = None, people: pl.LazyFrame | None = None
) -> pl.LazyFrame:
    """Return the events that no erasure of their user follows; duplicates, by `event_id`, are removed.

    Ordered by partition and offset. `erased`: result of `erasures`, so that a job computes it once; None: compute it here.
    `people`: a frame of `user_id`, to read only these users' events.
    """
    events = read_archive(target, "interactions", partition).filter(~pl.col("_removed")).drop("_removed")
    if people is not None:
        events = events.join(people.select("user_id"), on="user_id", how="semi")
    erased = erasures(target) if erased is None else erased
    here = erased.select("user_id", "_partition", "_erased")
    clock = erased.group_by("user_id").agg(pl.col("_erased_ms").max())
    events = events.join(here, on=["user_id", "_partition"], how="left").join(clock, on="user_id", how="left")
    offset, timestamp = pl.col("_offset") > pl.col("_erased"), pl.col("_timestamp") > pl.col("_erased_ms")
    kept = events.filter(pl.coalesce(offset, timestamp, pl.lit(value=True))).drop("_erased", "_erased_ms")
    return kept.sort(ORIGIN).unique(["user_id", "event_id"], keep="first", maintain_order=True)


def standing_impressions(
    target: Target,
    partition: int | None = None,
    erased: pl.LazyFrame | None = None,
    columns: Sequence[str | pl.Expr] | None = None,
) -> pl.LazyFrame:
    """Return the shown slates that no erasure of their user follows; duplicates, by `request_id`, are removed.

    Ordered by partition and offset. `erased`: as for `standing_events`. `columns`: columns to read, which must include the ids,
    the origin and `_timestamp`.
    """
    shown = read_archive(target, "impressions", partition)
    shown = shown if columns is None else shown.select(columns)
    erased = erasures(target) if erased is None else erased
    clock = erased.group_by("user_id").agg(pl.col("_erased_ms").max())
    shown = shown.join(clock, on="user_id", how="left")
    kept = shown.filter(pl.col("_erased_ms").is_null() | (pl.col("_timestamp") > pl.col("_erased_ms"))).drop("_erased_ms")
    return kept.sort(ORIGIN).unique(["user_id", "request_id"], keep="first", maintain_order=True)
