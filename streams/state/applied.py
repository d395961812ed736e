"""The row that holds how far the other rows of a table partition include its source."""

from __future__ import annotations

import struct

from schemas.errors import NotReady
from streams.kafka.metadata import NO_ID

__all__ = ["APPLIED", "pack_applied", "unpack_applied"]

APPLIED = b"\x00applied"
APPLIED_LAYOUT = struct.Struct("<Bq16s16s")
"""Format, source offset, and the ids of the source topic and of the changelog at the time of writing. An offset is meaningless
in a recreated topic, and a recreated changelog lacks the rows that have not changed since."""
APPLIED_FORMAT = 2
APPLIED_1 = struct.Struct("<Bq")
"Layout of format 1, which had no ids."


def pack_applied(offset: int, source_id: bytes = NO_ID, log_id: bytes = NO_ID) -> bytes:
    """The row with the source offset that the other rows include, the id of the source topic and the id of the changelog."""
    return APPLIED_LAYOUT.pack(APPLIED_FORMAT, offset, source_id, log_id)


def unpack_applied(row: bytes) -> tuple[int, bytes, bytes]:
    """Source offset, id of the source topic and id of the changelog (`NO_ID` in format 1).

    Raises:
        NotReady: a newer version wrote the row.
    """
    if row[:1] == b"\x01" and len(row) == APPLIED_1.size:
        return int(APPLIED_1.unpack(row)[1]), NO_ID, NO_ID
    if row[:1] == bytes([APPLIED_FORMAT]) and len(row) == APPLIED_LAYOUT.size:
        _, offset, source_id, log_id = APPLIED_LAYOUT.unpack(row)
        return int(offset), bytes(source_id), bytes(log_id)
    raise NotReady("newer_format", f"the applied offset has format {row[:1].hex()}: a newer version of Riffle wrote it")
