"""Decoding Kafka's record batches directly to columns: a chunk of a bulk topic costs no object per record.

aiokafka still fetches and checks batches, and skips aborted ones. Only the records of a batch are decoded here. The format is
Kafka's message format v2 (kafka.apache.org/documentation, "Record Batch").
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import GEN_CREATED, getgeneratorstate
from typing import Any

import numpy as np
from aiokafka.consumer import fetcher
from numpy.typing import NDArray

from schemas.kernels import read_batch
from schemas.spans import Spans
from streams.kafka.aiokafka_patches import Batch, Fetched

__all__ = ["Records", "in_columns"]

HEAD = 61
"Bytes before the records of a batch."
LENGTH_AT, MAGIC_AT, ATTRIBUTES_AT, FIRST_TIME_AT, LAST_TIME_AT, COUNT_AT = 8, 16, 21, 27, 35, 57
COMPRESSED, LOG_APPEND_TIME = 0x07, 0x08
"Bits of a batch's attributes."
FEWEST = 32
"Minimum number of records in a batch for which columns cost less than objects."


@dataclass(slots=True, frozen=True)
class Records:
    """Records of one partition, oldest first; all columns have length `len(records)`."""

    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    keys: Spans
    values: Spans
    headers: Sequence[Sequence[tuple[str, bytes]]]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, rows: slice) -> Records:
        """Slice all columns."""
        return Records(self.offsets[rows], self.timestamps[rows], self.keys[rows], self.values[rows], self.headers[rows])

    @property
    def offset(self) -> int:
        """Offset of the newest record."""
        return int(self.offsets[-1])

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """Concatenate records (at least one part)."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.timestamps for part in parts]),
            Spans.joined([part.keys for part in parts]),
            Spans.joined([part.values for part in parts]),
            [head for part in parts for head in part.headers],
        )

    @classmethod
    def of(cls, parsed: Sequence[Any]) -> Records:
        """Columns of records that aiokafka parsed (at least one)."""
        return cls(
            np.asarray([record.offset for record in parsed], np.int64),
            np.asarray([record.timestamp or 0 for record in parsed], np.int64),
            Spans.of([record.key for record in parsed]),
            Spans.of([record.value for record in parsed]),
            [record.headers for record in parsed],
        )


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big", signed=True)


def _plain(data: bytes, start: int) -> int:
    """Number of records of the batch at `start`; 0 if it is compressed, of an earlier format, or truncated."""
    if len(data) < start + HEAD or data[start + MAGIC_AT] != 2 or _number(data, start + ATTRIBUTES_AT, 2) & COMPRESSED:
        return 0
    count, size = _number(data, start + COUNT_AT, 4), 12 + _number(data, start + LENGTH_AT, 4)
    return count if 0 < count <= (size - HEAD) // 7 and start + size <= len(data) else 0  # the shortest record has 7 bytes


def _read(data: bytes, start: int, base_offset: int) -> Records | None:
    """Decode the batch at `start`; None if it is not plain, or has headers."""
    count = _plain(data, start)
    if not count:
        return None
    attributes, end = _number(data, start + ATTRIBUTES_AT, 2), start + 12 + _number(data, start + LENGTH_AT, 4)
    columns = np.empty((6, count), np.int64)
    if not read_batch(np.frombuffer(data, np.uint8), start + HEAD, end, columns):
        return None
    offsets, timestamps = columns[0] + base_offset, columns[1] + _number(data, start + FIRST_TIME_AT, 8)
    if attributes & LOG_APPEND_TIME:
        timestamps[:] = _number(data, start + LAST_TIME_AT, 8)
    return Records(offsets, timestamps, Spans(data, columns[2], columns[3]), Spans(data, columns[4], columns[5]), [()] * count)


class _Columns:
    """A batch that aiokafka treats as one record, its newest, and that holds all records."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # used for control batches

    def __iter__(self) -> Any:
        records = _read(self._batch.data, self._batch.start, self._batch.base_offset)
        if records is None:
            parsed = list(self._batch)
            records = Records.of(parsed) if parsed else None
        return iter(() if records is None else (records,))


class _Fetched(Fetched):
    """Fetched data whose batches can be read in columns."""

    def __init__(self, data: bytes | None) -> None:
        super().__init__(data)
        self.in_columns = False
        self.large = _plain(data or b"", 0) >= FEWEST
        "Whether its first batch is large enough to be read in columns."

    def next_batch(self) -> Any:
        batch = super().next_batch()
        return _Columns(batch) if self.in_columns and batch is not None else batch


# unchanged for readers that do not ask for columns
fetcher.MemoryRecords = _Fetched


class _Taking:
    """Replaces a fetch result's `getall`: returns at most the requested number of records, as `Records`.

    It holds weak references, because a fetch of up to 1 MB must be freed when its last record was taken, not at Python's next
    garbage collection.
    """

    def __init__(self, result: fetcher.FetchResult) -> None:
        self._result = weakref.ref(result)
        self._left: Records | None = None

    def __call__(self, most: int) -> Records | Sequence[Any]:
        result = self._result()
        if result is None or not result.check_assignment(result._topic_partition) or not result.has_more():
            return ()
        batches, parts, count = result._partition_records, [], 0
        while count < most:
            left = self._left if self._left is not None else next(batches, None)
            if left is None:
                break
            part, rest = left[: most - count], left[most - count :]
            self._left = rest if len(rest) else None
            parts.append(part)
            count += len(part)
        taken: Records | Sequence[Any] = Records.joined(parts) if parts else ()
        if self._left is not None:
            batches.next_fetch_offset = int(self._left.offsets[0])
        elif parts:
            batches.next_fetch_offset = max(batches.next_fetch_offset, parts[-1].offset + 1)
        result._update_position()
        if count < most:
            result._partition_records = None
        return taken


class _Wanted:
    """Replaces a partition's `_consumer_record`: returns the requested records of a batch."""

    def __init__(self, batches: fetcher.PartitionRecords) -> None:
        self._batches = weakref.ref(batches)

    def __call__(self, _tp: object, records: Records) -> Records:
        # a fetch begins with the batch that holds the requested offset, which need not be its first record
        batches = self._batches()
        assert batches is not None
        return records[int(np.searchsorted(records.offsets, batches.next_fetch_offset)) :]


def in_columns(result: fetcher.FetchResult) -> bool:
    """Make a fetch result's `getall` return `Records`; returns whether it does.

    It does not if its batches are small or not plain, or if a part was already taken in another way.
    """
    batches = result._partition_records
    if batches._records.in_columns:
        return True
    if not batches._records.large or getgeneratorstate(batches._records_iterator) != GEN_CREATED:
        return False
    batches._records.in_columns = True
    batches._consumer_record = _Wanted(batches)
    result.getall = _Taking(result)
    return True
