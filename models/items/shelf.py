"""A shelf: the catalogue as one worker decoded it, which the workers of a machine map instead of decoding it again.

A row of the shelf counts only once its item's record was read from the topic and is the one that the row was made of: see
`ItemStore.unchanged`. A shelf may therefore be old, or of a topic that was recreated. It holds no statistics.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.items.mapped import Column, Mapped, open_folder, write_folder
from models.items.store import ItemStore
from models.items.texts import Entries, Ids, Packed
from models.items.words import text_vector
from models.state.bloom import positions
from models.state.kernels.hash_index import HashIndex
from models.state.rows import hash64
from schemas.errors import StoreCorrupt

__all__ = ["BY_ROW", "Shelving", "newest", "open_shelf", "place", "written_ns"]

log = logging.getLogger(__name__)

PREFIX = "items"
ROOM = 4
"A shelf has room for its items divided by this, beyond which the columns of a worker become its own."
BY_ROW = ("hashes", "records", "offered", "category_ids", "published_ms", "price", "bloom", "text")
"Columns of the store that a shelf holds."
ARRAYS = {*BY_ROW, "index_keys", "index_rows", "ids", "id_starts", "entries", "entry_starts", "category_texts"}
ARRAYS |= {"category_starts"}
PROBED = 16
"Number of rows that are computed again from their records, in case another version of Riffle computes them otherwise."


@dataclass(slots=True)
class Shelving:
    """A shelf that is being written from a store."""

    items: ItemStore
    size: int
    changes: int
    columns: dict[str, NDArray[Any]]
    ids: Ids
    entries: Entries
    names: list[str]
    "Names of the categories."

    @classmethod
    def begin(cls, items: ItemStore) -> Shelving:
        """Note the state of the store, in its thread."""
        columns = {name: getattr(items, name) for name in BY_ROW}
        # copied, because categories that are added meanwhile are not on the shelf
        columns |= {name: columns[name][: len(items)].copy() for name in ("records", "category_ids")}
        return cls(items, len(items), items.changes, columns, items.ids, items.items, list(items.category_names))

    def write(self, root: Path, stopped: Callable[[], bool] = lambda: False) -> Path:
        """Write the shelf, in any thread; rows that change meanwhile are marked as unknown. Returns its folder.

        Raises:
            OSError: it cannot be written, or `stopped` has returned True.
        """
        n, room = self.size, self.size // ROOM + 1024
        table = HashIndex()
        table.add_many(self.columns["hashes"][:n], np.arange(n, dtype=np.int32))
        ids = Packed.of((self.ids[row].encode() for row in range(n)), n)
        entries = Packed.of((self.entries.record(row) for row in range(n)), n)
        fills = {"category_ids": -1.0, "price": np.nan}
        columns = {name: Column(self.columns[name][:n], room, fills.get(name, 0)) for name in BY_ROW if name != "records"}
        columns |= {
            "index_keys": Column(table.table[0]),
            "index_rows": Column(table.table[1]),
            "ids": Column(ids.data),
            "id_starts": Column(ids.starts),
            "entries": Column(entries.data),
            "entry_starts": Column(entries.starts),
        }
        names = Packed.of((name.encode() for name in self.names), len(self.names))
        columns |= {"category_texts": Column(names.data), "category_starts": Column(names.starts)}
        # written last, because an item is marked as changed before its columns change
        columns["records"] = Column(self.columns["records"], room)
        return write_folder(root, PREFIX, {"items": n}, columns, self._forget_stale, stopped)

    def _forget_stale(self) -> None:
        self.columns["records"][self.stale()] = 0

    def stale(self) -> NDArray[np.intp]:
        """Return the rows that changed since the beginning."""
        return np.flatnonzero(self.items.changed[: self.size] > self.changes)

    def finish(self, shelf: Mapped) -> None:
        """Use the written shelf for the store itself, in its thread. Nothing happens where the shelf has no room for it."""
        items, n, stale = self.items, self.size, self.stale()
        if len(items) > len(shelf.arrays["hashes"]):
            return
        ids, entries = _packed(shelf, "ids", "id_starts"), _packed(shelf, "entries", "entry_starts")
        newer, size, columns = items.ids[n:], len(items), shelf.arrays
        for name in BY_ROW:
            mine = getattr(items, name)
            columns[name][stale], columns[name][n:size] = mine[stale], mine[n:size]
        index = HashIndex(columns["index_keys"], columns["index_rows"])
        index.add_many(items.hashes[n:size], np.arange(n, size, dtype=np.int32))
        items.adopt({name: columns[name] for name in BY_ROW}, n, shelf.name, index, self.changes)
        items.ids, items.items = Ids(ids, newer), items.items.on(entries, [*stale.tolist(), *range(n, size)])


def _packed(shelf: Mapped, data: str, starts: str) -> Packed:
    return Packed(shelf.arrays[data], shelf.arrays[starts])


def newest(root: Path, without: Collection[Path] = ()) -> Path | None:
    """Return the folder of the newest shelf below `root`, except `without`; None if there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = set(root.glob(f"{PREFIX}-*")).difference(without) if root.is_dir() else set()
    return max(folders, key=lambda folder: (written_ns(folder), folder.name), default=None)


def written_ns(folder: Path) -> int:
    """Return when a folder was written (ns), 0 if another worker has removed it."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def place(folder: Path, items: ItemStore) -> Mapped:
    """Put an empty store on a shelf: it knows the shelf's rows, none of which is in the catalogue yet.

    Raises:
        StoreCorrupt: the shelf cannot be used, and why. The store is still empty.
    """
    assert not len(items)
    shelf = open_shelf(folder)
    arrays, n = shelf.arrays, int(shelf.facts["items"])
    names = _packed(shelf, "category_texts", "category_starts")
    items.add_categories([names[c].decode() for c in range(len(names))])
    items.adopt({name: arrays[name] for name in BY_ROW}, n, shelf.name, HashIndex(arrays["index_keys"], arrays["index_rows"]))
    items.ids = Ids(_packed(shelf, "ids", "id_starts"))
    items.items = items.items.on(_packed(shelf, "entries", "entry_starts"), ())
    return shelf


def open_shelf(folder: Path) -> Mapped:
    """Verify a shelf, and map it.

    Raises:
        StoreCorrupt: it cannot be used, and why.
    """
    shelf = open_folder(folder)
    _check(shelf)
    return shelf


def _check(shelf: Mapped) -> None:
    """Check that the arrays fit each other and this version of Riffle; raises StoreCorrupt."""
    arrays, n, model = shelf.arrays, int(shelf.facts.get("items", 0)), ItemStore(1, 1)

    def demand(sound: object, what: str) -> None:
        if not sound:
            raise StoreCorrupt("mapped_arrays", f"the shelf {shelf.folder} cannot be used: {what}")

    demand(n > 0 and set(arrays) == ARRAYS, "it lacks arrays, or has others")
    for name in BY_ROW:
        like = getattr(model, name)
        fits = arrays[name].dtype == like.dtype and arrays[name].shape[1:] == like.shape[1:] and len(arrays[name]) > n
        demand(fits, f"{name} has another shape")
    for starts, data in (("id_starts", "ids"), ("entry_starts", "entries"), ("category_starts", "category_texts")):
        at = arrays[starts]
        there = at.dtype == np.int64 and at.ndim == 1 and len(at) and at[0] == 0 and at[-1] == len(arrays[data])
        demand(there and (np.diff(at) >= 0).all() and arrays[data].dtype == np.uint8, f"{data} and {starts} do not fit")
    demand(len(arrays["id_starts"]) == len(arrays["entry_starts"]) == n + 1, "ids and entries differ in number")
    categories = arrays["category_ids"]
    demand(categories.min() >= -1 and categories.max() < len(arrays["category_starts"]) - 1, "a category is unknown")
    keys, rows = arrays["index_keys"], arrays["index_rows"]
    of_two = len(keys) == len(rows) and len(rows) & (len(rows) - 1) == 0 and 2 * n < len(rows)
    demand(of_two and keys.dtype == np.uint64 and rows.dtype == np.int32 and rows.max() < n, "the index does not fit")
    ids, entries = (
        Ids(_packed(shelf, "ids", "id_starts")),
        Entries(lambda: np.ones(n, np.bool_), _packed(shelf, "entries", "entry_starts")),
    )
    known = np.flatnonzero(arrays["records"][:n])
    for row in known[:: max(len(known) // PROBED, 1)].tolist():
        item = entries[row]
        same = item is not None and item.item_id == ids[row] and arrays["hashes"][row] == hash64(ids[row])
        same = same and np.array_equal(arrays["bloom"][row], positions(ids[row]))
        demand(same and item and np.allclose(arrays["text"][row], text_vector(item), atol=1e-6), "another Riffle computed it")
