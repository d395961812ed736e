"""The item store: a worker's whole catalogue as NumPy columns, indexed by item row."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.items.journal import Journal
from models.items.vectors import ItemVector, VectorStore
from models.state.bloom import SLICES, positions
from models.state.kernels.hash_index import HashIndex
from models.state.rows import POPULARITY_HALF_LIFE_MS, ItemStatRow, hash64
from schemas.parsing import MAX_TIME_MS
from schemas.records import Item

__all__ = ["ACTION_SLOTS", "NEIGHBOURS", "TEXT_DIMENSIONS", "ItemStore", "text_vector"]

TEXT_DIMENSIONS = 128
NEIGHBOURS = 64
CATEGORIES = 8
ACTION_SLOTS = 32
"Number of distinct actions counted per item."
MAX_TOKENS = 400
WORD = re.compile(r"\w{3,}")
ATTRIBUTES = 32
"Number of an item's attributes that enter its content."
LONGEST_KIND = 64
"Maximum length of an attribute value that names a kind, such as a brand or colour. Numbers and longer texts do not."


def is_kind(value: str) -> bool:
    """Return whether an attribute value names a kind of item, instead of measuring or describing an item."""
    return len(value) <= LONGEST_KIND and any(letter.isalpha() for letter in value)


def text_vector(item: Item) -> NDArray[np.float32]:
    """Hash title, text, categories and attributes by signed feature hashing (Weinberger et al. 2009).

    Returns float32 `(TEXT_DIMENSIONS,)`, of length 1, or 0 for an item without words. It needs no learned weights, so that a
    new item is found by its content as soon as it arrives.
    """
    vector = np.zeros(TEXT_DIMENSIONS, np.float32)
    tokens = [(f"c:{name.lower()}", 3.0) for name in item.categories[:CATEGORIES]]
    tokens += [(word, 2.0) for word in WORD.findall(item.title.lower())[:MAX_TOKENS]]
    tokens += [(word, 1.0) for word in WORD.findall(item.text.lower())[:MAX_TOKENS]]
    said = [(name, value.lower()) for name, value in sorted(item.attributes.items())[:ATTRIBUTES] if is_kind(value)]
    tokens += [(f"a:{name}={value}", 1.0) for name, value in said]
    for token, weight in tokens:
        code = zlib.crc32(token.encode())
        vector[code % TEXT_DIMENSIONS] += weight if code >> 31 else -weight
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


@dataclass(frozen=True, slots=True)
class _Eligible:
    """Which items were eligible at a revision, and at a position of the journal."""

    revision: int
    position: int
    since_ms: int
    until_ms: int
    "The result holds from `since_ms` on, before `until_ms`."
    found: NDArray[np.bool_]


class ItemStore:
    """Columns over item rows. Rows are never reused; `remove` makes an item unavailable.

    Statistics are absolute per (item, source partition): setting them again overwrites and never adds.
    """

    def __init__(self, partitions: int = 4, capacity: int = 1024) -> None:
        self.partitions = partitions
        self.ids: list[str] = []
        self.items: list[Item | None] = []
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
        self._row_of: dict[str, int] = {}
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
        self._columns(capacity)

    def _columns(self, capacity: int) -> None:
        self.changed = np.zeros(capacity, np.int64)
        "Value of `changes` when the catalogue entry was last replaced."
        self.hashes = np.zeros(capacity, np.uint64)
        "`hash64` of the ids."
        self.listed = np.zeros(capacity, np.bool_)
        "Whether the item is in the catalogue."
        self.available = np.zeros(capacity, np.bool_)
        "Whether the item is in the catalogue and available."
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
        self.actions = np.zeros((capacity, self.partitions, ACTION_SLOTS), np.int64)
        "Number of events per action, for the first ACTION_SLOTS actions of `action_names`."
        self.first_ms = np.zeros(capacity, np.int64)
        self.neighbour_rows = np.full((capacity, NEIGHBOURS), -1, np.int32)
        self.neighbour_weights = np.zeros((capacity, NEIGHBOURS), np.float32)
        self.neighbour_total = np.zeros(capacity, np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, item_id: str) -> int:
        """Return the row of an item, -1 if unknown."""
        return self._row_of.get(item_id, -1)

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int32]:
        """Return the rows of items, -1 where unknown: int32 `(len(item_ids),)`."""
        return np.fromiter((self._row_of.get(name, -1) for name in item_ids), np.int32, len(item_ids))

    def rows_of_hashes(self, hashes: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the rows of items by `hash64` of their ids, -1 where unknown; same shape."""
        return self.index.find_many(np.ascontiguousarray(hashes).ravel()).reshape(hashes.shape)

    def id_of(self, item: int) -> str | None:
        """Return the id whose `hash64` is `item`, None if unknown."""
        row = int(self.index.find_many(np.asarray([item], np.uint64))[0])
        return None if row < 0 else self.ids[row]

    def row_for(self, item_id: str) -> int:
        """Return the row of an item; an unknown item gets a new row, as unavailable."""
        row = self._row_of.get(item_id)
        if row is None:
            row = len(self.ids)
            if row == len(self.available):
                self._grow()
            self.revision += 1
            self.ids.append(item_id)
            self.items.append(None)
            self._row_of[item_id] = row
            self.bloom[row] = positions(item_id)
            self.hashes[row] = hash64(item_id)
            self.index.add(hash64(item_id), row)
        return row

    def _grow(self) -> None:
        size = len(self.available)
        larger = object.__new__(ItemStore)
        larger.partitions = self.partitions
        larger._columns(2 * size)
        columns = {name: value for name, value in vars(larger).items() if isinstance(value, np.ndarray)}
        for name, value in columns.items():
            value[:size] = getattr(self, name)
        for name, value in columns.items():  # set only when filled, because other threads may be reading
            setattr(self, name, value)

    def upsert(self, item: Item) -> int:
        """Add or replace a catalogue entry; returns its row."""
        row = self.row_for(item.item_id)
        self.items[row] = item
        self.revision += 1
        self.listed[row], self.available[row] = True, item.available
        names = item.categories[:CATEGORIES]
        self.category_ids[row] = -1
        for n, name in enumerate(names):
            if name not in self._category_of:
                self._add_category(name)
            self.category_ids[row, n] = self._category_of[name]
        self.published_ms[row] = item.published_at or 0
        self.price[row] = np.nan if item.price is None else item.price
        self.changes += 1
        self.changed[row] = self.changes
        self.text[row] = text_vector(item)
        self.journal.add(row)
        return row

    def _add_category(self, name: str) -> None:
        self._category_of[name] = len(self.category_names)
        self._category_index.add(hash64(name), len(self.category_names))
        self.category_names.append(name)
        text = np.frombuffer(name.encode(), np.uint8)
        self.category_texts = np.concatenate([self.category_texts, text])
        self.category_starts = np.append(self.category_starts, len(self.category_texts))
        self.category_hashes = np.append(self.category_hashes, np.uint64(hash64(name)))

    def remove(self, item_id: str) -> None:
        """Make an item unavailable; its row and its statistics stay."""
        row = self.row_for(item_id)  # may replace the columns with larger ones
        self.revision += 1
        self.listed[row] = self.available[row] = False
        self.items[row] = None
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
            self.action_names.append(action)
        return self.action_names.index(action)

    def set_neighbours(self, item_id: str, others: Sequence[str], weights: Sequence[float], total: float) -> None:
        """Replace an item's co-visitation neighbours; they are given heaviest first."""
        row = self.row_for(item_id)
        others, weights = others[:NEIGHBOURS], weights[:NEIGHBOURS]
        rows = [self.row_for(other) for other in others]
        self.neighbour_rows[row] = -1
        self.neighbour_weights[row] = 0.0
        self.neighbour_rows[row, : len(rows)] = rows
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

    def popularity_now(self, rows: NDArray[np.int32] | slice | None = None) -> NDArray[np.float32]:
        """Return the decayed number of events at `stream_time_ms` over all partitions, for all items or `rows`: float32."""
        rows = slice(len(self)) if rows is None else rows
        age = np.maximum(self.stream_time_ms - self.popularity_ms[rows], 0)
        now: NDArray[np.float32] = (self.popularity[rows] * np.exp2(-age / POPULARITY_HALF_LIFE_MS)).sum(axis=1)
        return now.astype(np.float32)
