"""Records of a batch of users as columns: what a request reads of many `models.state.rows.UserRecord` at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.state.kernels.hash_index import HashIndex
from models.state.kernels.user_columns import read_columns
from models.state.rows import UserRecord, hash64
from schemas.errors import StoreCorrupt

__all__ = ["MOST_NAMES", "Users"]

MOST_NAMES = 10_000
"Maximum number of action names that a process remembers. Others are read anew in each batch."


class _Names:
    """Names of actions that occurred in records, numbered from 0. Names are never removed; any thread may add some."""

    def __init__(self, most: int = MOST_NAMES) -> None:
        self._most = most
        self._adding = threading.Lock()
        self.index = HashIndex()
        "Numbers of names, by `hash64`."
        self.texts = np.zeros(1, np.int64), np.zeros(0, np.uint8)
        "Start of each name and the last one's end, int64 `(n + 1,)`, and the names in UTF-8."
        self.names: list[str] = []
        self._held: set[str] = set()

    def add(self, names: Sequence[str]) -> None:
        """Add names, as far as there is room."""
        with self._adding:
            new = [name for name in dict.fromkeys(names) if name not in self._held][: self._most - len(self.names)]
            if not new:
                return
            starts, texts = self.texts
            encoded = [name.encode() for name in new]
            ends = starts[-1] + np.cumsum([len(text) for text in encoded])
            # a number enters the index last, so that its name can be read
            self._held.update(new)
            self.names += new
            self.texts = np.concatenate([starts, ends]), np.concatenate([texts, np.frombuffer(b"".join(encoded), np.uint8)])
            for n, name in enumerate(new, len(starts) - 1):
                self.index.add(hash64(name), n)


_names = _Names()


@dataclass(frozen=True, slots=True)
class Users:
    """Records of q users in columns; rows of unknown users are empty."""

    known: NDArray[np.bool_]
    "Whether the user has a record `(q,)`."
    size: NDArray[np.int32]
    "Number of kept events `(q,)`."
    time: NDArray[np.int64]
    "Times of the kept events (epoch ms), newest first, 0 beyond `size` `(q, HISTORY)`."
    item: NDArray[np.uint64]
    "`hash64` of the items' ids, newest first, 0 beyond `(q, HISTORY)`."
    value: NDArray[np.float32]
    "Values, newest first, NaN where there is none and beyond `(q, HISTORY)`."
    action: NDArray[np.int32]
    "Numbers of the actions in `actions`, newest first, -1 beyond `(q, HISTORY)`."
    actions: Sequence[str]
    "Distinct names of the actions in these records."
    events: NDArray[np.int64]
    "Number of events so far, kept or not `(q,)`."
    first_ms: NDArray[np.int64]
    "Event time of the first event (epoch ms) `(q,)`."
    last_ms: NDArray[np.int64]
    "Event time of the newest event (epoch ms), 0 without events `(q,)`."
    session_events: NDArray[np.int64]
    "Number of events of the current session `(q,)`."
    affinity_starts: NDArray[np.int64]
    "First affinity of each user, and the last one's end `(q + 1,)`."
    affinity_category: NDArray[np.uint64]
    "`hash64` of the category's name, as the record holds it."
    affinity_weight: NDArray[np.float64]
    "Decayed number of events of the category."
    affinity_ms: NDArray[np.int64]
    "Event time (epoch ms) at which the weight is valid."
    seen_items: NDArray[np.int64]
    "Number of items added to the seen-set's tiers `(q,)`."
    seen_starts: NDArray[np.int64]
    "First tier of each user in `seen_tiers`, and the last one's end `(q + 1,)`."
    seen_tiers: NDArray[np.uint8]
    "Bits of all users' tiers, oldest first, least significant bit first `(t, TIER_BYTES)`."

    def __len__(self) -> int:
        return len(self.known)

    @classmethod
    def read(cls, rows: Sequence[bytes | None]) -> Users:
        """Read stored records of the current formats; None for an unknown user.

        Raises:
            StoreCorrupt: a row that `UserRecord.decode` refuses, or one of an older format.
        """
        known = np.fromiter((row is not None for row in rows), np.bool_, len(rows))
        held = [row or b"" for row in rows]
        lengths = np.fromiter(map(len, held), np.int64, len(held))
        starts = np.zeros(len(held) + 1, np.int64)
        np.cumsum((lengths + 7) & ~7, out=starts[1:])
        if starts[-1] != lengths.sum():
            # records are whole 8-byte words, but cut ones need not be
            held = [row + bytes(-len(row) % 8) for row in held]
        data = np.frombuffer(b"".join(held), np.uint8)
        starts_of_names, texts = _names.texts
        bad, columns, affinities, seen, found = read_columns(
            data, starts, lengths, known, *_names.index.table, starts_of_names, texts
        )
        if bad >= 0:
            row = rows[bad] or b""
            UserRecord.decode(row)
            raise StoreCorrupt("record_format", f"user record of format {row[0]}, which must be converted before it is read")
        size, time, item, value, action, *numbers = columns
        names = _names.names
        if len(found) and found[:, 0].min() < 0:
            actions, action = _with_unknown(data, found, action)
        else:
            actions = [names[n] for n in found[:, 0].tolist()]
        return cls(known, size, time, item, value, action, actions, *numbers, *affinities, *seen)

    @classmethod
    def of(cls, records: Sequence[UserRecord | None]) -> Users:
        """Build the columns of records; None for an unknown user.

        Raises:
            StoreCorrupt: a record that `UserRecord.decode` would refuse.
        """
        return cls.read([None if record is None else record.encode() for record in records])


def _with_unknown(
    data: NDArray[np.uint8], found: NDArray[np.int64], action: NDArray[np.int32]
) -> tuple[list[str], NDArray[np.int32]]:
    """Return the distinct names of `found`, the last result of `read_columns`, and the numbers of `action` among them."""
    hashes = data.view(np.uint64)
    names, new = [], []
    for number, start, length, place in found.tolist():
        name = data[start : start + length].tobytes().decode() if number < 0 else _names.names[number]
        names.append(name)
        # a damaged hash must not give its name to other users' records
        if number < 0 and hash64(name) == hashes[place]:
            new.append(name)
    _names.add(new)
    numbers: dict[str, int] = {}
    number_of = np.asarray([*(numbers.setdefault(name, len(numbers)) for name in names), -1], np.int32)
    return list(numbers), number_of[action]
