"""The item store: a worker's whole catalogue as NumPy columns, indexed by item row."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.items.journal import Journal
from models.items.texts import Entries, Ids
from models.items.vectors import ItemVector, VectorStore
from models.items.words import CATEGORIES, TEXT_DIMENSIONS, text_vector
from models.state.bloom import SLICES, positions
from models.state.kernels.decay import halved_sums
from models.state.kernels.hash_index import HashIndex
from models.state.rows import POPULARITY_HALF_LIFE_MS, ItemStatRow, hash64
from schemas.parsing import MAX_TIME_MS
from schemas.records import Item

__all__ = ["ACTION_SLOTS", "NEIGHBOURS", "TEXT_DIMENSIONS", "ItemStore", "text_vector"]

NEIGHBOURS = 64
PIECE = 4_096
"Rows copied at once."
ACTION_SLOTS = 32
"Number of distinct actions counted per item."


@dataclass(frozen=True, slots=True)
class _Eligible:
    """Which items were eligible at a revision, and at a position of the journal."""

    revision: int
    position: int
    since_ms: int
    until_ms: int
    "The result holds from `since_ms` on, before `until_ms`."
    found: NDArray[np.bool_]


def record_hash(record: bytes) -> int:
    """Return the BLAKE2b hash (RFC 7693) of 8 bytes of a record; that of an id's bytes is `hash64` of the id."""
    return int.from_bytes(hashlib.blake2b(record, digest_size=8).digest(), "little")


class ItemStore:
    """Columns over item rows. Rows are never reused; `remove` makes an item unavailable.

    Statistics are absolute per (item, source partition): setting them again overwrites and never adds.
    """

    def __init__(self, partitions: int = 4, capacity: int = 1024) -> None:
        self.partitions = partitions
        self.ids = Ids()
        self.items = Entries(lambda: self.listed)
        "The catalogue's entries by item row, None for an item that is not in the catalogue."
        self.category_names: list[str] = []
        self.stream_time_ms = 0
        "Newest event time so far (epoch ms): the clock of decay."
        self.changes = 0
        "Number of catalogue entries added or replaced so far."
        self.revision = 0
        "Number of changes of what is in the catalogue or available, and of new rows."
        self.statistics_changes = 0
        "Number of changes of statistics."
        self.journal = Journal()
        "Rows whose catalogue entry, availability or statistics changed."
        self._eligible: _Eligible | None = None
        "The last result of `eligible`."
        self.action_names: list[str] = []
        self.held = 0
        "Number of the first rows that lie on a shelf (`models.items.shelf`)."
        self.shelf = ""
        "Name of that shelf."
        self.held_changes = 0
        "Value of `changes` up to which these rows are those of the shelf."
        self._row_of: dict[str, int] = {}
        "Rows from `held` on, by id."
        self._category_of: dict[str, int] = {}
        self.index = HashIndex()
        "Rows by `hash64` of the ids."
        self._category_index = HashIndex()
        self.category_hashes = np.zeros(0, np.uint64)
        "`hash64` of each category's name."
        self.category_texts = np.zeros(0, np.uint8)
        "Concatenated category names in UTF-8: category c at `category_starts[c]:category_starts[c + 1]`."
        self.category_starts = np.zeros(1, np.int64)
        self.vectors = VectorStore()
        "Encoder vectors of the items, by item row."
        self.own_partitions: set[int] = set()
        "Source partitions whose statistics this process computes itself; statistics of them by other workers are ignored."
        self._action_slots = 4
        self._columns(capacity)

    def _columns(self, capacity: int) -> None:
        self.changed = np.zeros(capacity, np.int64)
        "Value of `changes` when the catalogue entry was last replaced."
        self.hashes = np.zeros(capacity, np.uint64)
        "`hash64` of the ids."
        self.records = np.zeros(capacity, np.uint64)
        "`record_hash` of the record that the row's catalogue columns were made of; 0 if that is not known."
        self.listed = np.zeros(capacity, np.bool_)
        "Whether the item is in the catalogue."
        self.available = np.zeros(capacity, np.bool_)
        "Whether the item is in the catalogue and available."
        self.offered = np.zeros(capacity, np.bool_)
        "Whether its last entry says that it is available."
        self.category_ids = np.full((capacity, CATEGORIES), -1, np.int32)
        self.published_ms = np.zeros(capacity, np.int64)
        "Time of publication (epoch ms); 0 if unknown: the item then counts as published, but not as fresh."
        self.price = np.full(capacity, np.nan, np.float32)
        self.bloom = np.zeros((capacity, SLICES), np.int32)
        self.text = np.zeros((capacity, TEXT_DIMENSIONS), np.float32)
        self.popularity = np.zeros((capacity, self.partitions), np.float64)
        self.popularity_ms = np.zeros((capacity, self.partitions), np.int64)
        self.events = np.zeros((capacity, self.partitions), np.int64)
        "Number of events since the beginning, by source partition `(capacity, partitions)`."
        self.all_events = np.zeros(capacity, np.int64)
        "Number of events over all partitions."
        self.value_sum = np.zeros((capacity, self.partitions), np.float64)
        self.value_count = np.zeros((capacity, self.partitions), np.int64)
        self.actions = np.zeros((capacity, self.partitions, self._action_slots), np.int64)
        "Number of events per action of `action_names`; it has room for at most ACTION_SLOTS."
        self.first_ms = np.zeros(capacity, np.int64)
        self.neighbours = np.zeros((capacity, NEIGHBOURS), np.int32)
        "Complements (`~row`) of the rows of the neighbours, heaviest first; 0 for none, so that it takes no memory."
        self.neighbour_weights = np.zeros((capacity, NEIGHBOURS), np.float32)
        self.neighbour_total = np.zeros(capacity, np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, item_id: str) -> int:
        """Return the row of an item, -1 if unknown."""
        row = self._row_of.get(item_id, -1)
        return self._held_row(item_id) if row < 0 and self.held else row

    def _held_row(self, item_id: str) -> int:
        row = int(self.index.find_many(np.asarray([hash64(item_id)], np.uint64))[0])
        return row if 0 <= row < self.held and self.ids[row] == item_id else -1

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the rows of items, -1 where unknown: int32 `(len(item_ids),)`."""
        return np.fromiter((self.row_of(name) for name in item_ids), np.int32, len(item_ids))

    def rows_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the rows of items by `hash64` of their ids, -1 where unknown; same shape."""
        return self.index.find_many(np.ascontiguousarray(hashes).ravel()).reshape(hashes.shape)

    def id_of(self, item: int) -> str | None:
        """Return the id whose `hash64` is `item`, None if unknown."""
        row = int(self.index.find_many(np.asarray([item], np.uint64))[0])
        return None if row < 0 else self.ids[row]

    def row_for(self, item_id: str) -> int:
        """Return the row of an item; an unknown item gets a new row, as unavailable."""
        row = self.row_of(item_id)
        if row < 0:
            row = len(self.ids)
            if row == len(self.available):
                self._grow()
            self.revision += 1
            self.ids.append(item_id)
            self._row_of[item_id] = row
            self.bloom[row] = positions(item_id)
            self.hashes[row] = hash64(item_id)
            self.index.add(hash64(item_id), row)
        return row

    def _made(self, capacity: int) -> dict[str, NDArray[Any]]:
        """Make columns with room for `capacity` rows, by name."""
        made = object.__new__(ItemStore)
        made.partitions, made._action_slots = self.partitions, self._action_slots
        made._columns(capacity)
        return {name: value for name, value in vars(made).items() if isinstance(value, np.ndarray)}

    def _replace(self, columns: Mapping[str, NDArray[Any]], filled: Collection[str] = ()) -> None:
        """Replace the columns by larger ones, into which the rows are copied, except where they are `filled`."""
        size = len(self)
        for name, value in columns.items():
            for start in range(0, 0 if name in filled else size, PIECE):
                old = getattr(self, name)[start : min(start + PIECE, size)]
                new = value[start : start + len(old)]
                if (old != new).any():  # rows without statistics take no memory, as long as they are not written
                    new[:] = old
        for name, value in columns.items():  # set only when filled, because other threads may be reading
            setattr(self, name, value)

    def _grow(self) -> None:
        self._replace(self._made(2 * len(self.available)))

    def upsert(self, item: Item, record: bytes = b"") -> int:
        """Add or replace a catalogue entry; returns its row.

        `record`: the record in single-object encoding that it was decoded from. It is kept instead of the entry, and found
        again by `unchanged`.
        """
        row = self.row_for(item.item_id)
        self.items.put(row, item, record)
        self.records[row] = record_hash(record) if record else 0
        self.revision += 1
        # before the columns change, for whoever reads them in another thread
        self.changes += 1
        self.changed[row] = self.changes
        self.listed[row], self.available[row], self.offered[row] = True, item.available, item.available
        self.category_ids[row] = -1
        for n, name in enumerate(item.categories[:CATEGORIES]):
            if name not in self._category_of:
                self._add_category(name)
            self.category_ids[row, n] = self._category_of[name]
        self.published_ms[row] = item.published_at or 0
        self.price[row] = np.nan if item.price is None else item.price
        self.text[row] = text_vector(item)
        self.journal.add(row)
        return row

    def unchanged(self, item_ids: Sequence[bytes], records: Sequence[bytes]) -> NDArray[np.int32]:
        """Return the rows of the items whose columns were made of exactly these records, -1 for others: int32 `(n,)`."""
        rows = self.index.find_many(np.fromiter(map(record_hash, item_ids), np.uint64, len(item_ids)))
        same = self.records[rows] == np.fromiter(map(record_hash, records), np.uint64, len(records))
        return np.where((rows >= 0) & same, rows, np.int32(-1))

    def list_again(self, rows: NDArray[np.int32]) -> None:
        """Put the items of rows that `unchanged` found back into the catalogue."""
        new = rows[~self.listed[rows]]
        if len(new):
            self.listed[new], self.available[new] = True, self.offered[new]
            self.revision += 1
            self.journal.extend(new)

    def _add_category(self, name: str) -> None:
        self.add_categories([name])

    def add_categories(self, names: Sequence[str]) -> None:
        """Add categories that the store does not know yet, in this order."""
        first = len(self.category_names)
        for number, name in enumerate(names, first):
            self._category_of[name] = number
            self._category_index.add(hash64(name), number)
        self.category_names += names
        texts = [name.encode() for name in names]
        ends = len(self.category_texts) + np.cumsum([len(text) for text in texts], dtype=np.int64)
        self.category_texts = np.concatenate([self.category_texts, np.frombuffer(b"".join(texts), np.uint8)])
        self.category_starts = np.concatenate([self.category_starts, ends])
        hashes = np.asarray([hash64(name) for name in names], np.uint64)
        self.category_hashes = np.concatenate([self.category_hashes, hashes])

    def adopt(
        self, columns: Mapping[str, NDArray[Any]], held: int, shelf: str, index: HashIndex, changes: int | None = None
    ) -> None:
        """Replace columns by those of a shelf with `held` rows, which hold the same for the rows that the store has.

        `changes`: value of `changes` up to which that is so. `ids` and `items` are replaced by the caller. An empty store then
        has all rows of the shelf, not in the catalogue.
        """
        newer = self.ids[held:]
        self._replace({**self._made(len(columns["hashes"])), **columns}, columns)
        if changes is None:
            self.changes = changes = held
            self.changed[:held] = np.arange(1, held + 1)
        self.held, self.shelf, self.index, self.held_changes = held, shelf, index, changes
        self._row_of = {item_id: row for row, item_id in enumerate(newer, held)}
        self.revision += 1
        self._eligible = None

    def remove(self, item_id: str) -> None:
        """Make an item unavailable; its row and its statistics stay."""
        row = self.row_for(item_id)  # may replace the columns with larger ones
        self.revision += 1
        self.listed[row] = self.available[row] = False
        self.records[row] = 0
        self.items.drop(row)
        self.journal.add(row)

    def set_vectors(self, item_id: str, vectors: Sequence[ItemVector]) -> int:
        """Replace an item's encoder vectors; returns the number of vectors whose size differs from their encoder's."""
        return self.vectors.put(self.row_for(item_id), vectors)

    def remove_vectors(self, item_id: str) -> None:
        """Remove an item's encoder vectors."""
        row = self.row_of(item_id)
        if row >= 0:
            self.vectors.remove(row)

    def category_rows(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the numbers of the existing categories among `names`."""
        return np.asarray([self._category_of[name] for name in names if name in self._category_of], np.int32)

    def category_rows_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the numbers of categories by `hash64` of their names, -1 where unknown; same shape."""
        return self._category_index.find_many(np.ascontiguousarray(hashes))

    def set_statistics(self, item_id: str, partition: int, stats: ItemStatRow) -> None:
        """Replace an item's statistics over one source partition."""
        row = self.row_for(item_id)
        self.statistics_changes += 1
        self.popularity[row, partition] = stats.popularity
        self.popularity_ms[row, partition] = stats.updated_ms
        self.events[row, partition] = sum(stats.counts.values())
        self.all_events[row] = self.events[row].sum()
        self.value_sum[row, partition] = stats.value_sum
        self.value_count[row, partition] = stats.value_count
        for action, count in stats.counts.items():
            slot = self.action_slot(action)
            if slot >= 0:
                self.actions[row, partition, slot] = count
        first = int(self.first_ms[row])
        self.first_ms[row] = min(first, stats.first_ms) if first else stats.first_ms
        self.stream_time_ms = max(self.stream_time_ms, stats.updated_ms)
        self.journal.add(row)

    def action_slot(self, action: str) -> int:
        """Return the column of an action in `actions`; a new action gets the next, or -1 beyond ACTION_SLOTS."""
        if action not in self.action_names:
            if len(self.action_names) == ACTION_SLOTS:
                return -1
            if len(self.action_names) == self._action_slots:
                self._action_slots *= 2
                larger = np.zeros((*self.actions.shape[:2], self._action_slots), np.int64)
                larger[:, :, : self.actions.shape[2]] = self.actions
                self.actions = larger
            self.action_names.append(action)
        return self.action_names.index(action)

    def set_neighbours(self, item_id: str, others: Sequence[str], weights: Sequence[float], total: float) -> None:
        """Replace an item's co-visitation neighbours; they are given heaviest first."""
        row = self.row_for(item_id)
        others, weights = others[:NEIGHBOURS], weights[:NEIGHBOURS]
        rows = [self.row_for(other) for other in others]
        self.neighbours[row] = 0
        self.neighbour_weights[row] = 0.0
        self.neighbours[row, : len(rows)] = ~np.asarray(rows, np.int32)
        self.neighbour_weights[row, : len(rows)] = weights
        self.neighbour_total[row] = total

    def set_neighbour_total(self, item_id: str, total: float) -> None:
        """Replace only an item's total weight over all neighbours."""
        self.neighbour_total[self.row_for(item_id)] = total

    def eligible(self, now_ms: int) -> NDArray[np.bool_]:
        """Return whether each item is available and published by `now_ms`: bool `(len(self),)`, not to be changed.

        The same array is returned until the result changes.
        """
        known, size = self._eligible, len(self)
        held = known is not None and known.since_ms <= now_ms < known.until_ms
        if known is not None and held and known.revision == self.revision:
            return known.found
        changed = self.journal.since(known.position) if known is not None and held else None
        rows: slice | NDArray[np.int32]
        if known is None or changed is None:
            rows, found, since, until = slice(size), np.zeros(size, np.bool_), now_ms, MAX_TIME_MS + 1
        else:
            rows, found, since, until = changed, np.zeros(size, np.bool_), known.since_ms, known.until_ms
            found[: len(known.found)] = known.found
        published = self.published_ms[rows]
        found[rows] = self.available[rows] & (published <= now_ms)
        since = max(since, int(published[published <= now_ms].max(initial=0)))
        until = min(until, int(published[published > now_ms].min(initial=MAX_TIME_MS + 1)))
        found.flags.writeable = False
        self._eligible = _Eligible(self.revision, self.journal.position, since, until, found)
        return found

    def popularity_now(self, rows: NDArray[np.integer] | slice | None = None) -> NDArray[np.float32]:
        """Return the decayed number of events at `stream_time_ms` over all partitions, for all items or `rows`: float32."""
        rows = slice(len(self)) if rows is None else rows
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self.popularity)))
        at, half_life = rows.astype(np.int64, copy=False), POPULARITY_HALF_LIFE_MS
        found: NDArray[np.float32] = halved_sums(self.popularity, self.popularity_ms, at, self.stream_time_ms, half_life)
        return found
