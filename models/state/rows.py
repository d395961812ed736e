"""Rows of users and items, as values and as bytes. Event time drives decay; the wall clock never does.

The loops of `models.state.kernels` change the bytes. The classes here read them, and write them when a row of an older format
is converted. All numbers are little-endian; rows are padded with zeros to a multiple of 8 bytes.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from models.state.bloom import EARLIER_BITS, EARLIER_TIER_BYTES, FIRST_TIERS, MAX_TIERS, TIER_BYTES, EarlierSeenSet, SeenSet
from models.state.kernels import user_rows as records
from models.state.kernels.statistics import POPULARITY_HALF_LIFE_MS
from models.state.kernels.user_rows import ACTIONS, AFFINITY_HALF_LIFE_MS, DENSE, HISTORY, SPARSE, UNIT, WORDS
from schemas.errors import StoreCorrupt

__all__ = [
    "AFFINITY_HALF_LIFE_MS",
    "EVENT",
    "HISTORY",
    "POPULARITY_HALF_LIFE_MS",
    "ItemStatRow",
    "NeighbourRow",
    "UserRecord",
    "hash64",
]

T = TypeVar("T")
FORMAT = 2
"Format of statistics and neighbours. User records have `models.state.kernels.user_rows.FORMAT`, or `LONG` with many tiers."
EVENT = np.dtype([("time", "<i8"), ("item", "<u8"), ("value", "<f4"), ("action", "<u2")])
HEAD_1 = struct.Struct("<BIIHH")
"Format 1: format, length of the JSON part, length of the history, event hashes, tiers."
HEAD_2 = struct.Struct("<BBHHHHHIqqIIII")
"""Formats 2 to 4: format, tiers, actions, affinities, events, event hashes, bytes of the session id, events of the session,
first event and session start (epoch ms), positions of sparse tiers, offset of the 2-byte section (in units of 2 bytes), offset
of the 4-byte section (in units of 4 bytes), 0."""
STATISTICS_2 = struct.Struct("<BBHIdqdqq")
"Format 2: format, 0, actions, bytes of their names, value sum, value count, popularity, updated, first (epoch ms)."
NEIGHBOURS_2 = struct.Struct("<BBHIQ")
"Format 2: format, 0, 0, neighbours, total in units."


@functools.lru_cache(maxsize=200_000)
def hash64(text: str) -> int:
    """Return a stable 64-bit hash of an id: BLAKE2b (RFC 7693) with a digest of 8 bytes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _padded(*parts: bytes) -> bytes:
    data = b"".join(parts)
    return data + bytes(-len(data) % 8)


class _Reader:
    """Reads arrays and texts from bytes in sequence; raises ValueError beyond the end."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def take(self, dtype: str, count: int) -> NDArray[Any]:
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found

    def texts(self, lengths: NDArray[np.uint16]) -> list[str]:
        found = []
        for length in lengths.tolist():
            if self.at + length > len(self.data):
                raise ValueError("cut within a name")
            found.append(self.data[self.at : self.at + length].decode())
            self.at += length
        return found


@dataclass(slots=True)
class UserRecord:
    """The whole record of one user: bounded in size, versioned, a few kB."""

    counts: dict[str, int] = field(default_factory=dict)
    "Number of events per action, in the order of first occurrence, which defines the action numbers of the history."
    affinities: dict[str, tuple[float, int]] = field(default_factory=dict)
    "Decayed number of events, and the event time (epoch ms) at which it is valid, by category."
    first_ms: int = 0
    session: tuple[str, int, int] = ("", 0, 0)
    "Current session: id, start (epoch ms), number of events."
    seen: SeenSet = field(default_factory=SeenSet)
    history: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, EVENT), repr=False)
    "The newest events by event time, newest last: structured `EVENT` `(≤ HISTORY,)`."
    arrived: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    "Hashes of the newest events by arrival, newest last, at most HISTORY: the window for dropping duplicates."
    earlier: EarlierSeenSet | None = field(default=None, repr=False, compare=False)
    "The seen-set of a record of format 1 or 2; `seen` is then empty until a caller that has the item ids moves them over."

    @property
    def actions(self) -> list[str]:
        """Names of the history's action numbers."""
        return list(self.counts)

    @property
    def last_ms(self) -> int:
        """Newest event time (epoch ms); 0 without events."""
        return int(self.history["time"][-1]) if len(self.history) else 0

    def encode(self) -> bytes:
        """Encode as the compiled loops encode the same state: 8-byte, 4-byte and 2-byte columns, then names."""
        names = [self.session[0], *self.counts, *self.affinities]
        texts = [name.encode() for name in names]
        wide = [
            self.history["time"].astype("<i8"),
            self.history["item"].astype("<u8"),
            self.arrived.astype("<u8"),
            np.asarray([hash64(name) for name in self.counts], "<u8"),
            np.asarray([hash64(name) for name in self.affinities], "<u8"),
            np.asarray([weight for weight, _ in self.affinities.values()], "<f8"),
            np.asarray([at for _, at in self.affinities.values()], "<i8"),
        ]
        held, positions = [], []
        for tier in self.seen.tiers:
            bits = np.flatnonzero(np.unpackbits(tier, bitorder="little"))
            if len(bits) > SPARSE:
                wide.append(np.frombuffer(tier.tobytes() + bytes(8 * WORDS - TIER_BYTES), "<u8"))
                held.append(DENSE)
            else:
                positions.append(bits.astype("<u2"))
                held.append(len(bits))
        words = HEAD_2.size // 8 + sum(map(len, wide))
        medium = [self.history["value"].astype("<f4"), np.asarray(list(self.counts.values()), "<u4")]
        narrow = [
            self.history["action"].astype("<u2"),
            np.asarray([len(text) for text in texts[1:]], "<u2"),
            np.asarray([*self.seen.counts, *held], "<u2"),
            *positions,
        ]
        head = HEAD_2.pack(
            records.FORMAT if len(self.seen.tiers) <= FIRST_TIERS else records.LONG,
            len(self.seen.tiers),
            len(self.counts),
            len(self.affinities),
            len(self.history),
            len(self.arrived),
            len(texts[0]),
            self.session[2],
            self.first_ms,
            self.session[1],
            sum(map(len, positions)),
            4 * words + 2 * sum(map(len, medium)),
            2 * words,
            0,
        )
        return _padded(head, *(part.tobytes() for part in (*wide, *medium, *narrow)), *texts)

    @classmethod
    def decode(cls, data: bytes) -> UserRecord:
        """Decode a record of any format that was ever written.

        Raises:
            StoreCorrupt: an unknown format, or lengths that do not match.
        """
        return _decoded(data, {1: cls._of_1, 2: cls._of_2, 3: cls._of_3, 4: cls._of_3}, "user record")

    @classmethod
    def _of_2(cls, data: bytes) -> UserRecord:
        return cls._of_3(data, EARLIER_TIER_BYTES, (EARLIER_BITS + 63) // 64)

    @classmethod
    def _of_3(cls, data: bytes, tier_bytes: int = TIER_BYTES, tier_words: int = WORDS) -> UserRecord:
        head = HEAD_2.unpack_from(data)
        tiers, actions, affinities, events, hashes, session_bytes, session_events = head[1:8]
        first_ms, session_ms, sparse, _, medium_at, _ = head[8:]
        if tiers > MAX_TIERS:
            raise ValueError(f"{tiers} tiers of a seen-set, at most {MAX_TIERS} are kept")
        if events > HISTORY or actions > ACTIONS + 1:
            raise ValueError(f"{events} events of {actions} actions, at most {HISTORY} of {ACTIONS + 1} are kept")
        read = _Reader(data, HEAD_2.size)
        history = np.zeros(events, EVENT)
        history["time"], history["item"] = read.take("<i8", events), read.take("<u8", events)
        arrived = read.take("<u8", hashes)
        read.take("<u8", actions + affinities)
        weights, at = read.take("<f8", affinities), read.take("<i8", affinities)
        # the end of the dense tiers' words follows from the head
        dense = _Reader(data, read.at)
        read.at = 4 * medium_at
        history["value"], counts = read.take("<f4", events), read.take("<u4", actions)
        history["action"] = read.take("<u2", events)
        lengths = read.take("<u2", actions + affinities)
        items, held = read.take("<u2", tiers), read.take("<u2", tiers)
        positions = _Reader(read.take("<u2", sparse).tobytes(), 0)
        found = []
        for count in held.tolist():
            if count == DENSE:
                found.append(dense.take("<u8", tier_words).tobytes()[:tier_bytes])
            else:
                tier = np.zeros(8 * tier_bytes, np.uint8)
                tier[positions.take("<u2", count)] = 1
                found.append(np.packbits(tier, bitorder="little").tobytes())
        bits = b"".join(found)
        names = read.texts(np.concatenate([[session_bytes], lengths]).astype(np.uint16))
        if len(set(names[1 : 1 + actions])) < actions or (history["action"] >= actions).any():
            raise ValueError("actions that repeat, or an event of an action that is not among them")
        return cls(
            dict(zip(names[1 : 1 + actions], counts.tolist(), strict=True)),
            {n: (w, a) for n, w, a in zip(names[1 + actions :], weights.tolist(), at.tolist(), strict=True)},
            first_ms,
            (names[0], session_ms, session_events),
            SeenSet.of_bytes(items.tolist(), bits) if tier_bytes == TIER_BYTES else SeenSet(),
            history,
            arrived,
            EarlierSeenSet(tiers, bits) if tier_bytes != TIER_BYTES else None,
        )

    @classmethod
    def _of_1(cls, data: bytes) -> UserRecord:
        _, small_size, history_size, hashes, tiers = HEAD_1.unpack_from(data)
        start = HEAD_1.size + small_size
        counts, actions, affinities, first_ms, session, tier_counts = orjson.loads(data[HEAD_1.size : start])
        history = np.frombuffer(data, EVENT, history_size // EVENT.itemsize, start)
        arrived = np.frombuffer(data, "<u8", hashes, start + history_size)
        if len(tier_counts) != tiers:
            raise ValueError("a wrong number of tiers")
        return cls(
            {name: counts[name] for name in actions},
            {name: (weight, at) for name, (weight, at) in affinities.items()},
            first_ms,
            (session[0], session[1], session[2]),
            SeenSet(),
            history,
            arrived,
            EarlierSeenSet(tiers, data[start + history_size + arrived.nbytes :]),
        )


def _decoded(data: bytes, formats: Mapping[int, Callable[[bytes], T]], what: str) -> T:
    read = formats.get(data[0]) if data else None
    if read is None:
        raise StoreCorrupt("record_format", f"{what} of an unknown format; this version reads {', '.join(map(str, formats))}")
    try:
        return read(data)
    except (struct.error, ValueError, TypeError, AttributeError, IndexError, KeyError, OverflowError) as exc:
        raise StoreCorrupt("record_format", f"{what} that cannot be read: {exc}") from exc


@dataclass(slots=True)
class ItemStatRow:
    """Statistics of one item over the events of one source partition."""

    counts: dict[str, int] = field(default_factory=dict)
    "Number of events per action; stored in the order of `hash64` of the names."
    value_sum: float = 0.0
    value_count: int = 0
    popularity: float = 0.0
    "Decayed number of events, valid at `updated_ms`."
    updated_ms: int = 0
    first_ms: int = 0

    def encode(self) -> bytes:
        """Encode as the compiled loops encode the same statistics."""
        counts = sorted(self.counts.items(), key=lambda entry: hash64(entry[0]))
        texts = [name.encode() for name, _ in counts]
        head = STATISTICS_2.pack(
            FORMAT,
            0,
            len(counts),
            sum(map(len, texts)),
            self.value_sum,
            self.value_count,
            self.popularity,
            self.updated_ms,
            self.first_ms,
        )
        numbers = np.asarray([count for _, count in counts], "<u8").tobytes()
        return _padded(head, numbers, np.asarray([len(text) for text in texts], "<u2").tobytes(), *texts)

    @classmethod
    def decode(cls, data: bytes) -> ItemStatRow:
        """Decode a row of any format that was ever written.

        Raises:
            StoreCorrupt: an unknown format, or lengths that do not match.
        """
        return _decoded(data, {1: cls._of_1, 2: cls._of_2}, "item statistics")

    @classmethod
    def _of_2(cls, data: bytes) -> ItemStatRow:
        _, _, actions, _, value_sum, value_count, popularity, updated, first = STATISTICS_2.unpack_from(data)
        read = _Reader(data, STATISTICS_2.size)
        counts, lengths = read.take("<u8", actions), read.take("<u2", actions)
        names = read.texts(lengths)
        return cls(dict(zip(names, counts.tolist(), strict=True)), value_sum, value_count, popularity, updated, first)

    @classmethod
    def _of_1(cls, data: bytes) -> ItemStatRow:
        return cls(*_fields_1(data, 6))


@dataclass(slots=True)
class NeighbourRow:
    """Co-visitation weights of one item. Their number is bounded; the lightest neighbours are dropped first."""

    units: dict[int, int] = field(default_factory=dict)
    "Weight of each neighbour, by `hash64` of its id, in units of UNIT."
    total: int = 0
    "Total weight of all neighbours, including dropped ones, in units."

    def heaviest(self, most: int) -> list[tuple[int, float]]:
        """Return the heaviest neighbours and their weights, heaviest first, ties by hash."""
        pairs = sorted(self.units.items(), key=lambda pair: (-pair[1], pair[0]))
        return [(other, units * UNIT) for other, units in pairs[:most]]

    def encode(self) -> bytes:
        """Encode as the compiled loops encode the same neighbours: hashes ascending, then units."""
        pairs = sorted(self.units.items())
        head = NEIGHBOURS_2.pack(FORMAT, 0, 0, len(pairs), self.total)
        columns = np.asarray(pairs, "<u8").reshape(-1, 2)
        return head + columns[:, 0].tobytes() + columns[:, 1].tobytes()

    @classmethod
    def decode(cls, data: bytes) -> NeighbourRow:
        """Decode a row of any format that was ever written.

        Raises:
            StoreCorrupt: an unknown format, or lengths that do not match.
        """
        return _decoded(data, {1: cls._of_1, 2: cls._of_2}, "neighbours")

    @classmethod
    def _of_2(cls, data: bytes) -> NeighbourRow:
        _, _, _, count, total = NEIGHBOURS_2.unpack_from(data)
        read = _Reader(data, NEIGHBOURS_2.size)
        others, units = read.take("<u8", count), read.take("<u8", count)
        return cls(dict(zip(others.tolist(), units.tolist(), strict=True)), total)

    @classmethod
    def _of_1(cls, data: bytes) -> NeighbourRow:
        weights, total = _fields_1(data, 2)
        return cls({hash64(other): round(weight / UNIT) for other, weight in weights.items()}, round(total / UNIT))


def _fields_1(data: bytes, count: int) -> list[Any]:
    """Read format 1, a JSON list after the format byte; raises ValueError unless `count` entries begin with an object."""
    fields = orjson.loads(data[1:])
    if not isinstance(fields, list) or len(fields) != count or not isinstance(fields[0], dict):
        raise ValueError("wrong fields")
    return fields
