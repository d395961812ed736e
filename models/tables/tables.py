"""The tables that a partition of the stream keeps: columns in, rows of bytes changed. No Kafka and no disk in here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.rules import SHOWN
from models.state.bloom import earlier_positions
from models.state.kernels import covisits, statistics
from models.state.kernels import user_rows as records
from models.state.rows import ItemStatRow, NeighbourRow, UserRecord, hash64
from schemas.columns import ACTION, ITEM, EventColumns

__all__ = ["Applied", "CovisitSums", "Increments", "NeighbourTable", "StatisticsTable", "UserTable", "meetings"]

Load = Callable[[Sequence[bytes]], Sequence[bytes | None]]
"Stored rows of keys, None where there is none."
MISSING = object()
SUMMED = 1 << 14
"Places of pairs whose co-visits are summed before they are sent: 256 kB."
WAITING_PAIRS = 1 << 20
"Increments that wait to be merged into rows, at most: 16 MB."
CURRENT = (records.FORMAT, records.LONG)
"Formats of records that the compiled loops change."
GROUP_BYTES = 2 << 20
"Of records that are changed together."
GROWTH = 512
"Bytes by which an event makes a record longer, of which most are not used."
SHOWN_HASH = np.uint64(hash64(SHOWN))
ACTIONS = 64
"Distinct actions counted in one source partition; further ones count as `other`."


def meetings(events: EventColumns) -> EventColumns:
    """Those of the events that the tables keep: what was only shown (`models.rules.SHOWN`) is left to the archive."""
    shown = events.hashes[ACTION] == SHOWN_HASH
    return events.take(np.flatnonzero(~shown)) if shown.any() else events


def _joined(rows: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=starts[1:])
    return np.frombuffer(b"".join(rows), np.uint8), starts


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
    old, old_starts = _joined(rows)
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


class _Rows:
    """Rows in memory: those changed since they were last taken, and a cache of others."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._rows: dict[bytes, bytes | None] = {}
        self._dirty: set[bytes] = set()
        self.held = 0
        "Bytes of all rows in memory."

    def _taken(self) -> dict[bytes, bytes | None]:
        taken = {key: self._rows[key] for key in self._dirty}
        self._dirty = set()
        return taken

    def trim(self, most: int, most_bytes: int) -> None:
        """Drop clean rows, those first that came first, until no more than `most` are left with `most_bytes`, or none."""
        excess, over = len(self._rows) - most, self.held - most_bytes
        if excess <= 0 and over <= 0:
            return
        dropped = []
        for key, row in self._rows.items():
            if excess <= 0 and over <= 0:
                break
            if key not in self._dirty:
                dropped.append(key)
                excess, over = excess - 1, over - len(row or b"")
        for key in dropped:
            self.held -= len(self._rows.pop(key) or b"")


class UserTable(_Rows):
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


class StatisticsTable:
    """Statistics of all items over one source partition: columns over item rows of the store."""

    def __init__(self, items: ItemStore) -> None:
        self._items = items
        self._names: list[str] = []
        self._slots: dict[int, int] = {}
        self._next = 0
        "The row from which `unpublished` goes on."
        self._columns(1024, 4)

    def _columns(self, capacity: int, actions: int) -> None:
        self._counts = np.zeros((capacity, actions), np.int64)
        self._value_sum, self._popularity = np.zeros(capacity), np.zeros(capacity)
        self._value_count, self._updated = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self._first = np.zeros(capacity, np.int64)
        self._dirty, self._unpublished = np.zeros(capacity, np.uint8), np.zeros(capacity, np.uint8)

    def _fit(self) -> None:
        rows, actions = self._counts.shape
        more = max(rows, len(self._items.available)), max(actions, 2 * len(self._names))
        if more[0] > rows or len(self._names) > actions:
            old = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
            self._columns(*more)
            for name, value in old.items():
                getattr(self, name)[tuple(slice(0, n) for n in value.shape)] = value

    def _slot(self, name: str) -> int:
        code = hash64(name)
        slot = self._slots.get(code)
        if slot is None:
            if len(self._names) - ("other" in self._names) >= ACTIONS and name != "other":
                return self._slot("other")
            slot = self._slots[code] = len(self._names)
            self._names.append(name)
        return slot

    def put(self, item_id: str, stats: ItemStatRow) -> None:
        """Enter a stored row."""
        row = self._items.row_for(item_id)
        slots = [self._slot(name) for name in stats.counts]
        self._fit()
        for slot, count in zip(slots, stats.counts.values(), strict=True):
            self._counts[row, slot] += count
        self._value_sum[row], self._value_count[row] = stats.value_sum, stats.value_count
        self._popularity[row], self._updated[row], self._first[row] = stats.popularity, stats.updated_ms, stats.first_ms
        self._unpublished[row] = 1

    def get(self, row: int) -> ItemStatRow:
        """Statistics of the item in `row`."""
        counts = {name: n for name, n in zip(self._names, self._counts[row].tolist(), strict=False) if n}
        return ItemStatRow(
            counts,
            float(self._value_sum[row]),
            int(self._value_count[row]),
            float(self._popularity[row]),
            int(self._updated[row]),
            int(self._first[row]),
        )

    def apply(self, events: EventColumns, applied: Applied) -> None:
        """Count accepted events."""
        codes, where, inverse = np.unique(events.hashes[ACTION], return_index=True, return_inverse=True)
        known = [
            slot if (slot := self._slots.get(code)) is not None else self._slot(events.text(ACTION, e))
            for code, e in zip(codes.tolist(), where.tolist(), strict=True)
        ]
        self._fit()
        statistics.count_events(
            applied.item_rows,
            np.asarray(known, np.int64)[inverse.reshape(-1)],
            events.event_time,
            events.value,
            applied.accepted,
            self._counts,
            self._value_sum,
            self._value_count,
            self._popularity,
            self._updated,
            self._first,
            self._dirty,
        )

    def take(self) -> dict[str, bytes]:
        """Rows changed since the last call, by item id."""
        rows = np.flatnonzero(self._dirty)
        self._unpublished[rows] = 1
        self._dirty[:] = 0
        texts = [name.encode() for name in self._names]
        starts = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=starts[1:])
        hashes = np.asarray([hash64(name) for name in self._names], np.uint64)
        size = len(rows) * (statistics.HEAD + 8 + 10 * len(texts) + int(starts[-1]) + 8)
        out, ends = np.zeros(size // 8 + 1, np.uint64).view(np.uint8), np.zeros(len(rows) + 1, np.int64)
        statistics.write_rows(
            rows,
            np.argsort(hashes),
            starts,
            np.frombuffer(b"".join(texts), np.uint8),
            self._counts,
            self._value_sum,
            self._value_count,
            self._popularity,
            self._updated,
            self._first,
            out,
            ends,
        )
        data, cuts, ids = out[: ends[-1]].tobytes(), ends.tolist(), self._items.ids
        return {ids[row]: data[cuts[k] : cuts[k + 1]] for k, row in enumerate(rows.tolist())}

    def unpublished(self, most: int) -> list[int]:
        """At most `most` rows that changed since they were last returned here; in turn, so that every row has its turn."""
        waiting = np.flatnonzero(self._unpublished)
        rows = np.roll(waiting, -int(waiting.searchsorted(self._next)))[:most]
        self._unpublished[rows] = 0
        if len(rows):
            self._next = int(rows[-1]) + 1
        return [int(row) for row in rows]

    def show(self, partition: int) -> None:
        """Copy what changed since `take` last ran into the store's columns of `partition`."""
        self._fit()
        rows = np.flatnonzero(self._dirty)
        if not len(rows):
            return
        store = self._items
        store.popularity[rows, partition] = self._popularity[rows]
        store.popularity_ms[rows, partition] = self._updated[rows]
        store.events[rows, partition] = self._counts[rows].sum(axis=1)
        store.value_sum[rows, partition] = self._value_sum[rows]
        store.value_count[rows, partition] = self._value_count[rows]
        for slot, name in enumerate(self._names):
            if (shared := store.action_slot(name)) >= 0:
                store.actions[rows, partition, shared] = self._counts[rows, slot]
        first = store.first_ms[rows]
        store.first_ms[rows] = np.where(first > 0, np.minimum(first, self._first[rows]), self._first[rows])
        store.stream_time_ms = max(store.stream_time_ms, int(self._updated[rows].max()))


@dataclass(slots=True)
class Increments:
    """Co-visitation increments of m items, p in all; the columns of a covisits record."""

    items: NDArray[np.uint64]
    "`hash64` of the items `(m,)`."
    ends: NDArray[np.int64]
    "Where each item's increments end `(m,)`."
    others: NDArray[np.uint64]
    "`hash64` of the neighbours `(p,)`."
    units: NDArray[np.uint64]
    "Weights in units of `models.state.kernels.user_rows.UNIT` `(p,)`."


class CovisitSums:
    """Co-visits of pairs of items until they are sent: what comes often summed, the rest one by one."""

    def __init__(self, items: ItemStore) -> None:
        self._items = items
        self._clear(4096)

    def _clear(self, room: int) -> None:
        self._keys, self._sums = np.zeros(SUMMED, np.uint64), np.zeros(SUMMED, np.uint64)
        self._more_keys, self._more_sums = np.empty(room, np.uint64), np.empty(room, np.uint64)
        self._size = 0

    @property
    def waiting(self) -> int:
        """Pairs to be sent, beside those that are summed."""
        return self._size

    def add(self, applied: Applied) -> None:
        """Add what applying events brought."""
        count = len(applied.units)
        while len(self._more_keys) < self._size + count:
            self._more_keys, self._more_sums = (np.concatenate([kept, kept]) for kept in (self._more_keys, self._more_sums))
        self._size = covisits.add_pairs(
            applied.pairs, applied.units, count, self._keys, self._sums, self._more_keys, self._more_sums, self._size
        )

    def hashes(self) -> NDArray[np.uint64]:
        """Of all items so far, for `take`; in the thread that the item store belongs to, after the last `add`."""
        return self._items.hashes[: len(self._items)]

    def take(self, partitions: int, hashes: NDArray[np.uint64], most: int = 16_000) -> Iterator[tuple[int, Increments]]:
        """The sums since the last call as (owner partition, increments), at most `most` items and as many pairs each.

        An item with more pairs is in several. In any thread, while nothing else changes this table.
        """
        held = self._sums != 0
        keys = np.concatenate([self._more_keys[: self._size], self._keys[held]])
        sums = np.concatenate([self._more_sums[: self._size], self._sums[held]])
        # as much room as was needed now: to grow to it again costs more
        room = len(self._more_keys)
        self._clear(room // 2 if room > 4096 and self._size < room // 8 else room)
        owners, items, ends, others, units = covisits.grouped(keys, sums, hashes, partitions)
        for owner in range(partitions):
            low, high = np.searchsorted(owners, [owner, owner + 1]).tolist()
            at = int(ends[low - 1]) if low else 0
            while low < high:
                stop = min(high, low + most, int(np.searchsorted(ends, at + most, side="right")))
                end = int(ends[stop - 1]) if stop > low else at + most
                upto = max(stop, low + 1)
                yield owner, Increments(items[low:upto], np.minimum(ends[low:upto], end) - at, others[at:end], units[at:end])
                low, at = stop, end


class NeighbourTable(_Rows):
    """Neighbours of items as bytes. Keys: hashes, 8 bytes.

    Increments wait until rows are asked for: an item's row is long, and most increments bring few neighbours to many items.
    """

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._waiting: list[Increments] = []
        self._pairs = 0
        "Of those that wait."

    def add(self, increments: Increments) -> None:
        """Add increments; an item or a neighbour may occur more than once."""
        self._waiting.append(increments)
        self._pairs += len(increments.others)
        if self._pairs > WAITING_PAIRS:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting, self._pairs = self._waiting, [], 0
        offsets = np.cumsum([0, *(len(each.others) for each in waiting)])
        items, others, units = (
            np.concatenate([getattr(each, name) for each in waiting]) for name in ("items", "others", "units")
        )
        ends = np.concatenate([each.ends + offset for each, offset in zip(waiting, offsets, strict=False)])
        self._enter(Increments(*covisits.regrouped(items, ends, others, units, np.argsort(items, kind="stable"))))

    def _enter(self, increments: Increments) -> None:
        data = increments.items.astype("<u8").tobytes()
        keys = [data[n : n + 8] for n in range(0, len(data), 8)]
        old, starts = _joined([row or b"" for row in self._get(keys)])
        new = np.empty(len(old) // 8 + 2 * len(keys) + 2 * len(increments.others), np.uint64).view(np.uint8)
        ends = np.zeros(len(keys) + 1, np.int64)
        covisits.merge_rows(old, starts, increments.ends, increments.others, increments.units, new, ends)
        rows, cuts = new[: ends[-1]].tobytes(), ends.tolist()
        self.held += len(rows) - len(old)
        for n, key in enumerate(keys):
            self._rows[key] = rows[cuts[n] : cuts[n + 1]]
        self._dirty.update(keys)

    def _get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        missing = [key for key in keys if key not in self._rows]
        if missing:
            loaded = self._load(missing)
            self._rows.update(zip(missing, loaded, strict=True))
            self.held += sum(len(row or b"") for row in loaded)
        return [self._rows[key] for key in keys]

    def put(self, key: bytes, row: NeighbourRow) -> None:
        """Replace a row."""
        self._merge()
        encoded = row.encode()
        self.held += len(encoded) - len(self._rows.get(key) or b"")
        self._rows[key] = encoded
        self._dirty.add(key)

    def lookup(self, keys: Sequence[bytes]) -> list[NeighbourRow | None]:
        """Rows of items, None where nothing is known."""
        self._merge()
        return [NeighbourRow.decode(row) if row else None for row in self._get(keys)]

    def heaviest(self, key: bytes, most: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Hashes and weights of the heaviest neighbours, as `NeighbourRow.heaviest`: `(≤ most,)` each."""
        self._merge()
        row = self._get([key])[0] or b""
        columns = np.frombuffer(row, "<u8", offset=covisits.HEAD).reshape(2, -1) if row else np.zeros((2, 0), np.uint64)
        order = np.lexsort((columns[0], -columns[1].astype(np.float64)))[:most]
        return columns[0][order], columns[1][order] * records.UNIT

    def total(self, item: int) -> float:
        """Weight of all neighbours of the item with this hash."""
        self._merge()
        row = self._get([item.to_bytes(8, "little")])[0]
        return int.from_bytes(row[8:16], "little") * records.UNIT if row else 0.0

    @property
    def changed(self) -> int:
        """Rows changed since the last `take`, at least: much the same ones may wait to be changed again."""
        return max([len(self._dirty), *(len(each.items) for each in self._waiting)])

    @property
    def changed_at_most(self) -> int:
        """As `changed`, if no two of those that wait change the same row."""
        return len(self._dirty) + sum(len(each.items) for each in self._waiting)

    def take(self) -> Mapping[bytes, bytes | None]:
        """Rows changed since the last call."""
        self._merge()
        return self._taken()
