"""Logged slates as ranking queries, at their position in history, with features as logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.archive.files import partitions
from models.archive.target import Target
from models.features.compute import FEATURES, GENERATIONS
from schemas.errors import BadDataset
from training.data.events import EventFrame
from training.data.slates.examples import ImpressionSettings, made_with, newest_examples, newest_of
from training.data.table import Heads

__all__ = ["Logged", "LoggedSlate", "logged_in", "logged_of", "slates_of"]

Logged = Callable[[int, int, int, Mapping[str, int]], pl.DataFrame]
"Maps (after ms, until ms, largest number of slates, windows) to examples: rows of schema `training_example`."


@dataclass(frozen=True, slots=True)
class LoggedSlate:
    """One slate of c items."""

    place: int
    "Number of training events applied before it was shown."
    user_id: str
    item_ids: Sequence[str]
    features: NDArray[np.float32] | None
    "Logged features `(c, len(FEATURES))`; None where none were logged, then replay computes them."
    labels: NDArray[np.float32]
    "Labels: `(c, heads)`."
    weight: NDArray[np.float32]
    "Weight of each item from propensity and position, see `ImpressionSettings`. 0 where labels are not final."
    shown_ms: int = 0
    "Event time, ms. Only set where no features were logged."
    positions: NDArray[np.int64] | None = None
    "Position of each item, 0 is first, -1 where it is unknown: `(c,)`. Only set where no features were logged."
    traffic: float = 1.0
    "Number of slates that this one stands for, because slates with a like are sampled more often than others."


def logged_of(target: Target, positive: str, erased: pl.LazyFrame) -> Logged:
    """Make a reader of the newest slates of an archive. `erased`: result of `erasures`."""

    def read(after_ms: int, until_ms: int, most: int, windows_ms: Mapping[str, int]) -> pl.DataFrame:
        settings = ImpressionSettings(positive, windows_ms=windows_ms, until_ms=until_ms)
        return newest_examples(target, settings, GENERATIONS, after_ms, most, erased)

    return read


def logged_in(folder: Path, positive: str, windows_s: Mapping[str, float], target: Target, erased: pl.LazyFrame) -> Logged:
    """Make a reader of the newest slates in a folder that `python -m training examples` wrote. It excludes users erased from
    the archive since. `erased`: result of `erasures` on the archive.

    Raises:
        BadDataset: the folder has no such files, or none of a partition of the archive, or they were joined with other
            settings.
    """
    files = sorted(folder.glob("training_example-*.parquet"))
    if not files:
        raise BadDataset("no_examples", f"{folder} holds no examples: write them with riffle examples ARCHIVE --out {folder}")
    windows_ms = {name: round(seconds * 1000) for name, seconds in windows_s.items()}
    settings = ImpressionSettings(positive, windows_ms=windows_ms)
    for file in files:
        made = made_with(file)
        if made is None or _joined(made) != _joined(settings):
            said = "" if made is None else f" by {_joined(made)}"
            message = f"{file} was joined{said}, training uses {_joined(settings)}: write the examples again with these"
            raise BadDataset("other_examples", message)
    if lacking := sorted(set(partitions(target, "impressions")) - {int(file.stem.rpartition("-")[2]) for file in files}):
        message = f"{folder} holds no examples of partition {', '.join(map(str, lacking))} of the archive"
        raise BadDataset("partial_examples", f"{message}: write them with riffle examples ARCHIVE --out {folder}")

    def read(after_ms: int, until_ms: int, most: int, _: Mapping[str, int]) -> pl.DataFrame:
        return newest_of(files, replace(settings, until_ms=until_ms), GENERATIONS, after_ms, most, erased)

    return read


def _joined(settings: ImpressionSettings) -> dict[str, Any]:
    """Settings that determine labels, their windows, and weights of examples."""
    others = {name: window for name, window in sorted(settings.windows_ms.items()) if window != settings.window_ms}
    names = ("positive", "until_ms", "window_ms", "position_bias", "largest_weight")
    return {**{name: getattr(settings, name) for name in names}, "windows_ms": others}


def slates_of(examples: pl.DataFrame, events: EventFrame, heads: Heads) -> list[LoggedSlate]:
    """Slates in order of `place`. Features that a slate's specification lacks are 0, as where a feature is unknown.

    Slates of other specifications, and those whose number of features differs from their specification, are dropped.
    """
    sizes = [(spec, len(columns)) for spec, columns in GENERATIONS.items()]
    whole = [(pl.col("feature_spec") == spec) & (pl.col("features").list.len() == size) for spec, size in sizes]
    examples = examples.filter(pl.any_horizontal(whole))
    if not examples.height:
        return []
    as_of = examples["as_of"].struct
    points = (examples["event_time"], as_of.field("partition"), as_of.field("offset"))
    places = events.places(*(column.cast(pl.Int64).to_numpy() for column in points))
    found = []
    frame = examples.with_columns(pl.Series("_place", places))
    for slate in frame.partition_by("user_id", "request_id", maintain_order=True):
        names = [{pair["key"] for pair in labels} for labels in slate["labels"].to_list()]
        found.append(
            LoggedSlate(
                int(slate["_place"][0]),
                str(slate["user_id"][0]),
                slate["item_id"].to_list(),
                _features(slate),
                np.asarray([[name in mine for name, _ in heads] for mine in names], np.float32),
                slate["weight"].to_numpy(),
            )
        )
    return sorted(found, key=lambda slate: slate.place)


def _features(slate: pl.DataFrame) -> NDArray[np.float32]:
    """A slate's logged features in the columns of this specification: `(c, len(FEATURES))`."""
    found = np.zeros((slate.height, len(FEATURES)), np.float32)
    found[:, GENERATIONS[slate["feature_spec"][0]]] = np.asarray(slate["features"].to_list(), np.float32)
    return found
