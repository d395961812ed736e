"""Dataset folders: `items.*`, `events.*`, optional `users.*` and `dataset.toml`."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.dataset.images import is_image
from models.dataset.rows import IDS, columns, count, rows, time_ms, typed
from models.rules import SHOWN, PositiveRule
from schemas.errors import BadDataset, BadInput, BadItem
from schemas.records import Interaction, Item
from schemas.validation import INTERACTION_FIELDS, ITEM_FIELDS, check_time, event_id_of, interaction_from, item_from

__all__ = ["EXTENSIONS", "BadRow", "Dataset"]

EXTENSIONS = ("parquet", "csv", "jsonl")
KEPT_ROWS = 1_000
ROWS_IN_MEMORY = 500_000
"Events held at once; more are sorted slice of time by slice of time."
SLICES = 4_096
ABOUT = ("name", "positive", "shown")
"Keys of dataset.toml."
SHOWS = f"action == {SHOWN!r}"
"The rule for what was only shown, where the folder names none."
EARLIEST_MS = 10**11
"Epoch milliseconds, in March 1973: where every event is earlier its time is rather in seconds, which reach it in 5138."


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with a row. The first row is number 1; a CSV header does not count; 0 stands for the whole file."""

    file: str
    row: int
    field: str | None
    reason: str


@dataclass(slots=True)
class Dataset:
    """A dataset folder. Rows that break a rule are skipped and noted in `bad` (the first 1,000 of them), in their order."""

    folder: Path
    name: str
    positive: str
    "Rule over event columns that says which events are liked; `True` when the folder names none."
    shown: str
    "Rule that says which events tell that an item was shown; their action is read as `models.rules.SHOWN`."
    _items: Path = field(repr=False)
    _events: Path | None = field(repr=False)
    _users: Path | None = field(default=None, repr=False)
    bad: list[BadRow] = field(default_factory=list)
    warned: list[BadRow] = field(default_factory=list)
    "What costs no row, the first 1,000 of the latest pass: images that are not there, unknown keys, columns that are not read."
    warnings: Counter[str] = field(default_factory=Counter)
    "How many of each: `image_missing`, `not_an_image`, `unknown_key`, `unknown_column`."
    _counts: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def bad_count(self) -> int:
        """Bad rows in the latest pass over items and over events."""
        return self._counts.total()

    @classmethod
    def open(cls, folder: Path, *, events: bool = True) -> Dataset:
        """Find the files; without `events` there need be none.

        Raises:
            BadDataset: there is no such folder, or a file is missing, unreadable or there in two forms.
        """
        if not folder.is_dir():
            raise BadDataset("no_folder", f"{folder} is not a folder")
        described: dict[str, Any] = {}
        if (about := folder / "dataset.toml").exists():
            try:
                described = tomllib.loads(about.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
                raise BadDataset("bad_toml", f"{about}: {exc}") from exc
        items, users = _find(folder, "items"), _found(folder, "users")
        found = _find(folder, "events") if events else _found(folder, "events")
        name, positive = str(described.get("name", folder.name)), str(described.get("positive", "True"))
        shown = str(described.get("shown", SHOWS))
        dataset = cls(folder.absolute(), name, positive, shown, items, found, users)
        for key in sorted(set(described) - set(ABOUT)):
            dataset._warn(about, 0, "unknown_key", f"there is no key {key!r}; known: {', '.join(ABOUT)}")
        return dataset

    def check(self, *, events: bool = True) -> None:
        """What a look into the files tells before they are read whole. Without `events` it looks at the items only.

        A column of events that is not read is a warning; in JSON lines it is looked for in the first 100 of them.

        Raises:
            BadDataset: a file has no rows or lacks a column, the rule for liked events does not fit, or times are in seconds.
        """
        needed: dict[Path, tuple[str, ...]] = {self._items: ("item_id",)}
        if events and self._events is not None:
            needed[self._events] = ("user_id", "item_id", "event_time")
        if self._events is not None:
            self.warned = [warned for warned in self.warned if warned.file != self._events.name]
        del self.warnings["unknown_column"]
        for file, names in needed.items():
            if not count(file):
                raise BadDataset("empty", f"{file.name} holds no rows")
            there = columns(file)
            for name in (name for name in there if file == self._events and name not in INTERACTION_FIELDS):
                reason = f"column {name[:80]!r} is not read; known: {', '.join(sorted(INTERACTION_FIELDS))}"
                self._warn(file, 0, "unknown_column", reason, name)
            for name in names:
                if there and name not in there:
                    raise BadDataset("no_column", f"{file.name} has no column {name}", name)
        PositiveRule(self.positive)
        PositiveRule(self.shown, "shown")
        if events and self._events is not None:
            times = (time_ms(row.get("event_time")) for _, row in rows(self._events) if isinstance(row, dict))
            first = next((time for time in times if time is not None), EARLIEST_MS)
            if first < EARLIEST_MS and all(time is None or time < EARLIEST_MS for time in times):
                raise BadDataset(
                    "seconds",
                    f"every event_time of {self._events.name} lies before March 1973, "
                    f"such as {first}: it looks like seconds; write epoch milliseconds (1,000 times that), or ISO 8601",
                    "event_time",
                )

    @property
    def has_users(self) -> bool:
        """Whether the folder describes its people."""
        return self._users is not None

    def users(self) -> Iterator[tuple[str, dict[str, str]]]:
        """(user_id, further columns as text) of each row of `users.*`; nothing without that file.

        Nothing is learned from these columns yet: they are checked, so that a bad file is known early.
        """
        if self._users is None:
            return
        self._begin(self._users)
        seen: set[str] = set()
        for row, source in rows(self._users):
            try:
                if isinstance(source, str):
                    raise BadInput("invalid_row", source)
                user_id = typed({"user_id": source.get("user_id")}).get("user_id")
                if isinstance(user_id, int):
                    user_id = str(user_id)
                if not isinstance(user_id, str) or len(user_id) > 256:
                    raise BadInput("missing_field", "user_id is missing, or longer than 256 characters", "user_id")
                if user_id in seen:
                    raise BadInput("repeated_user", f"user_id {user_id!r} was there before", "user_id")
            except BadInput as exc:
                self._note(self._users, row, exc)
                continue
            seen.add(user_id)
            yield user_id, {k: _text(v) for k, v in source.items() if k != "user_id" and v not in {None, ""}}

    def counts(self) -> tuple[int, int]:
        """Rows of items and of events."""
        return count(self._items), 0 if self._events is None else count(self._events)

    def items(self) -> Iterator[Item]:
        """The catalogue. Columns beyond the known ones become attributes; an image becomes an absolute path or a URL.

        Of rows with the same `item_id` the first counts. An item whose image is not there, or is none, comes without it:
        see `warned`.
        """
        self._begin(self._items)
        seen: set[str] = set()
        for row, source in rows(self._items):
            try:
                if isinstance(source, str):
                    raise BadItem("invalid_row", source)
                item = self._item(source)
                if item.item_id in seen:
                    raise BadItem("repeated_item", f"item_id {item.item_id!r} was there before", "item_id")
                item = self._with_image(item, row)
            except BadInput as exc:
                self._note(self._items, row, exc)
                continue
            seen.add(item.item_id)
            yield item

    def _item(self, source: dict[str, Any]) -> Item:
        known = typed({name: source[name] for name in ITEM_FIELDS if name != "attributes" and name in source})
        known["attributes"] = {
            name: _text(value)
            for name, value in source.items()
            if (name not in ITEM_FIELDS or name == "attributes") and value is not None and value != ""
        }
        for name in ("title", "text"):
            if isinstance(known.get(name), int | float):
                known[name] = str(known[name])
        categories = known.get("categories")
        if isinstance(categories, str):
            parts = categories.split("|" if "|" in categories else ",")
            known["categories"] = [part.strip() for part in parts if part.strip()]
        elif isinstance(categories, list):
            known["categories"] = [part for part in categories if part not in {None, ""}]
        if image := known.get("image"):
            known["image"] = self._image(str(image))
        return item_from(known)

    def _image(self, image: str) -> str:
        if image.startswith(("http://", "https://", "s3://")):
            return image
        path = (self.folder / image).resolve()
        if "://" in image or "\0" in image or not path.is_relative_to(self.folder.resolve()):
            raise BadItem("image_outside", f"image {image[:200]!r} leads out of the folder", "image")
        return str(path)

    def _with_image(self, item: Item, row: int) -> Item:
        if item.image is None or "://" in item.image:
            return item
        path = Path(item.image)
        shown = path.relative_to(self.folder.resolve())
        if not path.is_file():
            self._warn(self._items, row, "image_missing", f"there is no image {shown}; the item comes without it", "image")
        elif not is_image(path):
            self._warn(self._items, row, "not_an_image", f"{shown} is no image; the item comes without it", "image")
        else:
            return item
        return replace(item, image=None)

    def events(self, now_ms: int | None = None) -> Iterator[Interaction]:
        """Events in event-time order; rows of the same time keep the file's order.

        An event without `event_id` gets one that follows from user, item, action, time and how many the same came before.
        With `now_ms`, those that a worker would refuse for their time when they are produced then are bad rows.

        Raises:
            BadDataset: the file cannot be read, or has no `event_time`.
        """
        if self._events is None:
            return
        self._begin(self._events)
        try:
            yield from self._interactions_of(self._events, now_ms)
        finally:
            order = [self._items.name, self._events.name]
            self.bad.sort(key=lambda bad: (order.index(bad.file) if bad.file in order else len(order), bad.row))

    def _interactions_of(self, file: Path, now_ms: int | None) -> Iterator[Interaction]:
        columns = _types(file)
        if "event_time" not in columns:
            raise BadDataset("no_event_time", f"{file.name} has no column event_time", "event_time")
        if columns["event_time"].is_numeric() or columns["event_time"].is_temporal():
            time = pl.col("event_time")
            if columns["event_time"].is_temporal():
                time = time.cast(pl.Datetime("ms", getattr(columns["event_time"], "time_zone", None))).dt.epoch("ms")
            scan = pl.scan_parquet(file).with_row_index("_row", 1)
            kept = ["_row", *(name for name in columns if name in INTERACTION_FIELDS)]
            yield from self._sorted(file, scan.select(*kept, time.cast(pl.Int64, strict=False).alias("_time")), now_ms)
            return
        folder = Path(tempfile.mkdtemp(prefix="riffle-events-"))
        try:
            yield from self._sorted(file, self._spill(file, folder), now_ms)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _spill(self, file: Path, folder: Path) -> pl.LazyFrame:
        """The events as text columns with `_row` and `_time`, in Parquet files of bounded size."""
        names = sorted(INTERACTION_FIELDS)
        schema = {"_row": pl.Int64, "_time": pl.Int64} | dict.fromkeys(names, pl.String)
        held: list[tuple[Any, ...]] = []
        parts = 0

        def write() -> None:
            pl.DataFrame(held, schema=schema, orient="row").write_parquet(folder / f"{parts:06d}.parquet")
            held.clear()

        for row, source in rows(file):
            try:
                if isinstance(source, str):
                    raise BadInput("invalid_row", source)
                texts = [_plain(name, source.get(name)) for name in names]
            except BadInput as exc:
                self._note(file, row, exc)
                continue
            time = time_ms(source.get("event_time"))
            in_range = time is not None and 0 <= time < 2**53
            held.append((row, time if in_range else None, *texts))
            if len(held) >= ROWS_IN_MEMORY // 5:
                write()
                parts += 1
        write()
        return pl.scan_parquet(folder / "*.parquet", glob=True)

    def _sorted(self, file: Path, scan: pl.LazyFrame, now_ms: int | None) -> Iterator[Interaction]:
        try:
            for bounds in _bounds(scan):
                frame = scan.filter(bounds).sort("_time", "_row", nulls_last=False).collect()
                yield from self._interactions(file, frame, now_ms)
        except (pl.exceptions.PolarsError, OSError) as exc:
            raise BadDataset("unreadable", f"{file}: {exc}") from exc

    def _interactions(self, file: Path, frame: pl.DataFrame, now_ms: int | None) -> Iterator[Interaction]:
        now, same_before, shown = -1, Counter[tuple[str, str, str]](), self._shows()
        for source in frame.iter_rows(named=True):
            row, time = source.pop("_row"), source.pop("_time")
            known = typed(source)
            if time is not None:
                known["event_time"] = time
            try:
                event = interaction_from(known)
                if now_ms is not None:
                    check_time(event.event_time, now_ms)
            except BadInput as exc:
                self._note(file, row, exc)
                continue
            if "event_id" not in known:
                if event.event_time != now:
                    now = event.event_time
                    same_before.clear()
                same = event.user_id, event.item_id, event.action
                event = replace(event, event_id=event_id_of(*same, event.event_time, same_before[same]))
                same_before[same] += 1
            yield replace(event, action=SHOWN) if shown is not None and shown(event.action, event.value) else event

    def _shows(self) -> PositiveRule | None:
        return None if self.shown == SHOWS else PositiveRule(self.shown, "shown")

    def _begin(self, file: Path) -> None:
        self._counts[file.name] = 0
        self.bad = [bad for bad in self.bad if bad.file != file.name]
        if file == self._items:
            self.warned = [warned for warned in self.warned if warned.file != file.name]
            self.warnings -= Counter(image_missing=self.warnings["image_missing"], not_an_image=self.warnings["not_an_image"])

    def _note(self, file: Path, row: int, exc: BadInput) -> None:
        self._counts[file.name] += 1
        if len(self.bad) < KEPT_ROWS:
            self.bad.append(BadRow(file.name, row, exc.field, exc.message))

    def _warn(self, file: Path, row: int, code: str, reason: str, field: str | None = None) -> None:
        self.warnings[code] += 1
        if len(self.warned) < KEPT_ROWS:
            self.warned.append(BadRow(file.name, row, field, reason))


def _types(file: Path) -> dict[str, Any]:
    if file.suffix != ".parquet":
        return {"event_time": pl.String()}
    try:
        return dict(pl.scan_parquet(file).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise BadDataset("unreadable", f"{file}: {exc}") from exc


def _bounds(scan: pl.LazyFrame) -> Iterator[pl.Expr]:
    """Filters that split the rows by time into parts of about `ROWS_IN_MEMORY`, earliest first; those without come first."""
    time = pl.col("_time")
    about = scan.select(time.min().alias("low"), time.max().alias("high"), pl.len().alias("n")).collect().row(0)
    low, high, n = about
    if n <= ROWS_IN_MEMORY or low is None:
        yield pl.lit(value=True)
        return
    width = max(1, -(-(high - low + 1) // SLICES))
    sizes = scan.filter(time.is_not_null()).group_by(((time - low) // width).alias("slice")).len().sort("slice").collect()
    yield time.is_null()
    part = np.cumsum(sizes["len"].to_numpy()) // ROWS_IN_MEMORY
    for _, group in sizes.with_columns(pl.Series("part", part)).group_by("part", maintain_order=True):
        first, last = group["slice"][0], group["slice"][-1]
        yield time.is_between(low + first * width, low + (last + 1) * width - 1)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(entry) for entry in value)
    return str(value)


def _plain(name: str, value: object) -> str | None:
    """A field of an event as text; what a whole file cannot hold in one column must be refused before it becomes text."""
    if value is None:
        return None
    if name in IDS and isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list | tuple | dict) or (name in IDS and isinstance(value, bool | float)):
        raise BadInput("invalid_field", f"{name} must be a string or a whole number", name)
    return str(value)


def _found(folder: Path, name: str) -> Path | None:
    found = [path for extension in EXTENSIONS if (path := folder / f"{name}.{extension}").exists()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise BadDataset("two_files", f"{folder} has both {names}: keep the one that is meant")
    return found[0] if found else None


def _find(folder: Path, name: str) -> Path:
    found = _found(folder, name)
    if found is None:
        raise BadDataset("no_file", f"{folder} has no {name}.parquet, {name}.csv or {name}.jsonl")
    return found
