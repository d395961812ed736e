"""Dataset folders: `items.*`, `events.*`, optional `users.*` and `dataset.toml`."""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from models.dataset.bad_rows import BadRow, Report
from models.dataset.catalogue import image_problem, item_of
from models.dataset.event_prices import median_prices
from models.dataset.fields import event_text, nothing, plain_text, typed
from models.dataset.row_parsing import OPEN_QUOTE, Bad, Row, columns, count, header, in_ms, left_out, readable, rows, schema
from models.rules import SHOWN, PositiveRule
from schemas.errors import BadDataset, BadInput
from schemas.parsing import MAX_TIME_MS, epoch_ms, shown
from schemas.records import Interaction, Item
from schemas.validation import INTERACTION_FIELDS, check_time, interaction_from

__all__ = ["EXTENSIONS", "Dataset"]

EXTENSIONS = ("parquet", "csv", "jsonl")
ROWS_IN_MEMORY = 500_000
"Number of events sorted in memory at once. Larger files are sorted by intervals of time."
SLICES = 4_096
ABOUT = ("name", "positive", "shown")
"Known keys of dataset.toml."
SHOWS = f"action == {SHOWN!r}"
"Default rule for events that only report that an item was shown."
EARLIEST_MS = 10**11
"Epoch ms, in March 1973. If all events are earlier, their times are probably in seconds (which reach this value in 5138)."
JANUARY_MS = 31 * 86_400_000
"Epoch ms of 1970-02-01. Times of the years 1970 to 2054 in seconds, read as milliseconds, lie before it."
REPEATS = (
    "repeats an earlier event (same user, item, action and time, or event_id); "
    "each counts once: where several are meant, give each its own event_id"
)
MEANT = {
    **dict.fromkeys(("amount", "paid", "revenue"), "a price paid belongs in `value`"),
    "price": "a price paid belongs in `value`; items without a price get the median of these",
    **dict.fromkeys(
        ("clicked", "click", "is_click"), "a click belongs in `action`, as a row of its own or in place of the impression"
    ),
    **dict.fromkeys(("rating", "score", "stars"), "a rating belongs in `value`"),
    **dict.fromkeys(("timestamp", "time", "datetime", "date", "ts", "created_at"), "a time belongs in `event_time`"),
    **dict.fromkeys(("event", "event_type", "event_name", "type"), "what was done belongs in `action`"),
}
"Names of event columns that are common elsewhere, each with a hint at the column that is probably meant."


@dataclass(slots=True)
class Dataset:
    """A dataset folder. Invalid rows are skipped; `bad` lists the first 1,000 of them, in file order."""

    folder: Path
    name: str
    positive: str
    "Rule over event columns for liked events; `True` if the folder names none."
    shown: str
    "Rule over event columns for impressions; their action is replaced by `models.rules.SHOWN`."
    _items: Path = field(repr=False)
    _events: Path | None = field(repr=False)
    _users: Path | None = field(default=None, repr=False)
    report: Report = field(default_factory=Report)
    most_rows: int | None = None
    "Number of rows of items, and of events, after which reading ends; None: all are read."
    cut: set[str] = field(default_factory=set)
    "Names of files that have more rows than that, as far as they were read."
    _prices: dict[str, float] | None = field(default=None, repr=False, compare=False)
    "Medians of the prices in events, by item, once they were needed."

    @property
    def bad(self) -> list[BadRow]:
        """The first 1,000 bad rows of the latest passes over items and over events."""
        return self.report.bad

    @property
    def bad_count(self) -> int:
        """Number of bad rows in the latest passes over items and over events."""
        return self.report.bad_count

    @property
    def warned(self) -> list[BadRow]:
        """Problems for which no row is skipped, such as missing images, unknown keys and unused columns."""
        return self.report.warned

    @property
    def warnings(self) -> Counter[str]:
        """Number of warnings by their code in `models.dataset.bad_rows.MANY`."""
        return self.report.warnings

    @property
    def torn(self) -> bool:
        """Whether a quote was not closed, so that the boundaries of rows are a guess."""
        return self.report.bad_of(OPEN_QUOTE) > 0

    @classmethod
    def open(cls, folder: Path, *, events: bool = True) -> Dataset:
        """Find the folder's files. Without `events` the events file is optional.

        Raises:
            BadDataset: the folder does not exist, or a file is missing, unreadable or present in two formats.
        """
        if not folder.is_dir():
            raise BadDataset("no_folder", f"{folder} is not a folder: name the folder that holds items.* and events.*")
        described: dict[str, Any] = {}
        if (about := folder / "dataset.toml").exists():
            try:
                described = tomllib.loads(about.read_text(encoding="utf-8-sig"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
                raise BadDataset("bad_toml", f"{about}: {exc}") from exc
        items, users = _find(folder, "items"), _found(folder, "users")
        found = _find(folder, "events") if events else _found(folder, "events")
        name, positive = str(described.get("name", folder.name)), str(described.get("positive", "True"))
        shown = str(described.get("shown", SHOWS))
        dataset = cls(folder.absolute(), name, positive, shown, items, found, users)
        for key in sorted(set(described) - set(ABOUT)):
            dataset._warn(about, 0, "unknown_key", f"there is no key {key!r}; known: {', '.join(ABOUT)}", None, repr(key))
        return dataset

    def check(self, *, events: bool = True) -> None:
        """Check the files before they are read in full. Without `events` only the items are checked.

        Unused columns of events are warnings; in JSON lines they are searched for in the first 100 lines.

        Raises:
            BadDataset: a file has no rows or lacks a column, a rule is invalid, or all times seem to be in seconds.
        """
        needed: dict[Path, tuple[str, ...]] = {self._items: ("item_id",)}
        if events and self._events is not None:
            needed[self._events] = ("user_id", "item_id", "event_time")
        for file, names in needed.items():
            there = columns(file)
            if next(rows(file), None) is None:
                only = f", only the header {shown(','.join(there))}" if there else ""
                raise BadDataset("empty", f"{file.name} holds no rows{only}")
            for name in names:
                if there and name not in there:
                    raise BadDataset("no_column", f"{file.name} has no column {name}: {header(there)}", name)
            self._look(file, there)
        PositiveRule(self.positive)
        PositiveRule(self.shown, "shown")
        if events and self._events is not None:
            read = islice(rows(self._events), self.most_rows)
            times = (_time(row.get("event_time")) for _, row in read if isinstance(row, dict))
            first = next((time for time in times if time is not None), EARLIEST_MS)
            if first < EARLIEST_MS and all(time is None or time < EARLIEST_MS for time in times):
                raise BadDataset(
                    "seconds",
                    f"every event_time of {self._events.name} lies before March 1973, "
                    f"such as {first}: it looks like seconds; write epoch milliseconds (1,000 times that), or ISO 8601",
                    "event_time",
                )

    def _look(self, file: Path, there: list[str]) -> None:
        """Warn about columns that are not used."""
        self.report.begin_look(file)
        if file == self._items:
            for name, what in left_out(file).items():
                reason = f"column {there.index(name) + 1} is {what}" if not name else f"column {shown(name)} holds {what}"
                self._warn(file, 0, "left_out", f"{reason}, and is left out", name, f"{shown(name)} ({what})")
            return
        for name in (name for name in there if name not in INTERACTION_FIELDS):
            hint = f"; {meant}" if (meant := MEANT.get(name.lower())) else ""
            reason = f"column {shown(name)} is not read{hint}; known: {', '.join(sorted(INTERACTION_FIELDS))}"
            self._warn(file, 0, "unknown_column", reason, name, shown(name))

    @property
    def has_users(self) -> bool:
        """Whether the folder has a file about users."""
        return self._users is not None

    def users(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield (user_id, further columns as text) of each row of `users.*`; nothing without that file.

        Training does not use these columns yet. They are checked so that errors are found early.
        """
        if self._users is None:
            return
        self.report.begin(self._users)
        seen: set[str] = set()
        for row, source in rows(self._users):
            try:
                if isinstance(source, Bad):
                    raise BadInput(source.code, source.reason)
                user_id = typed({"user_id": source.get("user_id")}).get("user_id")
                if isinstance(user_id, int):
                    user_id = str(user_id)
                if not isinstance(user_id, str) or len(user_id) > 256:
                    raise BadInput("missing_field", "user_id is missing, or longer than 256 characters", "user_id")
                if user_id in seen:
                    raise BadInput("repeated_user", f"user_id {user_id!r} is repeated", "user_id")
            except BadInput as exc:
                self._note(self._users, row, exc)
                continue
            seen.add(user_id)
            further = {name: plain_text(value) for name, value in source.items() if name != "user_id" and not nothing(value)}
            yield user_id, {name: text for name, text in further.items() if text}

    def counts(self) -> tuple[int, int]:
        """Return the numbers of rows of items and of events."""
        return count(self._items), 0 if self._events is None else count(self._events)

    def items(self) -> Iterator[Item]:
        """Yield the catalogue entries. Unknown columns become attributes; an image becomes an absolute path or a URL.

        An item without a price gets the median of the prices in its events, if these have a column `price`. Of rows with the
        same `item_id` the first counts. An image that is missing or invalid is dropped with a warning.
        """
        self.report.begin(self._items)
        seen: set[str] = set()
        for row, source in self._rows(self._items):
            try:
                if isinstance(source, Bad):
                    raise BadInput(source.code, source.reason)
                item, nested = item_of(source, self.folder)
                if item.item_id in seen:
                    raise BadInput("repeated_item", f"item_id {shown(item.item_id)} is repeated", "item_id")
            except BadInput as exc:
                self._note(self._items, row, exc)
                continue
            for name in nested:
                reason = f"{shown(name)} is not text, a number, a flag or a list of these, and is left out"
                self._warn(self._items, row, "nested_value", reason, name, shown(name))
            seen.add(item.item_id)
            if item.price is None and self._events is not None and self.most_rows is None:
                if self._prices is None:
                    self._prices = median_prices(self._events)
                item = replace(item, price=self._prices.get(item.item_id))
            yield self._with_image(item, row)

    def _with_image(self, item: Item, row: int) -> Item:
        if item.image is None or "://" in item.image:
            return item
        problem = image_problem(Path(item.image))
        if problem is None:
            return item
        name = str(Path(item.image).relative_to(self.folder.resolve()))
        code, reason = problem
        self._warn(self._items, row, code, f"{reason} {shown(name)}; the item is loaded without one", "image", shown(name))
        return replace(item, image=None)

    def events(self, now_ms: int | None = None) -> Iterator[Interaction]:
        """Yield events in event-time order; events of the same time keep the file's order.

        A missing `event_id` is derived from user, item, action and time, as over HTTP. Of events with the same user, time and
        id the first counts; the others are warnings, `repeated_event`. With `now_ms`, events that lie too far in the future for
        a worker are bad rows.

        Raises:
            BadDataset: the file cannot be read, or has no `event_time`.
        """
        if self._events is None:
            return
        self.report.begin(self._events)
        try:
            yield from self._interactions_of(self._events, now_ms)
        finally:
            order = [self._items.name, self._events.name]
            self.bad.sort(key=lambda bad: (order.index(bad.file) if bad.file in order else len(order), bad.row))

    def _interactions_of(self, file: Path, now_ms: int | None) -> Iterator[Interaction]:
        there = schema(file) if file.suffix == ".parquet" else {}
        if there and "event_time" not in there:
            raise BadDataset("no_column", f"{file.name} has no column event_time: {header(list(there))}", "event_time")
        kind = there.get("event_time")
        if kind is not None and (kind.is_integer() or kind.is_float() or isinstance(kind, pl.Date | pl.Datetime)):
            scan = pl.scan_parquet(file).with_row_index("_row", 1)
            kept = ["_row", *(in_ms(name, kind) for name, kind in there.items() if name in INTERACTION_FIELDS)]
            if self.most_rows is not None and count(file) > self.most_rows:
                self.cut.add(file.name)
                scan = scan.head(self.most_rows)
            yield from self._sorted(file, scan.select(kept).with_columns(_whole(pl.col("event_time")).alias("_time")), now_ms)
            return
        folder = Path(tempfile.mkdtemp(prefix="riffle-events-"))
        try:
            yield from self._sorted(file, self._spill(file, folder), now_ms)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _spill(self, file: Path, folder: Path) -> pl.LazyFrame:
        """Write the events as text columns, with `_row` and `_time`, to Parquet files of bounded size, and scan these."""
        names = sorted(INTERACTION_FIELDS)
        schema = {"_row": pl.Int64, "_time": pl.Int64} | dict.fromkeys(names, pl.String)
        held: list[tuple[Any, ...]] = []
        parts = 0

        def write() -> None:
            pl.DataFrame(held, schema=schema, orient="row").write_parquet(folder / f"{parts:06d}.parquet")
            held.clear()

        for row, source in self._rows(file):
            try:
                if isinstance(source, Bad):
                    raise BadInput(source.code, source.reason)
                texts = [event_text(name, source.get(name)) for name in names]
            except BadInput as exc:
                self._note(file, row, exc)
                continue
            held.append((row, _time(source.get("event_time")), *texts))
            if len(held) >= ROWS_IN_MEMORY // 5:
                write()
                parts += 1
        write()
        return pl.scan_parquet(folder / "*.parquet", glob=True)

    def _sorted(self, file: Path, scan: pl.LazyFrame, now_ms: int | None) -> Iterator[Interaction]:
        with readable(file):
            self._doubt_times(file, scan)
            for bounds in _bounds(scan):
                frame = scan.filter(bounds).sort("_time", "_row", nulls_last=False).collect()
                yield from self._interactions(file, frame, now_ms)

    def _interactions(self, file: Path, frame: pl.DataFrame, now_ms: int | None) -> Iterator[Interaction]:
        now, there, is_shown = -1, set[tuple[str, str]](), self._shows()
        for source in frame.iter_rows(named=True):
            row, time = source.pop("_row"), source.pop("_time")
            if time is not None:
                source["event_time"] = time
            try:
                event = interaction_from(typed(source))
                if now_ms is not None:
                    check_time(event.event_time, now_ms)
            except BadInput as exc:
                self._note(file, row, exc)
                continue
            if event.event_time != now:
                now = event.event_time
                there.clear()
            if (event.user_id, event.event_id) in there:
                self._warn(file, row, "repeated_event", REPEATS)
                continue
            there.add((event.user_id, event.event_id))
            yield replace(event, action=SHOWN) if is_shown is not None and is_shown(event.action, event.value) else event

    def _doubt_times(self, file: Path, scan: pl.LazyFrame) -> None:
        """Warn if most times look like seconds. If all do, `check` raises."""
        time = pl.col("_time")
        early = time < JANUARY_MS
        counts = scan.select(early.sum().alias("n"), time.count().alias("of"), pl.col("_row").filter(early).min())
        n, of, first = counts.collect().row(0)
        if 2 * n > of:
            reason = (
                f"{n:,} of {of:,} times lie in January 1970, this one first: are they seconds? event_time is in milliseconds"
            )
            self._warn(file, first, "january_1970", reason, "event_time")

    def _shows(self) -> PositiveRule | None:
        return None if self.shown == SHOWS else PositiveRule(self.shown, "shown")

    def _rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        """Yield the file's rows, at most `most_rows`."""
        for n, found in enumerate(rows(file, self._doubt(file))):
            if n == self.most_rows:
                self.cut.add(file.name)
                return
            yield found

    def _doubt(self, file: Path) -> Callable[[int, str], None]:
        return lambda line, reason: self._warn(file, line, "unclear_quote", reason)

    def _note(self, file: Path, row: int, exc: BadInput) -> None:
        self.report.note(BadRow(file.name, row, exc.field, exc.message, exc.code))

    def _warn(self, file: Path, row: int, code: str, reason: str, field: str | None = None, about: str = "") -> None:
        self.report.warn(BadRow(file.name, row, field, reason, code, about))


def _time(value: object) -> int | None:
    try:
        return epoch_ms(value)
    except ValueError:
        return None


def _whole(time: pl.Expr) -> pl.Expr:
    """Select whole numbers in 0..2^53 as int64. Others become null; the validation of their events rejects them."""
    whole = pl.when(time == time.floor()).then(time).cast(pl.Int64, strict=False)
    return pl.when(whole.is_between(0, MAX_TIME_MS - 1)).then(whole)


def _bounds(scan: pl.LazyFrame) -> Iterator[pl.Expr]:
    """Yield filters that split the rows by time into parts of about `ROWS_IN_MEMORY`: rows without time first, then by time."""
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


def _found(folder: Path, name: str) -> Path | None:
    found = [path for extension in EXTENSIONS if (path := folder / f"{name}.{extension}").exists()]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise BadDataset("two_files", f"{folder} has both {names}: keep the one that is meant")
    return found[0] if found else None


def _find(folder: Path, name: str) -> Path:
    found = _found(folder, name)
    if found is None:
        others = sorted(path.name for path in folder.iterdir() if path.name.lower().startswith(f"{name}."))
        but = f"; {', '.join(others[:3])} is not read" if others else ""
        raise BadDataset("no_file", f"{folder} has no {name}.parquet, {name}.csv or {name}.jsonl{but}")
    return found
