"""Offsets of the requests topic: what may be committed is what is answered."""

from __future__ import annotations

from collections.abc import Callable

from streams.kafka.chunks import Chunk

__all__ = ["Offsets"]


class Offsets:
    """Offsets of requests that were taken in, by partition of the requests topic, until they are answered."""

    def __init__(self) -> None:
        self._outstanding: dict[int, set[int]] = {}
        "Offsets whose answer is not sent yet."
        self._next: dict[int, int] = {}

    def take_in(self, chunk: Chunk) -> None:
        """All records of a chunk are to be answered."""
        self._outstanding.setdefault(chunk.partition, set()).update(chunk.offsets)
        self._next[chunk.partition] = chunk.last_offset + 1

    def answered(self, chunk: Chunk, index: int) -> Callable[[], None]:
        """What is to be called when record `index` of a chunk is answered."""
        # made anew when the partition was let go meanwhile: then the next owner answers again
        outstanding, offset = self._outstanding.setdefault(chunk.partition, set()), chunk.offsets[index]
        return lambda: outstanding.discard(offset)

    def committable(self) -> dict[int, int]:
        """Per partition: the next offset to read, below which every request is answered."""
        return {p: min(self._outstanding.get(p) or (offset,)) for p, offset in self._next.items()}

    def forget(self, partition: int) -> None:
        """The partition may go to another worker."""
        self._next.pop(partition, None)
        self._outstanding.pop(partition, None)
