"""A chunk of interaction records as columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.codec import MAX_VALUE_BYTES, Headers, Registry, decode, encode, header, header_of
from schemas.errors import BadEvent, TransientError
from schemas.kernels import decode_block, partitions_of
from schemas.plain_json import plain_json
from schemas.records import Interaction
from schemas.spans import Spans
from schemas.validation import FUTURE_MS, MAX_ID_BYTES, check_time, interaction_from

__all__ = [
    "ERASE",
    "BadRecord",
    "Decoded",
    "EventColumns",
    "Placed",
    "check_place",
    "decode_interactions",
    "event_of",
]

log = logging.getLogger(__name__)

ERASE = ("riffle-op", b"erase")
EVENT, ITEM, ACTION, SESSION = range(4)


@dataclass(frozen=True, slots=True)
class Placed:
    """Which partition records were read from, of how many."""

    partition: int
    partitions: int


@dataclass(slots=True)
class EventColumns:
    """n interactions in stream order. Texts stay in the bytes they came in, found by start and length."""

    data: NDArray[np.uint8]
    "The bytes that hold the records."
    users: Sequence[bytes]
    "UTF-8 user ids (the record keys)."
    offset: NDArray[np.int64]
    starts: NDArray[np.int64]
    "int64 `(4, n)`: where event id, item id, action and session id start in `data`."
    lengths: NDArray[np.int64]
    "int64 `(4, n)`: their bytes; -1 for no session."
    hashes: NDArray[np.uint64]
    "uint64 `(3, n)`: `hash64` of event id, item id and action."
    event_time: NDArray[np.int64]
    "Epoch ms."
    value: NDArray[np.float32]
    "NaN where absent."

    def __len__(self) -> int:
        return len(self.offset)

    @classmethod
    def of(cls, events: Sequence[Interaction], offsets: Sequence[int]) -> EventColumns:
        """Columns of valid `events`, as if they had been read at `offsets`."""
        values = [_encoded(event) for event in events]
        keys = [event.user_id.encode() for event in events]
        return _read(values, Spans.of(keys), np.asarray(offsets, np.int64), np.ones(len(values), np.uint8))[1]

    def slice(self, start: int, stop: int) -> EventColumns:
        """Rows `start` to `stop` (exclusive)."""
        rows = slice(start, stop)
        return EventColumns(
            self.data,
            self.users[rows],
            self.offset[rows],
            np.ascontiguousarray(self.starts[:, rows]),
            np.ascontiguousarray(self.lengths[:, rows]),
            np.ascontiguousarray(self.hashes[:, rows]),
            self.event_time[rows],
            self.value[rows],
        )

    def take(self, rows: NDArray[np.int64]) -> EventColumns:
        """The rows numbered `rows`, in their order."""
        return EventColumns(
            self.data,
            [self.users[n] for n in rows.tolist()],
            self.offset[rows],
            np.ascontiguousarray(self.starts[:, rows]),
            np.ascontiguousarray(self.lengths[:, rows]),
            np.ascontiguousarray(self.hashes[:, rows]),
            self.event_time[rows],
            self.value[rows],
        )

    def text(self, column: int, row: int) -> str:
        """Text of a row; `column` is EVENT, ITEM, ACTION or SESSION. Empty where absent."""
        start = int(self.starts[column, row])
        return self.data[start : start + max(int(self.lengths[column, row]), 0)].tobytes().decode()


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record of a chunk that cannot be used: its position in the chunk, and why."""

    index: int
    code: str
    reason: str


@dataclass(slots=True)
class Decoded:
    """A decoded chunk: every input record is in exactly one of the three."""

    columns: EventColumns
    bad: list[BadRecord]
    erasures: list[tuple[int, str]]
    "Position in the chunk, and user to erase."


def _encoded(event: Interaction) -> bytes:
    return encode("interaction", {name: getattr(event, name) for name in Interaction.__dataclass_fields__})


def _read(
    values: Sequence[bytes | None], names: Spans, offsets: NDArray[np.int64], checked: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], EventColumns]:
    """Status per record, and columns of all of them (of those that are not 0: zeros). `names` are the keys."""
    texts = values if isinstance(values, Spans) else Spans.of(values)
    data, head = np.frombuffer(texts.data, np.uint8), np.frombuffer(header("interaction"), np.uint8)
    owners, lengths = np.frombuffer(names.data, np.uint8), np.maximum(names.lengths, 0)
    status, *columns = decode_block(data, texts.starts, texts.ends, head, owners, names.starts, lengths, checked)
    return status, EventColumns(data, names.whole(), offsets, *columns)


def _elsewhere(names: Spans, placed: Placed) -> NDArray[np.int64]:
    """Partition of each key; that of the records where it is right, or there is no key."""
    found = partitions_of(np.frombuffer(names.data, np.uint8), names.starts, names.lengths, placed.partitions)
    return np.where(found < 0, placed.partition, found)


def check_place(partition: int, placed: Placed) -> None:
    """Refuse a record whose key belongs to another partition: whoever asks for its person looks there.

    Raises:
        BadEvent: `wrong_partition`.
    """
    if partition != placed.partition:
        message = (
            f"its key belongs to partition {partition} of {placed.partitions}, it came by {placed.partition}: have the "
            "producer partition by murmur2 (librdkafka: partitioner=murmur2_random), then run "
            "`riffle dlq replay --code wrong_partition`"
        )
        raise BadEvent("wrong_partition", message, "key")


def decode_interactions(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    headers: Sequence[Headers],
    offsets: Sequence[int],
    registry: Registry | None = None,
    timestamps: Sequence[int] | None = None,
    placed: Placed | None = None,
) -> Decoded:
    """Decode a chunk of the interactions topic. A bad record never affects its neighbours and never raises.

    The key must be the UTF-8 `user_id`: it decides the partition that holds the user's state. A record without value and
    with header `riffle-op: erase` asks to forget the user named by its key. Records of the current schema in single-object
    encoding are read by compiled loops; all others, and whatever those loops find odd, by the general decoder.
    `timestamps`: when the records were produced, epoch ms; events more than FUTURE_MS later are bad. `placed`: where the
    records come from; those whose key belongs elsewhere are bad. A record whose schema the registry could not give so far is
    bad, too, with the code `registry_unavailable`: call `schemas.codec.look_up` before.
    """
    where, names = np.asarray(offsets, np.int64), keys if isinstance(keys, Spans) else Spans.of(keys)
    status, columns = _read(values, names, where, np.zeros(len(values), np.uint8))
    if any(headers):
        # JSON is told by its header, even where its bytes would read as Avro
        told = {"content-type", ERASE[0]}
        status[[n for n, head in enumerate(headers) if any(name.lower() in told for name, _ in head)]] = 1
    produced = None if timestamps is None else np.asarray(timestamps, np.int64)
    if produced is not None:
        status[columns.event_time > produced + FUTURE_MS] = 1
    owners = None if placed is None else _elsewhere(names, placed)
    sound = status == 0
    if placed is not None:
        status[owners != placed.partition] = 1
    odd = np.flatnonzero(status).tolist()
    if not odd:
        return Decoded(columns, [], [])
    bad: list[BadRecord] = []
    erasures: list[tuple[int, str]] = []
    mended = list(values)
    checked = np.zeros(len(values), np.uint8)
    for index in odd:
        mended[index] = None
        try:
            found = None if sound[index] else _mended(values[index], keys[index], headers[index], registry)
            if timestamps is not None and isinstance(found, tuple):
                check_time(found[0], timestamps[index])
            if placed is not None and owners is not None:
                check_place(int(owners[index]), placed)
        except (BadEvent, TransientError) as exc:
            bad.append(BadRecord(index, exc.code, exc.message))
        except Exception as exc:  # whatever it is, its neighbours are not affected, nor is the partition
            log.exception("record %d of a chunk", index)
            bad.append(BadRecord(index, "internal", f"{type(exc).__name__}: {exc}"))
        else:
            if isinstance(found, tuple):
                mended[index], checked[index] = found[1], 1
            elif found is not None:
                erasures.append((index, found))
    status, columns = _read(mended, names, where, checked)
    return Decoded(columns.take(np.flatnonzero(status == 0)), bad, erasures)


def _mended(value: bytes | None, key: bytes | None, head: Headers, registry: Registry | None) -> tuple[int, bytes] | str:
    """Event time of a record, and the event as the compiled loops read it; or the user to erase. Raises BadEvent, NotReady."""
    plain = plain_json(value, key, head)
    if plain is not None:
        return plain
    event = event_of(value, key, head, registry)
    return event if isinstance(event, str) else (event.event_time, _encoded(event))


def event_of(value: bytes | None, key: bytes | None, head: Headers, registry: Registry | None = None) -> Interaction | str:
    """The event of one record, or the user to erase.

    Raises:
        BadEvent: the record cannot be used.
        NotReady: `registry_unavailable`.
    """
    if key is None:
        raise BadEvent("null_key", "the key must be the user_id", "key")
    try:
        user = key.decode()
    except UnicodeDecodeError as exc:
        raise BadEvent("invalid_key", "the key is not UTF-8", "key") from exc
    if not 0 < len(key) <= MAX_ID_BYTES:
        raise BadEvent("invalid_key", f"the key must have 1 to {MAX_ID_BYTES} bytes, has {len(key)}", "key")
    erases = header_of(head, ERASE[0]) == ERASE[1]
    if erases and value:
        raise BadEvent("invalid_field", "a record with riffle-op: erase must have no value: nothing was erased", ERASE[0])
    if value is None or (erases and not value):
        if not erases:
            raise BadEvent("null_value", "no value, and no riffle-op header that would ask for an erasure")
        return user
    if len(value) > MAX_VALUE_BYTES:
        raise BadEvent("too_large", f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    event = interaction_from(decode("interaction", value, head, registry)[0])
    if event.user_id != user:
        raise BadEvent("key_mismatch", f"key {user[:64]!r} is not user_id {event.user_id[:64]!r}", "key")
    return event
