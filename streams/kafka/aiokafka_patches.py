"""Patches aiokafka so that a header name that is not UTF-8 cannot crash a consumer.

Kafka accepts any bytes in a header name, aiokafka only reads UTF-8. One such record would end every worker that reaches it, at
each start. Consumers are imported from here: they decode invalid bytes as backslash escapes, and the reader of the record
decides how to handle it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, SupportsIndex

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

import streams.kafka.coordinator  # noqa: F401 - so that a member of a group goes on after errors of its group

__all__ = ["AIOKafkaConsumer", "Batch", "Fetched"]

LENGTH_AT, MAGIC_AT = 8, 16


class _Lenient(bytes):
    """Bytes whose parts can all be decoded."""

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        part = super().__getitem__(key)
        return _Lenient(part) if isinstance(part, bytes) else part

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


class _Reader(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's pure-Python reader, over lenient bytes."""

    _buffer: Any

    def __iter__(self) -> Any:
        self._maybe_uncompress()
        self._buffer = _Lenient(self._buffer)
        return self


class Batch:
    """A batch of records as aiokafka has it, except that its headers may have any names."""

    def __init__(self, batch: Any, data: bytes, start: int) -> None:
        self._batch, self.data, self.start = batch, data, start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)  # used for control batches

    def __iter__(self) -> Iterator[Any]:
        done = 0
        try:
            for record in self._batch:
                yield record
                done += 1
            return
        except (UnicodeDecodeError, CorruptRecordException):
            if self.data[self.start + MAGIC_AT] != 2:
                raise  # older formats have no headers
        stop = self.start + 12 + int.from_bytes(self.data[self.start + LENGTH_AT : self.start + LENGTH_AT + 4], "big")
        yield from islice(iter(_Reader(self.data[self.start : stop])), done, None)


class Fetched:
    """The fetched data of one partition, batch by batch."""

    def __init__(self, data: bytes | None) -> None:
        self._data, self._at = data or b"", 0
        self._records = MemoryRecords(data)

    def has_next(self) -> bool:
        """Whether there is another batch."""
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        """Size of all batches."""
        return int(self._records.size_in_bytes())

    def next_batch(self) -> Batch | None:
        """The next batch, None after the last."""
        batch, start = self._records.next_batch(), self._at
        self._at += 12 + int.from_bytes(self._data[start + LENGTH_AT : start + LENGTH_AT + 4], "big", signed=True)
        return None if batch is None else Batch(batch, self._data, start)


# aiokafka has no option for the class of a fetch's records
fetcher.MemoryRecords = Fetched
