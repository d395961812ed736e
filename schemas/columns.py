"""A chunk of interaction records as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from schemas.codec import Registry, decode
from schemas.errors import BadEvent
from schemas.records import Interaction
from schemas.validation import interaction_from

__all__ = ["ERASE", "BadRecord", "Decoded", "InteractionColumns", "decode_interactions"]

ERASE = ("riffle-op", b"erase")


@dataclass(slots=True)
class InteractionColumns:
    """Interactions as columns of one length n, in stream order."""

    offset: NDArray[np.int64]
    event_id: list[str]
    user_id: list[str]
    item_id: list[str]
    action: list[str]
    event_time: NDArray[np.int64]
    "Epoch ms."
    value: NDArray[np.float32]
    "NaN where absent."
    session_id: list[str | None]
    request_id: list[str | None]

    def __len__(self) -> int:
        return len(self.event_id)

    @classmethod
    def of(cls, events: Sequence[Interaction], offsets: Sequence[int]) -> InteractionColumns:
        """Columns of `events`, which were read at `offsets`."""
        return cls(
            np.asarray(offsets, np.int64),
            [e.event_id for e in events],
            [e.user_id for e in events],
            [e.item_id for e in events],
            [e.action for e in events],
            np.asarray([e.event_time for e in events], np.int64),
            np.asarray([np.nan if e.value is None else e.value for e in events], np.float32),
            [e.session_id for e in events],
            [e.request_id for e in events],
        )

    def slice(self, start: int, stop: int) -> InteractionColumns:
        """Rows `start` to `stop` (exclusive)."""
        return InteractionColumns(*(getattr(self, f.name)[start:stop] for f in fields(self)))


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record of a chunk that cannot be used: its position in the chunk, and why."""

    index: int
    code: str
    reason: str


@dataclass(slots=True)
class Decoded:
    """A decoded chunk: every input record is in exactly one of the three."""

    columns: InteractionColumns
    bad: list[BadRecord]
    erasures: list[tuple[int, str]]
    "Position in the chunk, and user to erase."


def decode_interactions(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None],
    headers: Sequence[Sequence[tuple[str, bytes]]],
    offsets: Sequence[int],
    registry: Registry | None = None,
) -> Decoded:
    """Decode a chunk of the interactions topic. A bad record never affects its neighbours and never raises.

    The key must be the UTF-8 `user_id`: it decides the partition that holds the user's state. A record without value and
    with header `riffle-op: erase` asks to forget the user named by its key.
    """
    events: list[Interaction] = []
    kept: list[int] = []
    bad: list[BadRecord] = []
    erasures: list[tuple[int, str]] = []
    for index, (value, key, head) in enumerate(zip(values, keys, headers, strict=True)):
        try:
            if key is None:
                raise BadEvent("null_key", "the key must be the user_id", "key")
            user = key.decode()
            if value is None:
                if ERASE not in head:
                    raise BadEvent("null_value", "no value, and no riffle-op header that would ask for an erasure")
                erasures.append((index, user))
                continue
            event = interaction_from(decode("interaction", value, head, registry)[0])
            if event.user_id != user:
                raise BadEvent("key_mismatch", f"key {user[:64]!r} is not user_id {event.user_id[:64]!r}", "key")
        except BadEvent as exc:
            bad.append(BadRecord(index, exc.code, exc.message))
        except UnicodeDecodeError:
            bad.append(BadRecord(index, "invalid_key", "the key is not UTF-8"))
        else:
            events.append(event)
            kept.append(offsets[index])
    return Decoded(InteractionColumns.of(events, kept), bad, erasures)
