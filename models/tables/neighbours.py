"""Co-visitation: sums of item pairs that wait to be sent, and items' neighbours as rows of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.state.kernels import covisits
from models.state.kernels import user_rows as records
from models.state.rows import NeighbourRow
from models.tables.table import Load, Rows, joined
from models.tables.users import Applied

__all__ = ["CovisitSums", "Increments", "NeighbourTable"]

SUMMED = 1 << 14
"Slots for pairs whose co-visits are summed before they are sent: 256 kB."
WAITING_PAIRS = 1 << 20
"Maximum number of increments that wait to be merged into rows: 16 MB."


@dataclass(slots=True)
class Increments:
    """Co-visitation increments of m items, p increments in all: the columns of a covisits record."""

    items: NDArray[np.uint64]
    "`hash64` of the items `(m,)`."
    ends: NDArray[np.int64]
    "End of each item's increments `(m,)`."
    others: NDArray[np.uint64]
    "`hash64` of the neighbours `(p,)`."
    units: NDArray[np.uint64]
    "Weights in units of `models.state.kernels.user_rows.UNIT` `(p,)`."


class CovisitSums:
    """Co-visits of item pairs that wait to be sent. Frequent pairs are summed, others are kept one by one."""

    def __init__(self, items: ItemStore) -> None:
        self._items = items
        self._clear(4096)

    def _clear(self, room: int) -> None:
        self._keys, self._sums = np.zeros(SUMMED, np.uint64), np.zeros(SUMMED, np.uint64)
        self._more_keys, self._more_sums = np.empty(room, np.uint64), np.empty(room, np.uint64)
        self._size = 0

    @property
    def waiting(self) -> int:
        """Number of pairs that wait to be sent, without the summed ones."""
        return self._size

    def add(self, applied: Applied) -> None:
        """Add the co-visits of applied events."""
        count = len(applied.units)
        while len(self._more_keys) < self._size + count:
            self._more_keys, self._more_sums = (np.concatenate([kept, kept]) for kept in (self._more_keys, self._more_sums))
        self._size = covisits.add_pairs(
            applied.pairs, applied.units, count, self._keys, self._sums, self._more_keys, self._more_sums, self._size
        )

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of all items so far, for `take`. Call it in the item store's thread, after the last `add`."""
        return self._items.hashes[: len(self._items)]

    def take(self, partitions: int, hashes: NDArray[np.uint64], most: int = 16_000) -> Iterator[tuple[int, Increments]]:
        """Yield the sums since the last call as (owner partition, increments), with at most `most` items and `most` pairs each.

        An item with more pairs is split. Any thread may call it while nothing else changes this table.
        """
        held = self._sums != 0
        keys = np.concatenate([self._more_keys[: self._size], self._keys[held]])
        sums = np.concatenate([self._more_sums[: self._size], self._sums[held]])
        # keep the capacity that was needed now, because growing again costs more
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


class NeighbourTable(Rows):
    """Neighbours of items as bytes. Keys are item hashes of 8 bytes.

    Increments wait until rows are read, because rows are long and most increments add few neighbours to many items.
    """

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self._waiting: list[Increments] = []
        self._pairs = 0
        "Number of waiting increments."

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
        old, starts = joined([row or b"" for row in self._get(keys)])
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
        """Return the rows of items, None for items without a row."""
        self._merge()
        return [NeighbourRow.decode(row) if row else None for row in self._get(keys)]

    def heaviest(self, key: bytes, most: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """Return hashes and weights of the heaviest neighbours, as `NeighbourRow.heaviest`: `(≤ most,)` each."""
        self._merge()
        row = self._get([key])[0] or b""
        columns = np.frombuffer(row, "<u8", offset=covisits.HEAD).reshape(2, -1) if row else np.zeros((2, 0), np.uint64)
        order = np.lexsort((columns[0], -columns[1].astype(np.float64)))[:most]
        return columns[0][order], columns[1][order] * records.UNIT

    def total(self, item: int) -> float:
        """Return the total weight of the neighbours of the item with this hash."""
        self._merge()
        row = self._get([item.to_bytes(8, "little")])[0]
        return int.from_bytes(row[8:16], "little") * records.UNIT if row else 0.0

    @property
    def changed(self) -> int:
        """Lower bound of the rows changed since the last `take`, because waiting increments may change the same rows."""
        return max([len(self._dirty), *(len(each.items) for each in self._waiting)])

    @property
    def changed_at_most(self) -> int:
        """Upper bound of `changed`: as if no two waiting increments changed the same row."""
        return len(self._dirty) + sum(len(each.items) for each in self._waiting)

    def take(self) -> Mapping[bytes, bytes | None]:
        """Return the rows changed since the last call."""
        self._merge()
        return self._taken()
