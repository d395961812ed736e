"""User records as rows of bytes: applies events to them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.rules import SHOWN
from models.state.bloom import earlier_positions
from models.state.kernels import user_rows as records
from models.state.kernels.user_columns import changeable
from models.state.rows import UserRecord, hash64
from models.state.users import Users
from models.tables.table import Load, Rows, joined
from schemas.columns import ACTION, ITEM, EventColumns
from schemas.errors import StoreCorrupt

__all__ = ["Applied", "Changed", "ItemsOf", "UserTable", "interactions_only"]

MISSING = object()
CURRENT = (records.FORMAT, records.LONG)
"Record formats that the compiled loops can change."
GROUP_BYTES = 2 << 20
"Size of a group of records that are changed together, in bytes."
GROWTH = 512
"Bytes reserved per event for the growth of a record; most events use less."
SHOWN_HASH = np.uint64(hash64(SHOWN))


def interactions_only(events: EventColumns) -> EventColumns:
    """Select the interactions, which the tables keep; impressions (`models.rules.SHOWN`) go to the archive only."""
    shown = events.hashes[ACTION] == SHOWN_HASH
    return events.take(np.flatnonzero(~shown)) if shown.any() else events


@dataclass(slots=True)
class Applied:
    """The result of applying n events, with m co-visits."""

    accepted: NDArray[np.uint8]
    "1 for an applied event, 0 for a duplicate `(n,)`."
    item_rows: NDArray[np.int32]
    "Rows of the events' items in the store `(n,)`."
    pairs: NDArray[np.int32]
    "Rows of the item that gains a neighbour, and of the neighbour `(m, 2)`."
    units: NDArray[np.uint64]
    "Co-visitation weights `(m,)`."


@dataclass(slots=True)
class ItemsOf:
    """A snapshot of the item store's columns and index for n events, because the store may change while they are applied."""

    rows: NDArray[np.int32]
    "Rows of the events' items `(n,)`."
    bloom: NDArray[np.int32]
    "Bit positions of the events' items in a seen-set `(n, SLICES)`."
    category_ids: NDArray[np.int32]
    "Categories of the items, padded with -1 `(n, CATEGORIES)`."
    category_hashes: NDArray[np.uint64]
    category_starts: NDArray[np.int64]
    category_texts: NDArray[np.uint8]
    index_keys: NDArray[np.uint64]
    index_rows: NDArray[np.int32]


@dataclass(slots=True)
class Changed:
    """Records that events changed, before they are entered in the table."""

    rows: dict[bytes, bytes]
    grown: int
    "Growth of the table's memory, in bytes."
    applied: Applied
    damaged: Sequence[bytes] = ()
    "Users whose stored record cannot be read. Their new record begins with these events."


def _groups(rows: Sequence[bytes | None], bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield ranges of users whose records are changed together, so that memory use is bounded however long records are."""
    sizes = np.fromiter((len(row or b"") for row in rows), np.int64, len(rows)) + GROWTH * np.diff(bounds)
    cuts = [0, *(np.flatnonzero(np.diff(np.cumsum(sizes) // GROUP_BYTES)) + 1).tolist(), len(rows)]
    yield from pairwise(cuts)


def _unreadable(rows: Sequence[bytes | None], loaded: Sequence[int]) -> list[int]:
    """Return which of the `loaded` rows the compiled loops must not read, because they would read beyond its end."""
    cut = [n for n in loaded if len(rows[n] or b"") % 8]
    whole = [n for n in loaded if len(rows[n] or b"") % 8 == 0]
    sound = changeable(*joined([rows[n] or b"" for n in whole]))
    return sorted([*cut, *(n for n, good in zip(whole, sound.tolist(), strict=True) if not good)])


def _changed(
    events: EventColumns,
    of: ItemsOf,
    order: NDArray[np.int64],
    bounds: NDArray[np.int64],
    rows: Sequence[bytes],
    accepted: NDArray[np.uint8],
    pairs: NDArray[np.int32],
    units: NDArray[np.uint64],
) -> tuple[bytes, list[int], int]:
    """Apply the users' events; returns their new records joined, each start and the last end, and the number of co-visits."""
    old, old_starts = joined(rows)
    starts = np.zeros(len(rows) + 1, np.int64)
    size = len(old) + GROWTH * int(bounds[-1] - bounds[0]) + 1024
    while True:
        new = np.empty(size // 8, np.uint64).view(np.uint8)
        made = records.apply_records(
            order,
            bounds,
            events.data,
            events.starts,
            events.lengths,
            events.hashes,
            events.event_time,
            events.value,
            of.rows,
            of.bloom,
            of.category_ids,
            of.category_hashes,
            of.category_starts,
            of.category_texts,
            of.index_keys,
            of.index_rows,
            old,
            old_starts,
            new,
            starts,
            accepted,
            pairs,
            units,
        )
        if made >= 0:
            return new[: starts[-1]].tobytes(), starts.tolist(), int(made)
        size *= 2
        accepted[order[bounds[0] : bounds[-1]]] = 0


class UserTable(Rows):
    """User records as bytes."""

    def __init__(self, items: ItemStore, load: Load) -> None:
        super().__init__(load)
        self._items = items
        self._reading_earlier = threading.Lock()
        self._earlier = np.zeros((0, len(earlier_positions(""))), np.int32)
        "Positions of the catalogue's items in seen-sets of the earlier format; computed when a record has one."

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, events: EventColumns) -> Applied:
        """Apply events, in stream order, to the records of their users.

        Events whose `event_id` is within their user's kept window are dropped as duplicates. The same events in the same
        order give the same bytes, however they are chunked.
        """
        return self.enter(self.change(events, self.items_of(events)))

    def items_of(self, events: EventColumns) -> ItemsOf:
        """Run the first step of `apply`, in the item store's thread because it may add items."""
        items = self._items
        rows = items.index.find_many(np.ascontiguousarray(events.hashes[ITEM]))
        for e in np.flatnonzero(rows < 0).tolist():
            rows[e] = items.row_for(events.text(ITEM, e))
        return ItemsOf(
            rows,
            items.bloom[rows],
            items.category_ids[rows],
            items.category_hashes,
            items.category_starts,
            items.category_texts,
            *items.index.table,
        )

    def change(self, events: EventColumns, of: ItemsOf) -> Changed:
        """Run the second step, nearly all of the work. Any thread may call it while nothing else changes this table."""
        n = len(events)
        codes: dict[bytes, int] = {}
        who = np.fromiter([codes.setdefault(user, len(codes)) for user in events.users], np.int64, n)
        order = np.argsort(who, kind="stable")
        bounds = np.searchsorted(who[order], np.arange(len(codes) + 1))
        users = list(codes)
        rows, held, loaded = self._get(users, forgiving=True)
        damaged = _unreadable(rows, loaded)
        for at in damaged:
            rows[at] = None
        accepted = np.zeros(n, np.uint8)
        pairs, units = np.empty((2 * records.WINDOW * n, 2), np.int32), np.empty(2 * records.WINDOW * n, np.uint64)
        made, size, made_rows = 0, 0, dict[bytes, bytes]()
        for low, high in _groups(rows, bounds):
            old, found = [row or b"" for row in rows[low:high]], (accepted, pairs[made:], units[made:])
            new, starts, more = _changed(events, of, order, bounds[low : high + 1], old, *found)
            made_rows.update({users[low + k]: new[starts[k] : starts[k + 1]] for k in range(high - low)})
            made, size = made + more, size + len(new)
        applied = Applied(accepted, of.rows, pairs[:made], units[:made])
        return Changed(made_rows, size - held, applied, [users[at] for at in damaged])

    def enter(self, changed: Changed) -> Applied:
        """Run the last step, after which `lookup` and `take` return the changed records."""
        self.held += changed.grown
        self._rows.update(changed.rows)
        self._dirty.update(changed.rows)
        return changed.applied

    def _get(self, users: Sequence[bytes], *, forgiving: bool = False) -> tuple[list[bytes | None], int, list[int]]:
        """Return the rows of users, the size in bytes of those that were in memory, and the indices of all others.

        `forgiving`: a row that cannot be converted from an older format is returned as it is.

        Raises:
            StoreCorrupt: a row that cannot be converted, unless `forgiving`.
        """
        held = self._rows.get
        found: list[bytes | object | None] = [held(user, MISSING) for user in users]
        missing = [n for n, row in enumerate(found) if row is MISSING]
        size = sum(len(row) for row in found if type(row) is bytes)
        for n, row in zip(missing, self._load([users[n] for n in missing]) if missing else (), strict=True):
            # records of an older format are converted when they are read
            try:
                found[n] = self._current(row).encode() if row and row[0] not in CURRENT else row
            except StoreCorrupt:
                if not forgiving:
                    raise
                found[n] = row
        return found, size, missing  # type: ignore[return-value]

    def erase(self, user: bytes) -> None:
        """Erase a user; the next `take` returns None for the key."""
        self.held -= len(self._rows.get(user) or b"")
        self._rows[user] = None
        self._dirty.add(user)

    def erased(self, user: bytes) -> bool:
        """Return whether the user is erased in memory; the row on disk may still exist until the next flush is done."""
        return self._rows.get(user, MISSING) is None

    def lookup(self, users: Sequence[str]) -> list[UserRecord | None]:
        """Return the records of users, None for an unknown user."""
        keys = [user.encode() for user in users]
        missing = [key for key in keys if key not in self._rows]
        stored = dict(zip(missing, self._load(missing), strict=True)) if missing else {}
        found = [self._rows[key] if key in self._rows else stored[key] for key in keys]
        return [self._current(row) if row else None for row in found]

    def columns(self, users: Sequence[str]) -> Users:
        """Return the records of a batch of users as columns, in the order of `users`.

        Raises:
            StoreCorrupt: a stored record that cannot be read.
        """
        return Users.read(self.rows(users))

    def rows(self, users: Sequence[str]) -> list[bytes | None]:
        """Return the records of users as rows that `Users.read` reads, None for an unknown user.

        Raises:
            StoreCorrupt: a stored record of an older format that cannot be read.
        """
        rows, _, _ = self._get([user.encode() for user in users])
        return [row or None for row in rows]

    def _current(self, row: bytes) -> UserRecord:
        """Decode a record of any format to the current one. From an earlier seen-set only items in the store are kept."""
        record = UserRecord.decode(row)
        if record.earlier is None:
            return record
        with self._reading_earlier:
            ids = self._items.ids
            if len(self._earlier) < len(ids):
                more = [earlier_positions(item_id) for item_id in ids[len(self._earlier) :]]
                self._earlier = np.concatenate([self._earlier, np.stack(more)])
            for item_id in record.earlier.held(ids, self._earlier[: len(ids)]):
                record.seen.add(item_id)
            record.earlier = None
        return record

    @property
    def changed(self) -> int:
        """Number of rows changed since the last `take`."""
        return len(self._dirty)

    def take(self) -> dict[bytes, bytes | None]:
        """Return the rows changed since the last call; None for an erased user."""
        return self._taken()
