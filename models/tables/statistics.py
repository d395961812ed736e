"""Item statistics of one source partition: columns by item row, written out as rows of bytes."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.state.kernels import statistics
from models.state.rows import ItemStatRow, hash64
from models.tables.users import Applied
from schemas.columns import ACTION, EventColumns

__all__ = ["StatisticsTable"]

ACTIONS = 64
"Number of distinct actions counted in one source partition; further ones count as `other`."


class StatisticsTable:
    """Statistics of all items over one source partition: columns by the store's item rows."""

    def __init__(self, items: ItemStore) -> None:
        self._items = items
        self._names: list[str] = []
        self._slots: dict[int, int] = {}
        self._next = 0
        "The row at which `unpublished` continues."
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
        """Insert a stored row."""
        row = self._items.row_for(item_id)
        slots = [self._slot(name) for name in stats.counts]
        self._fit()
        for slot, count in zip(slots, stats.counts.values(), strict=True):
            self._counts[row, slot] += count
        self._value_sum[row], self._value_count[row] = stats.value_sum, stats.value_count
        self._popularity[row], self._updated[row], self._first[row] = stats.popularity, stats.updated_ms, stats.first_ms
        self._unpublished[row] = 1

    def get(self, row: int) -> ItemStatRow:
        """Return the statistics of the item in `row`."""
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
        """Return the rows changed since the last call, by item id."""
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
        """Return up to `most` rows that changed since they were last returned. Calls rotate, so that no row starves."""
        waiting = np.flatnonzero(self._unpublished)
        rows = np.roll(waiting, -int(waiting.searchsorted(self._next)))[:most]
        self._unpublished[rows] = 0
        if len(rows):
            self._next = int(rows[-1]) + 1
        return [int(row) for row in rows]

    def copy_to_store(self, partition: int) -> None:
        """Copy the rows changed since the last `take` to the store's columns of `partition`."""
        self._fit()
        rows = np.flatnonzero(self._dirty)
        if not len(rows):
            return
        store = self._items
        store.statistics_changes += 1
        store.popularity[rows, partition] = self._popularity[rows]
        store.popularity_ms[rows, partition] = self._updated[rows]
        store.events[rows, partition] = self._counts[rows].sum(axis=1)
        store.all_events[rows] = store.events[rows].sum(axis=1)
        store.value_sum[rows, partition] = self._value_sum[rows]
        store.value_count[rows, partition] = self._value_count[rows]
        for slot, name in enumerate(self._names):
            if (shared := store.action_slot(name)) >= 0:
                store.actions[rows, partition, shared] = self._counts[rows, slot]
        first = store.first_ms[rows]
        store.first_ms[rows] = np.where(first > 0, np.minimum(first, self._first[rows]), self._first[rows])
        store.stream_time_ms = max(store.stream_time_ms, int(self._updated[rows].max()))
        store.journal.extend(rows)
