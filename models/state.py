"""What is kept of a person and of an item, and how events change it. Event time drives decay; wall clock never does."""

from __future__ import annotations

import functools
import hashlib
import math
import operator
import struct
from collections import deque
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.bloom import SeenSet
from schemas.columns import InteractionColumns
from schemas.errors import StoreCorrupt

__all__ = [
    "Applied",
    "ItemStatRow",
    "NeighbourRow",
    "UserRecord",
    "apply_interactions",
    "apply_statistics",
    "decayed",
    "hash64",
]

FORMAT = 1
HISTORY = 200
"Events kept per person."
SLACK = 56
AFFINITIES = 64
"Categories kept per person."
ACTIONS = 64
"Distinct actions counted per person and per item."
AFFINITY_HALF_LIFE_MS = 30 * 86_400_000
POPULARITY_HALF_LIFE_MS = 14 * 86_400_000
SESSION_GAP_MS = 30 * 60_000
COVISIT_WINDOW = 8
"Distinct earlier items that an event is co-visited with."
COVISIT_DECAY = 0.8
COVISIT_BACKWARD = 0.5
COVISIT_WEIGHTS = tuple(COVISIT_DECAY**rank for rank in range(COVISIT_WINDOW))
NEIGHBOURS = 128
"Neighbours kept per item."

EVENT = np.dtype([("time", "<i8"), ("item", "<u8"), ("value", "<f4"), ("action", "<u2")])
HEAD = struct.Struct("<BIIHH")  # format, length of the JSON part, length of the history, event hashes, tiers


@functools.lru_cache(maxsize=200_000)
def hash64(text: str) -> int:
    """A stable 64-bit hash of an id."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bounded(action: str, known: Mapping[str, int]) -> str:
    """The action under which an event is counted: `other` beyond ACTIONS distinct ones, so that a row stays small."""
    return action if action in known or len(known) < ACTIONS else "other"


def decayed(weight: float, at_ms: int, event_ms: int, half_life_ms: float) -> tuple[float, int]:
    """Add one event to an exponentially decayed counter; an event out of order adds what is left of it by now."""
    if event_ms >= at_ms:
        return weight * 2.0 ** (-(event_ms - at_ms) / half_life_ms) + 1.0, event_ms
    return weight + 2.0 ** (-(at_ms - event_ms) / half_life_ms), at_ms


@dataclass(slots=True)
class UserRecord:
    """All that is kept of one person: bounded, versioned, a few kB."""

    counts: dict[str, int] = field(default_factory=dict)
    "Events per action."
    actions: list[str] = field(default_factory=list)
    "Names of the history's action numbers."
    affinities: dict[str, tuple[float, int]] = field(default_factory=dict)
    "Per category: decayed number of events, and the event time (epoch ms) it is valid at."
    first_ms: int = 0
    session: tuple[str, int, int] = ("", 0, 0)
    "Current session: id, start (epoch ms), events."
    seen: SeenSet = field(default_factory=SeenSet)
    buffer: NDArray[np.void] = field(default_factory=lambda: np.zeros(HISTORY + SLACK, EVENT), repr=False)
    size: int = 0
    arrived: deque[int] = field(default_factory=deque)
    "Hashes of the newest events by arrival, newest last, at most HISTORY: the window in which duplicates are dropped."
    _arrived: set[int] | None = None

    @property
    def history(self) -> NDArray[np.void]:
        """The newest events by event time, newest last: structured `EVENT` `(≤ HISTORY,)`, a view."""
        return self.buffer[max(0, self.size - HISTORY) : self.size]

    @property
    def last_ms(self) -> int:
        """Newest event time, epoch ms; 0 when there is none."""
        return int(self.buffer["time"][self.size - 1]) if self.size else 0

    def arrive(self, event: int) -> bool:
        """Note an event's hash; returns whether it is new within the window. By arrival, because an event may be late."""
        if self._arrived is None:
            self._arrived = set(self.arrived)
        if event in self._arrived:
            return False
        self._arrived.add(event)
        self.arrived.append(event)
        if len(self.arrived) > HISTORY:
            self._arrived.discard(self.arrived.popleft())
        return True

    def append(self, time: int, item: int, value: float, action: str) -> None:
        """Put an event into the history at its event time."""
        if action not in self.actions:
            self.actions.append(action)
        if self.size == len(self.buffer):
            self.buffer[:HISTORY] = self.buffer[self.size - HISTORY : self.size].copy()
            self.size = HISTORY
        place = self.size
        times = self.buffer["time"]
        if place and times[place - 1] > time:
            place = int(np.searchsorted(times[: self.size], time, side="right"))
            self.buffer[place + 1 : self.size + 1] = self.buffer[place : self.size].copy()
        self.buffer[place] = (time, item, value, self.actions.index(action))
        self.size += 1

    def encode(self) -> bytes:
        """Versioned bytes: header, JSON of the small maps, history, seen-set. The same state gives the same bytes."""
        tier_counts, bits = self.seen.to_bytes()
        small = orjson.dumps(
            [self.counts, self.actions, self.affinities, self.first_ms, self.session, tier_counts],
            option=orjson.OPT_SORT_KEYS,
        )
        history = self.history.tobytes()
        arrived = np.fromiter(self.arrived, "<u8", len(self.arrived)).tobytes()
        head = HEAD.pack(FORMAT, len(small), len(history), len(self.arrived), len(tier_counts))
        return head + small + history + arrived + bits

    @classmethod
    def decode(cls, data: bytes) -> UserRecord:
        """The inverse of `encode`.

        Raises:
            StoreCorrupt: another format, or lengths that do not fit.
        """
        try:
            form, small_size, history_size, hashes, tiers = HEAD.unpack_from(data)
            if form != FORMAT:
                raise StoreCorrupt("record_format", f"user record of format {form}, this version reads {FORMAT}")
            start = HEAD.size + small_size
            counts, actions, affinities, first_ms, session, tier_counts = orjson.loads(data[HEAD.size : start])
            history = np.frombuffer(data, EVENT, history_size // EVENT.itemsize, start)
            arrived = np.frombuffer(data, "<u8", hashes, start + history_size)
            if len(tier_counts) != tiers:
                raise StoreCorrupt("record_format", "user record with a wrong number of tiers")
            made = cls(
                counts,
                actions,
                {name: (weight, at) for name, (weight, at) in affinities.items()},
                first_ms,
                (session[0], session[1], session[2]),
                SeenSet.of_bytes(tier_counts, data[start + history_size + arrived.nbytes :]),
            )
            made.size = len(history)
            made.buffer[: made.size] = history
        except (struct.error, ValueError, TypeError, AttributeError, IndexError) as exc:
            raise StoreCorrupt("record_format", f"user record that cannot be read: {exc}") from exc
        made.arrived = deque(arrived.tolist())
        return made


@dataclass(slots=True)
class Applied:
    """What applying a chunk did."""

    accepted: NDArray[np.bool_]
    "Per event: False for a duplicate."
    covisits: dict[str, dict[str, float]]
    "Per item: co-visitation weight of each other item."


def apply_interactions(
    records: Mapping[str, UserRecord],
    events: InteractionColumns,
    categories: Mapping[int, tuple[str, ...]],
    item_ids: Mapping[int, str],
) -> Applied:
    """Apply events, in stream order, to the records of their users.

    `records` holds a record for every user of `events`; `categories` and `item_ids` give, by `hash64` of the item id, what
    the catalogue knows (an unknown item has no category and is co-visited with nothing that came before it is known).
    Events are dropped as duplicates when their `event_id` is within the user's kept window. Deterministic: the same
    events in the same order, in whatever chunks, leave the same records.
    """
    accepted = np.zeros(len(events), np.bool_)
    covisits: dict[str, dict[str, float]] = {}
    values = events.value.tolist()
    for n, time in enumerate(events.event_time.tolist()):
        record = records[events.user_id[n]]
        if not record.arrive(hash64(events.event_id[n])):
            continue
        accepted[n] = True
        item_id, action = events.item_id[n], bounded(events.action[n], record.counts)
        item = hash64(item_id)
        _covisit(record, item_id, item, item_ids, covisits)
        _session(record, events.session_id[n], time)
        record.first_ms = min(record.first_ms, time) if record.size else time
        record.append(time, item, values[n], action)
        record.counts[action] = record.counts.get(action, 0) + 1
        record.seen.add(item_id)
        for name in categories.get(item, ()):
            weight, at = record.affinities.get(name, (0.0, time))
            record.affinities[name] = decayed(weight, at, time, AFFINITY_HALF_LIFE_MS)
        if len(record.affinities) > AFFINITIES:
            _prune(record)
    return Applied(accepted, covisits)


def _covisit(
    record: UserRecord, item_id: str, item: int, item_ids: Mapping[int, str], out: dict[str, dict[str, float]]
) -> None:
    distinct: list[int] = []
    for other in record.history["item"][: -4 * COVISIT_WINDOW - 1 : -1].tolist():
        if other != item and other not in distinct:
            distinct.append(other)
            if len(distinct) == COVISIT_WINDOW:
                break
    known = [
        (other_id, w) for h, w in zip(distinct, COVISIT_WEIGHTS, strict=False) if (other_id := item_ids.get(h)) is not None
    ]
    if not known:
        return
    backward = out.setdefault(item_id, {})
    for other_id, weight in known:
        forward = out.get(other_id)
        if forward is None:
            forward = out[other_id] = {}
        forward[item_id] = forward.get(item_id, 0.0) + weight
        backward[other_id] = backward.get(other_id, 0.0) + weight * COVISIT_BACKWARD


def _session(record: UserRecord, session_id: str | None, time: int) -> None:
    name, start, count = record.session
    fresh = record.size == 0 or time - record.last_ms > SESSION_GAP_MS
    if fresh or (session_id is not None and session_id != name):
        record.session = (session_id or "", time, 1)
    else:
        record.session = (name, start, count + 1)


def _prune(record: UserRecord) -> None:
    """Keep the affinities that weigh most at the newest event time; ties by name."""
    newest = max(at for _, at in record.affinities.values())

    def left(entry: tuple[str, tuple[float, int]]) -> tuple[float, str]:
        name, (weight, at) = entry
        return -weight * 2.0 ** (-(newest - at) / AFFINITY_HALF_LIFE_MS), name

    record.affinities = dict(sorted(record.affinities.items(), key=left)[:AFFINITIES])


def _fields(data: bytes, count: int) -> list[Any]:
    """The JSON list after the format byte; raises StoreCorrupt unless it has `count` entries, the first an object."""
    try:
        fields = orjson.loads(data[1:])
    except orjson.JSONDecodeError as exc:
        raise StoreCorrupt("record_format", f"row that cannot be read: {exc}") from exc
    if not isinstance(fields, list) or len(fields) != count or not isinstance(fields[0], dict):
        raise StoreCorrupt("record_format", "row with wrong fields")
    return fields


@dataclass(slots=True)
class ItemStatRow:
    """Statistics of one item over the events of one source partition."""

    counts: dict[str, int] = field(default_factory=dict)
    value_sum: float = 0.0
    value_count: int = 0
    popularity: float = 0.0
    "Decayed number of events, valid at `updated_ms`."
    updated_ms: int = 0
    first_ms: int = 0

    def encode(self) -> bytes:
        """Versioned bytes."""
        fields = [self.counts, self.value_sum, self.value_count, self.popularity, self.updated_ms, self.first_ms]
        return bytes([FORMAT]) + orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)

    @classmethod
    def decode(cls, data: bytes) -> ItemStatRow:
        """The inverse of `encode`; raises StoreCorrupt."""
        if data[:1] != bytes([FORMAT]):
            raise StoreCorrupt("record_format", "item statistics of an unknown format")
        return cls(*_fields(data, 6))


def apply_statistics(
    rows: MutableMapping[str, ItemStatRow], events: InteractionColumns, accepted: NDArray[np.bool_]
) -> set[str]:
    """Count accepted events into `rows`, made as needed; returns the items touched."""
    touched: set[str] = set()
    for n in np.flatnonzero(accepted).tolist():
        item_id, time, value = events.item_id[n], int(events.event_time[n]), float(events.value[n])
        row = rows.get(item_id)
        if row is None:
            row = rows[item_id] = ItemStatRow(first_ms=time)
        action = bounded(events.action[n], row.counts)
        row.counts[action] = row.counts.get(action, 0) + 1
        if not math.isnan(value):
            row.value_sum += value
            row.value_count += 1
        row.popularity, row.updated_ms = decayed(row.popularity, row.updated_ms, time, POPULARITY_HALF_LIFE_MS)
        row.first_ms = min(row.first_ms, time)
        touched.add(item_id)
    return touched


@dataclass(slots=True)
class NeighbourRow:
    """Co-visitation weights of one item, bounded: the lightest neighbours go first."""

    weights: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def add(self, others: list[str], weights: list[float]) -> None:
        """Add increments."""
        for other, weight in zip(others, weights, strict=True):
            self.weights[other] = self.weights.get(other, 0.0) + weight
            self.total += weight
        if len(self.weights) > 2 * NEIGHBOURS:
            self.weights = dict(self.heaviest(NEIGHBOURS))

    def heaviest(self, most: int) -> list[tuple[str, float]]:
        """The heaviest neighbours, heaviest first, ties by id."""
        pairs = sorted(self.weights.items())
        pairs.sort(key=operator.itemgetter(1), reverse=True)  # stable: ties stay by id
        return pairs[:most]

    def encode(self) -> bytes:
        """Versioned bytes."""
        return bytes([FORMAT]) + orjson.dumps([self.weights, self.total], option=orjson.OPT_SORT_KEYS)

    @classmethod
    def decode(cls, data: bytes) -> NeighbourRow:
        """The inverse of `encode`; raises StoreCorrupt."""
        if data[:1] != bytes([FORMAT]):
            raise StoreCorrupt("record_format", "neighbours of an unknown format")
        return cls(*_fields(data, 2))
