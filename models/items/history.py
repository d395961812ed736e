"""How often each item was shown, and its events, by minute and by hour: differences of the item store's statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.items.journal import Journal
from models.items.store import PIECE, ItemStore
from models.state.rows import hash64

__all__ = ["MOST", "SLOTS", "History", "ItemHistory"]

SLOTS = {"minute": (60_000, 60), "hour": (3_600_000, 48)}
"By name: milliseconds of a slot, and how many slots are kept, the open one included."
MOST = 4_000_000
"Numbers that the ended slots of one length hold, of 9 bytes each. Beyond it the oldest slots are dropped."
WAITING = 4_096
"Shown ids that wait before they are looked up together, because a slate must not wait for it."


@dataclass(frozen=True, slots=True)
class History:
    """Counts of one item. All columns are as long as `at` and in its order."""

    slot_ms: int
    began_ms: int | None
    "Since when the counts are complete (epoch ms), None while nothing is counted yet."
    at: tuple[int, ...]
    "When the slots began (epoch ms), oldest first. The last one is open."
    shown: tuple[int, ...]
    actions: dict[str, tuple[int, ...]]
    "Counts by action; actions without any are left out."


@dataclass(slots=True)
class _Slot:
    start_ms: int
    pieces: list[tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.int32]]] = field(default_factory=list)
    "Rows (ascending), columns and counts, none of them 0."
    size: int = 0


class _Ring:
    """The slots of one length. The open slot is the difference between the totals and `base`, the totals at its begin."""

    def __init__(self, slot_ms: int, kept: int, now_ms: int) -> None:
        self.slot_ms, self.kept = slot_ms, kept
        self.open_ms = now_ms - now_ms % slot_ms
        self.began_ms = now_ms
        self.base = np.zeros((0, 1), np.uint32)
        self.marks = (0, 0)
        "Positions of the two journals when `base` was taken."
        self.ended: deque[_Slot] = deque()

    def fit(self, rows: int, columns: int) -> None:
        if rows > self.base.shape[0] or columns > self.base.shape[1]:
            larger = np.zeros((max(2 * rows, self.base.shape[0]), max(columns, self.base.shape[1])), np.uint32)
            larger[: self.base.shape[0], : self.base.shape[1]] = self.base
            self.base = larger

    def drop(self, most: int) -> None:
        """Drop the slots that are too old, and the oldest ones while all hold more than `most` numbers."""
        oldest = self.open_ms - (self.kept - 1) * self.slot_ms
        self.began_ms = max(self.began_ms, oldest)
        while self.ended and (self.ended[0].start_ms < oldest or sum(slot.size for slot in self.ended) > most):
            self.began_ms = max(self.began_ms, self.ended.popleft().start_ms + self.slot_ms)


class ItemHistory:
    """Counts of all items by slot, since `begin`.

    The statistics are absolute, so that a slot is the difference between two of their values: nothing is done for an event.
    An event counts in the slot in which this store got it, which is not the time when it happened. Not thread-safe.
    """

    def __init__(self, items: ItemStore, most: int = MOST) -> None:
        self._items = items
        self._most = most
        self._shown = np.zeros(0, np.uint32)
        self._changes = Journal()
        "Rows that were shown."
        self._waiting: list[str] = []
        self._rings: dict[str, _Ring] = {}

    @property
    def begun(self) -> bool:
        """Whether anything is counted."""
        return bool(self._rings)

    def begin(self, now_ms: int) -> Iterator[None]:
        """Count from now on (epoch ms). Yields between pieces of work, of a few milliseconds each; nothing may be left out."""
        rings = {name: _Ring(slot_ms, kept, now_ms) for name, (slot_ms, kept) in SLOTS.items()}
        for ring in rings.values():
            ring.marks = (self._items.journal.position, self._changes.position)
            for rows in _pieces(np.arange(len(self._items), dtype=np.int32)):
                self._take(ring, rows)
                yield
        self._rings = rings

    def show(self, item_ids: Sequence[str]) -> None:
        """Count items as shown, once each."""
        if self._rings:
            self._waiting.extend(item_ids)
            if len(self._waiting) >= WAITING:
                self._look_up()

    def roll(self, now_ms: int) -> Iterator[None]:
        """End the slots whose time is over; to be called several times in a slot. Yields as `begin` does."""
        for ring in self._rings.values():
            start = now_ms - now_ms % ring.slot_ms
            if start > ring.open_ms:
                yield from self._end(ring, start)

    def _end(self, ring: _Ring, start_ms: int) -> Iterator[None]:
        self._look_up()
        changed = self._items.journal.since(ring.marks[0])
        shown = self._changes.since(ring.marks[1])
        ring.marks = (self._items.journal.position, self._changes.position)
        every = changed is None or shown is None
        rows = np.arange(len(self._items), dtype=np.int32) if every else np.union1d(changed, shown)  # type: ignore[arg-type]
        slot = _Slot(ring.open_ms)
        ring.ended.append(slot)
        ring.open_ms = start_ms
        for piece in _pieces(rows):
            found = self._take(ring, piece)
            where, columns = np.nonzero(found)
            if len(where):
                slot.pieces.append((piece[where], columns.astype(np.int8), found[where, columns]))
                slot.size += len(where)
            yield
        ring.drop(self._most)

    def of(self, item_id: str, per: str, now_ms: int) -> History:
        """Return the counts of an item by `minute` or `hour`; zeros for an unknown one."""
        slot_ms, kept = SLOTS[per]
        ring = self._rings.get(per)
        if ring is None:
            return History(slot_ms, None, (), (), {})
        self._look_up()
        row = self._items.row_of(item_id)
        last = max(ring.open_ms, now_ms - now_ms % slot_ms)  # the slot is ended a little late
        began = max(ring.began_ms, last - (kept - 1) * slot_ms)
        at = range(began - began % slot_ms, last + 1, slot_ms)
        counts = np.zeros((len(at), 1 + len(self._items.action_names)), np.int64)
        for start, column, n in self._numbers(ring, row):
            if start >= at[0]:
                counts[(start - at[0]) // slot_ms, column] += n
        # a worker that takes a partition over after a crash may know fewer events than the last one had announced
        np.maximum(counts, 0, out=counts)
        names = enumerate(self._items.action_names, 1)
        columns = {name: tuple(counts[:, n].tolist()) for n, name in names if counts[:, n].any()}
        return History(slot_ms, began, tuple(at), tuple(counts[:, 0].tolist()), columns)

    def _numbers(self, ring: _Ring, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, column and count of what the slots hold of a row."""
        if row < 0:
            return
        for slot in ring.ended:
            for rows, columns, counts in slot.pieces:
                first, after = np.searchsorted(rows, (row, row + 1))
                for place in range(first, after):
                    yield slot.start_ms, int(columns[place]), int(counts[place])
        totals = self._totals(np.asarray([row], np.int32))
        ring.fit(row + 1, totals.shape[1])
        for column, n in enumerate((totals - ring.base[row : row + 1, : totals.shape[1]]).view(np.int32)[0].tolist()):
            yield ring.open_ms, column, n

    def _take(self, ring: _Ring, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the differences of these rows since `base`, which becomes what is counted now: `(len(rows), columns)`."""
        totals = self._totals(rows)
        ring.fit(int(rows[-1]) + 1, totals.shape[1])
        # unsigned numbers wrap around, so that the difference is right for any totals
        found: NDArray[np.int32] = (totals - ring.base[rows, : totals.shape[1]]).view(np.int32)
        ring.base[rows, : totals.shape[1]] = totals
        return found

    def _totals(self, rows: NDArray[np.int32]) -> NDArray[np.uint32]:
        """Return how often items were shown, and their events by action: `(len(rows), 1 + actions)`, modulo 2^32."""
        actions = self._items.actions[rows, :, : len(self._items.action_names)].sum(axis=1)
        self._fit_shown()
        return np.concatenate([self._shown[rows, None], actions.astype(np.uint32)], axis=1)

    def _fit_shown(self) -> None:
        if len(self._shown) < len(self._items):
            self._shown = np.concatenate([self._shown, np.zeros(2 * len(self._items) - len(self._shown), np.uint32)])

    def _look_up(self) -> None:
        ids, self._waiting = self._waiting, []
        if not ids:
            return
        hashes = np.fromiter(map(hash64, ids), np.uint64, len(ids))
        rows = self._items.rows_of_hashes(hashes)
        rows = rows[rows >= 0]
        self._fit_shown()
        np.add.at(self._shown, rows, 1)
        self._changes.extend(np.unique(rows))


def _pieces(rows: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    for start in range(0, len(rows), PIECE):
        yield rows[start : start + PIECE]
