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
"Header of an event that erases its key's user."
EVENT, ITEM, ACTION, SESSION = range(4)


@dataclass(frozen=True, slots=True)
class Placed:
    """The partition that records were read from, and the number of partitions."""

    partition: int
    partitions: int


@dataclass(slots=True)
class EventColumns:
    """n interactions in stream order. Texts are not copied: each is given by its start and length in `data`."""

    data: NDArray[np.uint8]
    "The bytes that hold the records."
    users: Sequence[bytes]
    "UTF-8 user ids (the record keys)."
    offset: NDArray[np.int64]
    starts: NDArray[np.int64]
    "int64 `(4, n)`: where event id, item id, action and session id start in `data`."
    lengths: NDArray[np.int64]
    "int64 `(4, n)`: their lengths in bytes; -1 for no session."
    hashes: NDArray[np.uint64]
    "uint64 `(3, n)`: `hash64` of event id, item id and action."
    event_time: NDArray[np.int64]
    "int64 `(n,)`: event time, epoch ms."
    value: NDArray[np.float32]
    "float32 `(n,)`: the events' `value`, NaN where absent."

    def __len__(self) -> int:
        return len(self.offset)

    @classmethod
    def of(cls, events: Sequence[Interaction], offsets: Sequence[int]) -> EventColumns:
        """Build the columns of valid `events`, as if they had been read at `offsets`."""
        values = [_encoded(event) for event in events]
        keys = [event.user_id.encode() for event in events]
        return _read(values, Spans.of(keys), np.asarray(offsets, np.int64), np.ones(len(values), np.uint8))[1]

    def slice(self, start: int, stop: int) -> EventColumns:
        """Return the rows `start` to `stop` (exclusive)."""
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
        """Return the rows with the numbers `rows`, in this order."""
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
        """Return a text of a row, empty if absent; `column` is EVENT, ITEM, ACTION or SESSION."""
        start = int(self.starts[column, row])
        return self.data[start : start + max(int(self.lengths[column, row]), 0)].tobytes().decode()


@dataclass(frozen=True, slots=True)
class BadRecord:
    """An unusable record: its position in the chunk, and the reason."""

    index: int
    code: str
    reason: str


@dataclass(slots=True)
class Decoded:
    """A decoded chunk. Every input record is in exactly one of the three fields."""

    columns: EventColumns
    bad: list[BadRecord]
    erasures: list[tuple[int, str]]
    "(position in the chunk, id of the user to erase)"


def _encoded(event: Interaction) -> bytes:
    return encode("interaction", {name: getattr(event, name) for name in Interaction.__dataclass_fields__})


def _read(
    values: Sequence[bytes | None], names: Spans, offsets: NDArray[np.int64], checked: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], EventColumns]:
    """Read the status of each record, and columns of all records; zeros where the status is not 0. `names` are the keys."""
    texts = values if isinstance(values, Spans) else Spans.of(values)
    data, head = np.frombuffer(texts.data, np.uint8), np.frombuffer(header("interaction"), np.uint8)
    owners, lengths = np.frombuffer(names.data, np.uint8), np.maximum(names.lengths, 0)
    status, *columns = decode_block(data, texts.starts, texts.ends, head, owners, names.starts, lengths, checked)
    return status, EventColumns(data, names.whole(), offsets, *columns)


def _elsewhere(names: Spans, placed: Placed) -> NDArray[np.int64]:
    """Return the partition of each key, int64 `(n,)`; records without a key get the partition that they were read from."""
    found = partitions_of(np.frombuffer(names.data, np.uint8), names.starts, names.lengths, placed.partitions)
    return np.where(found < 0, placed.partition, found)


def check_place(partition: int, placed: Placed) -> None:
    """Reject a record whose key belongs to another partition, because requests of its user are answered there.

    Raises:
        BadEvent: `wrong_partition`.
    """
    if partition != placed.partition:
        message = (
            f"its key belongs to partition {partition} of {placed.partitions}, it arrived on {placed.partition}: configure "
            "the producer to partition by murmur2 (librdkafka: partitioner=murmur2_random), then run "
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

    The key must be the UTF-8 `user_id`: it determines the partition that holds the user's state. A record without a value and
    with the header `riffle-op: erase` requests the erasure of the key's user. Compiled loops read records of the current schema
    in single-object encoding. The general decoder reads all others, and those that the loops do not accept.

    `timestamps`: times at which the records were produced, epoch ms; events more than FUTURE_MS later are bad. `placed`: the
    partition of the records; those whose key belongs to another one are bad. A record whose schema is not known yet is bad,
    too, with the code `registry_unavailable`: call `schemas.codec.look_up` first.
    """
    where, names = np.asarray(offsets, np.int64), keys if isinstance(keys, Spans) else Spans.of(keys)
    status, columns = _read(values, names, where, np.zeros(len(values), np.uint8))
    if any(headers):
        # the header alone identifies JSON, because its bytes may also be valid Avro
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
        except Exception as exc:  # an unexpected error must not affect other records or the partition
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
    """Return a record's event time and the event in the compiled loops' encoding, or the user to erase.

    Raises:
        BadEvent: the record cannot be used.
        NotReady: `registry_unavailable`.
    """
    plain = plain_json(value, key, head)
    if plain is not None:
        return plain
    event = event_of(value, key, head, registry)
    return event if isinstance(event, str) else (event.event_time, _encoded(event))


def event_of(value: bytes | None, key: bytes | None, head: Headers, registry: Registry | None = None) -> Interaction | str:
    """Decode one record to its event, or to the user to erase.

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
            raise BadEvent("null_value", "no value, and no riffle-op header that requests an erasure")
        return user
    if len(value) > MAX_VALUE_BYTES:
        raise BadEvent("too_large", f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    event = interaction_from(decode("interaction", value, head, registry)[0])
    if event.user_id != user:
        raise BadEvent("key_mismatch", f"key {user[:64]!r} is not user_id {event.user_id[:64]!r}", "key")
    return event
