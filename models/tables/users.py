"""Records of users: events in, rows of bytes changed."""

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
from models.state.rows import UserRecord, hash64
from models.tables.table import Load, Rows, joined
from schemas.columns import ACTION, ITEM, EventColumns

__all__ = ["Applied", "Changed", "ItemsOf", "UserTable", "meetings"]

MISSING = object()
CURRENT = (records.FORMAT, records.LONG)
"Formats of records that the compiled loops change."
GROUP_BYTES = 2 << 20
"Of records that are changed together."
GROWTH = 512
"Bytes by which an event makes a record longer, of which most are not used."
SHOWN_HASH = np.uint64(hash64(SHOWN))


def meetings(events: EventColumns) -> EventColumns:
    """Those of the events that the tables keep: what was only shown (`models.rules.SHOWN`) is left to the archive."""
    shown = events.hashes[ACTION] == SHOWN_HASH
    return events.take(np.flatnonzero(~shown)) if shown.any() else events


@dataclass(slots=True)
class Applied:
    """What applying events did."""

    accepted: NDArray[np.uint8]
    "`(n,)`, 0 for a duplicate."
    item_rows: NDArray[np.int32]
    "`(n,)`: rows of the events' items in the store."
    pairs: NDArray[np.int32]
    "`(m, 2)`: the item whose neighbours grow, and the neighbour, as rows."
    units: NDArray[np.uint64]
    "`(m,)`: co-visitation weights."


@dataclass(slots=True)
class ItemsOf:
    """What events need of the item store as of one moment, and its index: it may grow and change while they are applied."""

    rows: NDArray[np.int32]
    "`(n,)`: rows of the events' items."
    bloom: NDArray[np.int32]
    "`(n, SLICES)`: places of the events' items in a seen-set."
    category_ids: NDArray[np.int32]
    "`(n, CATEGORIES)`: their categories, -1 where there are no more."
    category_hashes: NDArray[np.uint64]
    category_starts: NDArray[np.int64]
    category_texts: NDArray[np.uint8]
    index_keys: NDArray[np.uint64]
    index_rows: NDArray[np.int32]


@dataclass(slots=True)
class Changed:
    """Records that events changed, not yet entered in their table."""

    rows: dict[bytes, bytes]
    grown: int
    "Bytes that they take more of memory than those they replace there."
    applied: Applied


def _groups(rows: Sequence[bytes | None], bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of persons whose records are changed together: what that takes stays small, however long records are."""
    sizes = np.fromiter((len(row or b"") for row in rows), np.int64, len(rows)) + GROWTH * np.diff(bounds)
    cuts = [0, *(np.flatnonzero(np.diff(np.cumsum(sizes) // GROUP_BYTES)) + 1).tolist(), len(rows)]
    yield from pairwise(cuts)


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
    """Persons' records after their events, joined, where each starts and the last ends, and the number of co-visits."""
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
    """Records of people as bytes."""

    def __init__(self, items: ItemStore, load: Load) -> None:
        super().__init__(load)
        self._items = items
        self._reading_earlier = threading.Lock()
        self._earlier = np.zeros((0, len(earlier_positions(""))), np.int32)
        "Positions of the catalogue's items in earlier seen-sets, as far as such were met."

    def __len__(self) -> int:
        return len(self._rows)

    def apply(self, events: EventColumns) -> Applied:
        """Apply events, in stream order, to the records of their users.

        Events whose `event_id` is within their user's kept window are dropped as duplicates. The same events in the same
        order, in whatever chunks, leave the same bytes.
        """
        return self.enter(self.change(events, self.look_up(events)))

    def look_up(self, events: EventColumns) -> ItemsOf:
        """The first third of `apply`, which may enter items: in the thread that the item store belongs to."""
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
        """The second third, nearly all of the work: in any thread, while nothing else changes this table."""
        n = len(events)
        codes: dict[bytes, int] = {}
        who = np.fromiter([codes.setdefault(user, len(codes)) for user in events.users], np.int64, n)
        order = np.argsort(who, kind="stable")
        bounds = np.searchsorted(who[order], np.arange(len(codes) + 1))
        users = list(codes)
        rows, held = self._get(users)
        accepted = np.zeros(n, np.uint8)
        pairs, units = np.empty((2 * records.WINDOW * n, 2), np.int32), np.empty(2 * records.WINDOW * n, np.uint64)
        made, size, made_rows = 0, 0, dict[bytes, bytes]()
        for low, high in _groups(rows, bounds):
            old, found = [row or b"" for row in rows[low:high]], (accepted, pairs[made:], units[made:])
            new, starts, more = _changed(events, of, order, bounds[low : high + 1], old, *found)
            made_rows.update({users[low + k]: new[starts[k] : starts[k + 1]] for k in range(high - low)})
            made, size = made + more, size + len(new)
        return Changed(made_rows, size - held, Applied(accepted, of.rows, pairs[:made], units[:made]))

    def enter(self, changed: Changed) -> Applied:
        """The last third: from here on `lookup` and `take` see what was changed."""
        self.held += changed.grown
        self._rows.update(changed.rows)
        self._dirty.update(changed.rows)
        return changed.applied

    def _get(self, users: Sequence[bytes]) -> tuple[list[bytes | None], int]:
        """Rows of users, and the bytes of those that were in memory."""
        held = self._rows.get
        found: list[bytes | object | None] = [held(user, MISSING) for user in users]
        missing = [n for n, row in enumerate(found) if row is MISSING]
        size = sum(len(row) for row in found if type(row) is bytes)
        for n, row in zip(missing, self._load([users[n] for n in missing]) if missing else (), strict=True):
            # an older format is brought up to date when it is read
            found[n] = self._current(row).encode() if row and row[0] not in CURRENT else row
        return found, size  # type: ignore[return-value]

    def erase(self, user: bytes) -> None:
        """Forget a person; the next `take` says so."""
        self.held -= len(self._rows.get(user) or b"")
        self._rows[user] = None
        self._dirty.add(user)

    def lookup(self, users: Sequence[str]) -> list[UserRecord | None]:
        """Records of people, None for a person never heard of."""
        keys = [user.encode() for user in users]
        missing = [key for key in keys if key not in self._rows]
        stored = dict(zip(missing, self._load(missing), strict=True)) if missing else {}
        found = [self._rows[key] if key in self._rows else stored[key] for key in keys]
        return [self._current(row) if row else None for row in found]

    def _current(self, row: bytes) -> UserRecord:
        """A record of any format as today's. Of an earlier seen-set those items are kept that the catalogue knows."""
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
        """Rows changed since the last `take`."""
        return len(self._dirty)

    def take(self) -> dict[bytes, bytes | None]:
        """Rows changed since the last call; None where a person was erased."""
        return self._taken()
