"""Sequences of byte strings that share one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spans"]

NULL = -1


class Spans(Sequence[bytes | None]):
    """n byte strings or None, given by start and length in `data`. A string is copied only when it is accessed."""

    __slots__ = ("data", "lengths", "starts")

    def __init__(self, data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        self.data, self.starts, self.lengths = data, starts, lengths
        "Starts and lengths in bytes; the length is NULL for None."

    @classmethod
    def of(cls, values: Sequence[bytes | None]) -> Spans:
        """Build spans by concatenating `values`."""
        lengths = np.fromiter((NULL if value is None else len(value) for value in values), np.int64, len(values))
        starts = np.zeros(len(values) + 1, np.int64)
        np.cumsum(np.maximum(lengths, 0), out=starts[1:])
        return cls(b"".join([value or b"" for value in values]), starts[:-1], lengths)

    @classmethod
    def joined(cls, parts: Sequence[Spans]) -> Spans:
        """Concatenate spans (at least one); parts that share a buffer still share it."""
        at: dict[int, int] = {}
        pieces, size = [], 0
        for part in parts:
            if id(part.data) not in at:
                at[id(part.data)] = size
                pieces.append(part.data)
                size += len(part.data)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        starts = np.concatenate([part.starts + at[id(part.data)] for part in parts])
        return cls(data, starts, np.concatenate([part.lengths for part in parts]))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> bytes | None: ...

    @overload
    def __getitem__(self, at: slice) -> Spans: ...

    def __getitem__(self, at: int | slice) -> bytes | Spans | None:
        if isinstance(at, slice):
            return Spans(self.data, self.starts[at], self.lengths[at])
        start, length = int(self.starts[at]), int(self.lengths[at])
        return None if length < 0 else self.data[start : start + length]

    @property
    def ends(self) -> NDArray[np.int64]:
        """End of each string, int64 `(n,)`; its start for None."""
        return self.starts + np.maximum(self.lengths, 0)

    def whole(self) -> list[bytes]:
        """Copy all strings to a list; None becomes empty."""
        data = self.data
        return [data[start:end] for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)]

    def beginning_with(self, byte: int) -> NDArray[np.int64]:
        """Return the indices of the strings that begin with this byte."""
        rows = np.flatnonzero(self.lengths > 0)
        data = np.frombuffer(self.data, np.uint8)
        found: NDArray[np.int64] = rows[data[self.starts[rows]] == byte]
        return found
