"""Offsets of the requests topic. Only answered requests may be committed."""

from __future__ import annotations

from collections.abc import Callable

from streams.kafka.chunks import Chunk

__all__ = ["Offsets"]


class Offsets:
    """Offsets of unanswered requests, by partition of the requests topic."""

    def __init__(self) -> None:
        self._outstanding: dict[int, set[int]] = {}
        "Offsets whose answer is not sent yet, by partition."
        self._next: dict[int, int] = {}

    def take_in(self, chunk: Chunk) -> None:
        """Add all records of a chunk as unanswered."""
        self._outstanding.setdefault(chunk.partition, set()).update(chunk.offsets)
        self._next[chunk.partition] = chunk.last_offset + 1

    def answered(self, chunk: Chunk, index: int) -> Callable[[], None]:
        """Return the function to call when record `index` of a chunk is answered."""
        # a new set if the partition was released meanwhile, because the next owner then answers the request again
        outstanding, offset = self._outstanding.setdefault(chunk.partition, set()), chunk.offsets[index]
        return lambda: outstanding.discard(offset)

    def committable(self) -> dict[int, int]:
        """Return the next offset to read by partition. Every request below it is answered."""
        return {p: min(self._outstanding.get(p) or (offset,)) for p, offset in self._next.items()}

    def forget(self, partition: int) -> None:
        """Remove a partition that may go to another worker."""
        self._next.pop(partition, None)
        self._outstanding.pop(partition, None)
