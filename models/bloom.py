"""Seen-sets: growing tiers of `pybloom-live` filters with one geometry.

Every tier of every user has the same capacity and error rate, so the bit positions of an item are computed once
(`positions`) and a membership test over many candidates is one vectorised look at the bits. The answers are, bit for
bit, those of `pybloom_live.BloomFilter` (Bloom 1970; partitioned as in Almeida et al. 2007).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pybloom_live import BloomFilter

__all__ = ["BITS", "CAPACITY", "MAX_TIERS", "SLICES", "TIER_BYTES", "SeenSet", "positions"]

ERROR_RATE = 0.01
"Probability that a person's whole seen-set claims an item that it does not hold."
CAPACITY = 256
"Items of one tier."
MAX_TIERS = 16
"Tiers kept; with one more, the oldest is dropped and its items may be shown again."

_TEMPLATE = BloomFilter(CAPACITY, ERROR_RATE / MAX_TIERS)
SLICES: int = _TEMPLATE.num_slices
BITS: int = _TEMPLATE.num_bits
TIER_BYTES = (BITS + 7) // 8


@functools.lru_cache(maxsize=100_000)
def positions(item_id: str) -> NDArray[np.int32]:
    """Bit positions of an item in every tier: int32 `(SLICES,)`, read-only."""
    per_slice = _TEMPLATE.bits_per_slice
    found = np.fromiter((n * per_slice + h for n, h in enumerate(_TEMPLATE.make_hashes(item_id))), dtype=np.int32, count=SLICES)
    found.flags.writeable = False
    return found


class SeenSet:
    """Items a person has interacted with. Never denies an item it holds, until its tier ages out."""

    __slots__ = ("_raw", "counts", "tiers")

    def __init__(self) -> None:
        self.tiers: list[NDArray[np.uint8]] = []
        "Bits of each tier, oldest first: uint8 `(TIER_BYTES,)`, least significant bit first."
        self._raw: list[bytearray] = []
        "The memory under `tiers`: adding one item touches single bytes, where NumPy calls would cost more than the work."
        self.counts: list[int] = []
        "Items added to each tier."

    def add(self, item_id: str) -> bool:
        """Add an item; returns whether it was new."""
        bits = [(where >> 3, 1 << (where & 7)) for where in positions(item_id).tolist()]
        for tier in self._raw:
            if all(tier[index] & mask for index, mask in bits):
                return False
        if not self.tiers or self.counts[-1] >= CAPACITY:
            self._append(bytearray(TIER_BYTES), 0)
            if len(self.tiers) > MAX_TIERS:
                del self.tiers[0], self._raw[0], self.counts[0]
        newest = self._raw[-1]
        for index, mask in bits:
            newest[index] |= mask
        self.counts[-1] += 1
        return True

    def _append(self, raw: bytearray, count: int) -> None:
        self._raw.append(raw)
        self.tiers.append(np.frombuffer(raw, np.uint8))
        self.counts.append(count)

    def contains_many(self, where: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of m items are held. `where`: bit positions int32 `(m, SLICES)`; returns bool `(m,)`."""
        found = np.zeros(len(where), np.bool_)
        if not self.tiers:
            return found
        index, shift = where >> 3, (where & 7).astype(np.uint8)
        for tier in self.tiers:
            found |= ((tier[index] >> shift) & 1).all(axis=1)
        return found

    def __contains__(self, item_id: str) -> bool:
        return bool(self.contains_many(positions(item_id)[None])[0])

    def to_bytes(self) -> tuple[Sequence[int], bytes]:
        """Counts and bits of all tiers, oldest first."""
        return self.counts, b"".join(tier.tobytes() for tier in self.tiers)

    @classmethod
    def of_bytes(cls, counts: Sequence[int], bits: bytes) -> SeenSet:
        """The inverse of `to_bytes`; raises ValueError when the lengths do not fit."""
        if len(bits) != len(counts) * TIER_BYTES:
            raise ValueError("seen-set bits do not fit the number of tiers")
        made = cls()
        for n, count in enumerate(counts):
            made._append(bytearray(bits[n * TIER_BYTES : (n + 1) * TIER_BYTES]), count)
        return made
