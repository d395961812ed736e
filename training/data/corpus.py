"""Sources of training data: a dataset folder, or an archive of the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import polars as pl

from models.archive.files import partitions
from models.archive.standing import erasures, standing_events, standing_items
from models.archive.target import Target, open_target
from models.dataset.bad_rows import place
from models.dataset.folder import EXTENSIONS, Dataset
from models.rules import SHOWN
from schemas.errors import BadDataset
from schemas.records import Interaction, Item
from training.data.events import EventFrame
from training.data.slates.logged import Logged, logged_of
from training.data.table import published

__all__ = ["Corpus", "open_corpus"]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Items, and events in event-time order."""

    name: str
    items: list[Item]
    events: Sequence[Interaction]
    "Events as columns; a row becomes an object on access."
    positive: str
    bad_rows: int = 0
    logged: Logged | None = None
    "Reads logged slates with the actions that followed; None where there are none."
    target: Target | None = None
    "The archive; None for a dataset folder."
    erased: pl.LazyFrame | None = None
    "Result of `erasures` on the archive."
    shown: EventFrame | None = None
    "Impression events in event-time order. They are not part of `events`."
    notes: tuple[str, ...] = ()
    "Notes for readers of the figures: numbers of unusable rows by reason, and keys without effect."

    def until(self, share: float) -> Corpus:
        """The first `share` of the events, and the items published by the last of them."""
        return self.first(int(len(self.events) * share))

    def first(self, n: int) -> Corpus:
        """The first `n` events, and the items published by the last of them."""
        events = self.events[:n]
        return replace(self, events=events, items=published(self.items, events))


def open_corpus(source: str, positive: str | None = None, champions: str | None = None, newest: int = 0) -> Corpus:
    """Read a dataset folder, or an archive (a folder or `s3://bucket/prefix`).

    `positive`: rule over event columns that decides which events are liked. None selects the folder's own rule, or for an
    archive `champions`, the rule of the serving release; without one every event is liked. `newest` limits memory: it keeps
    only that many of the newest events, and as many of the newest impression events. 0 keeps all.

    Raises:
        BadDataset: the source is neither, has no items or no events, lacks a column, or has times in seconds.
    """
    folder = Path(source)
    if "://" not in source and any((folder / f"{name}.{kind}").exists() for name in ("events", "items") for kind in EXTENSIONS):
        return _of_folder(Dataset.open(folder), positive, newest)
    if "://" not in source and not folder.is_dir():
        later = "a worker's archive is there some ten seconds after its first events"
        raise BadDataset("no_folder", f"{source} is neither a dataset folder nor an archive: {later}")
    target = open_target(source)
    erased = erasures(target)
    items, (events, shown) = list(_items(target)), _events(target, newest, erased)
    if not items or not events:
        raise BadDataset(
            "empty", f"{source} holds {len(items)} items and {len(events)} events: is it a dataset folder or an archive?"
        )
    rule = positive or champions or "True"
    logged = logged_of(target, rule, erased)
    return Corpus(folder.name or source, items, events, rule, logged=logged, target=target, erased=erased, shown=shown)


def _of_folder(dataset: Dataset, positive: str | None, newest: int) -> Corpus:
    dataset.check()
    catalogue, (events, shown) = list(dataset.items()), EventFrame.apart(dataset.events(), SHOWN, newest)
    notes, rows = [], dataset.bad_count
    if dataset.bad:
        first = dataset.bad[0]
        notes.append(f"{rows:,} row{'s' * (rows != 1)} cannot be used; the first is {place(first)}: {first.reason}")
    notes += dataset.report.warning_lines()
    if not len(events) or not catalogue:
        what = "item" if not catalogue else "event that is not an impression" if len(shown) else "event"
        raise BadDataset("empty", f"{dataset.folder} holds no {what} that can be used" + "".join(f"; {note}" for note in notes))
    rule = positive or dataset.positive
    return Corpus(dataset.name, catalogue, events, rule, rows, shown=shown, notes=tuple(notes))


def _items(target: Target) -> Iterator[Item]:
    """The current catalogue."""
    names = [field.name for field in fields(Item)]
    for row in standing_items(target).select(names).collect(engine="streaming").iter_rows(named=True):
        known: dict[str, Any] = {**row, "categories": tuple(row["categories"] or ())}
        known["attributes"] = {pair["key"]: pair["value"] for pair in row["attributes"] or ()}
        yield Item(**known)


def _events(target: Target, newest: int, erased: pl.LazyFrame) -> tuple[EventFrame, EventFrame]:
    """Events and impression events, each by event time, then partition and offset. One partition is read at a time."""
    parts = [standing_events(target, n, erased) for n in partitions(target, "interactions")]
    if not newest:
        return EventFrame.collect(parts).split(SHOWN)
    # the limit applies to each kind separately, because one kind may be far more frequent than the other
    is_it = pl.col("action") == SHOWN
    others, its = [part.filter(~is_it) for part in parts], [part.filter(is_it) for part in parts]
    return EventFrame.collect(others, newest), EventFrame.collect(its, newest)
