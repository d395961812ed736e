"""Dataset folders: `items.*`, `events.*`, optional `users.*` and `dataset.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from schemas.errors import BadDataset, BadInput
from schemas.records import Interaction, Item
from schemas.validation import INTERACTION_FIELDS, ITEM_FIELDS, event_id_of, interaction_from, item_from

__all__ = ["BadRow", "Dataset"]

EXTENSIONS = ("parquet", "csv", "jsonl")
ROWS_PER_SLICE = 20_000
KEPT_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. `row` counts from 0."""

    file: str
    row: int
    field: str | None
    reason: str


@dataclass(slots=True)
class Dataset:
    """A dataset folder. Rows that break a rule are skipped and noted in `bad` (the first 1,000 of them)."""

    folder: Path
    name: str
    positive: str
    "Rule over event columns that says which events are liked; `True` when the folder names none."
    _items: Path = field(repr=False)
    _events: Path = field(repr=False)
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Find the files.

        Raises:
            BadDataset: there is no such folder, or a file is missing or unreadable.
        """
        if not folder.is_dir():
            raise BadDataset("no_folder", f"{folder} is not a folder")
        described: dict[str, Any] = {}
        if (about := folder / "dataset.toml").exists():
            try:
                described = tomllib.loads(about.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
                raise BadDataset("bad_toml", f"{about}: {exc}") from exc
        return cls(
            folder.absolute(),
            str(described.get("name", folder.name)),
            str(described.get("positive", "True")),
            _find(folder, "items"),
            _find(folder, "events"),
        )

    def counts(self) -> tuple[int, int]:
        """Rows of items and of events."""
        return _scan(self._items).select(pl.len()).collect().item(), _scan(self._events).select(pl.len()).collect().item()

    def items(self) -> Iterator[Item]:
        """The catalogue. Columns beyond the known ones become attributes; an image becomes an absolute path or a URL."""
        for row, source in _rows(_scan(self._items), self._items):
            known = {name: source[name] for name in ITEM_FIELDS if source.get(name) is not None}
            known["attributes"] = {
                name: value
                for name, value in source.items()
                if name not in ITEM_FIELDS and isinstance(value, str | int | float | bool)
            }
            try:
                categories = known.get("categories")
                if isinstance(categories, str):
                    known["categories"] = [c.strip() for c in categories.replace("|", ",").split(",") if c.strip()]
                if image := known.get("image"):
                    known["image"] = self._image(str(image))
                yield item_from(_plain(known))
            except BadInput as exc:
                self._note(self._items, row, exc)

    def _image(self, image: str) -> str:
        if image.startswith(("http://", "https://", "s3://")):
            return image
        path = (self.folder / image).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise BadDataset("image_outside", f"image {image!r} leads out of the folder", "image")
        return str(path)

    def events(self) -> Iterator[Interaction]:
        """Events in event-time order; rows of the same time keep the file's order."""
        scan = _scan(self._events)
        columns = scan.collect_schema()
        if "event_time" not in columns:
            raise BadDataset("no_event_time", f"{self._events} has no column event_time", "event_time")
        if columns["event_time"] == pl.String:
            parsed = pl.col("event_time").str.to_datetime(strict=False, time_zone="UTC").dt.epoch("ms")
            scan = scan.with_columns(pl.coalesce(parsed, pl.col("event_time").cast(pl.Int64, strict=False)))
        elif columns["event_time"].is_temporal():
            scan = scan.with_columns(pl.col("event_time").dt.epoch("ms"))
        scan = scan.sort("event_time", maintain_order=True, nulls_last=True)
        occurrences: dict[tuple[str, str, str, int], int] = {}
        for row, source in _rows(scan, self._events):
            known = {name: source[name] for name in INTERACTION_FIELDS if source.get(name) is not None}
            try:
                event = interaction_from(_plain(known))
            except BadInput as exc:
                self._note(self._events, row, exc)
                continue
            if "event_id" not in known:
                same = (event.user_id, event.item_id, event.action, event.event_time)
                count = occurrences[same] = occurrences.get(same, -1) + 1
                known["event_id"] = event_id_of(*same, count)
                event = interaction_from(_plain(known))
            yield event

    def _note(self, file: Path, row: int, exc: BadInput) -> None:
        self.bad_count += 1
        if len(self.bad) < KEPT_ROWS:
            self.bad.append(BadRow(file.name, row, exc.field, exc.message))


def _find(folder: Path, name: str) -> Path:
    for extension in EXTENSIONS:
        if (path := folder / f"{name}.{extension}").exists():
            return path
    raise BadDataset("no_file", f"{folder} has no {name}.parquet, {name}.csv or {name}.jsonl")


def _scan(path: Path) -> pl.LazyFrame:
    if path.suffix == ".parquet":
        return pl.scan_parquet(path)
    if path.suffix == ".csv":
        return pl.scan_csv(path, infer_schema_length=10_000)
    return pl.scan_ndjson(path, infer_schema_length=10_000)


def _rows(scan: pl.LazyFrame, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        frame = scan.collect()
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise BadDataset("unreadable", f"{path}: {exc}") from exc
    for start in range(0, len(frame), ROWS_PER_SLICE):
        for n, row in enumerate(frame.slice(start, ROWS_PER_SLICE).iter_rows(named=True)):
            yield start + n, row


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON would have them: times as ISO text, ids that are numbers stay numbers."""
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in source.items()}
