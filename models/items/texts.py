"""Ids and catalogue entries by item row: those of a shelf lie in one array each, newer ones are objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from schemas.codec import decode
from schemas.records import Item
from schemas.validation import item_from

__all__ = ["Entries", "Ids", "Packed"]


class Packed:
    """Texts in one array: number n at `starts[n]:starts[n + 1]` of `data`."""

    def __init__(self, data: NDArray[np.uint8], starts: NDArray[np.int64]) -> None:
        self.data, self.starts = data, starts

    @classmethod
    def of(cls, texts: Iterable[bytes], count: int) -> Packed:
        """Pack `count` texts."""
        held = list(texts)
        starts = np.zeros(count + 1, np.int64)
        np.cumsum(np.fromiter(map(len, held), np.int64, count), out=starts[1:])
        return cls(np.frombuffer(b"".join(held), np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.starts[row] : self.starts[row + 1]].tobytes()


NOTHING = Packed(np.zeros(0, np.uint8), np.zeros(1, np.int64))


class Ids(Sequence[str]):
    """The ids by item row. They only grow."""

    def __init__(self, held: Packed = NOTHING, newer: Iterable[str] = ()) -> None:
        self._held, self._base = held, len(held)
        self._newer = list(newer)

    def __len__(self) -> int:
        return self._base + len(self._newer)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            if row.step in (None, 1) and (row.start or 0) >= self._base:
                return self._newer[(row.start or 0) - self._base : None if row.stop is None else row.stop - self._base]
            return [self[n] for n in range(*row.indices(len(self)))]
        if row < 0:
            row += len(self)
        if row >= self._base:
            return self._newer[row - self._base]
        if row < 0:
            raise IndexError(row)
        return self._held[row].decode()

    def __iter__(self) -> Iterator[str]:
        return chain((self._held[row].decode() for row in range(self._base)), self._newer)

    def append(self, item_id: str) -> None:
        """Add the id of the next row."""
        self._newer.append(item_id)


class Entries:
    """The catalogue's entries by item row, mostly as their records: an entry is decoded when it is asked for."""

    def __init__(self, listed: Callable[[], NDArray[np.bool_]], held: Packed = NOTHING) -> None:
        """`listed`: returns whether the item of each row is in the catalogue."""
        self._listed, self._held = listed, held
        self._newer: dict[int, Item | bytes] = {}

    def put(self, row: int, item: Item, value: bytes) -> None:
        """Replace an entry; `value`: its record in single-object encoding, or empty."""
        self._newer[row] = value or item

    def drop(self, row: int) -> None:
        """Forget an entry of an item that is not in the catalogue."""
        self._newer.pop(row, None)

    def __getitem__(self, row: int) -> Item | None:
        """Return the entry of a row, None if the item is not in the catalogue."""
        return self.last(row) if self._listed()[row] else None

    def last(self, row: int) -> Item | None:
        """Return the last known entry of a row, also of an item that is not in the catalogue, None if there is none.

        The item may come back with this entry, which then does not count as a change: see `ItemStore.list_again`.
        """
        found = self._newer.get(row)
        if isinstance(found, Item):
            return found
        value = self.record(row)
        return item_from(decode("item", value)[0]) if value else None

    def __iter__(self) -> Iterator[Item]:
        return (item for row in np.flatnonzero(self._listed()).tolist() if (item := self[row]) is not None)

    def record(self, row: int) -> bytes:
        """Return the record of a row, empty if there is none."""
        found = self._newer.get(row)
        if found is None:
            return self._held[row] if row < len(self._held) else b""
        return b"" if isinstance(found, Item) else found

    def on(self, held: Packed, newer: Iterable[int]) -> Entries:
        """Return the same entries, which `held` has but for those of the rows `newer`, and those without a record."""
        made, kept = Entries(self._listed, held), set(newer)
        made._newer = {row: entry for row, entry in self._newer.items() if row in kept or isinstance(entry, Item)}
        return made
