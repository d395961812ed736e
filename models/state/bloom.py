"""Seen-sets: growing tiers of `pybloom-live` filters with the same geometry.

Every tier of every user has the same number of bits and slices. The bit positions of an item are therefore computed once
(`positions`), and testing many candidates is one vectorised operation. Results are identical, bit for bit, to those of
`pybloom_live.BloomFilter` (Bloom 1970; partitioned as in Almeida et al. 2007).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pybloom_live import BloomFilter

from models.state.kernels.seen import contained

__all__ = ["BITS", "CAPACITY", "EARLIER_BITS", "EARLIER_TIER_BYTES", "FIRST_TIERS", "LATER_CAPACITY", "MAX_TIERS", "SLICES"]
__all__ += ["TIER_BYTES", "EarlierSeenSet", "SeenSet", "capacity", "earlier_positions", "positions"]

ERROR_RATE = 0.01
"False-positive rate of the first FIRST_TIERS tiers of a seen-set together."
FIRST_TIERS = 3
"""Number of tiers that most users never fill. The error rate is divided among them, which costs bits: a few large tiers take
1.28 times the theoretical bits per item, sixteen small ones took 1.66 times."""
CAPACITY = 1_400
"Capacity of each of the first tiers, in items."
LATER_CAPACITY = 1_000
"""Capacity of each later tier, in items. With the same bits and fewer items its error rate is a tenth, so that the many tiers
of a user with a large seen-set together err only a little more often than the first ones."""
MAX_TIERS = 32
"Maximum number of tiers. Beyond it the oldest is dropped, and its items may be shown again."
EARLIER_CAPACITY, EARLIER_TIERS = 256, 16
"Capacity and number of tiers in records of formats 1 and 2."

TIER_RATE = 0.85 * ERROR_RATE / FIRST_TIERS
"Nominal error rate of each of the first tiers. It has a margin, because sliced filters err slightly above the formula."

_TEMPLATE = BloomFilter(CAPACITY, TIER_RATE)
_EARLIER = BloomFilter(EARLIER_CAPACITY, ERROR_RATE / EARLIER_TIERS)
EARLIER_BITS: int = _EARLIER.num_bits
EARLIER_TIER_BYTES = (EARLIER_BITS + 7) // 8
SLICES: int = _TEMPLATE.num_slices
BITS: int = _TEMPLATE.num_bits
TIER_BYTES = (BITS + 7) // 8
_STARTS = {
    template.bits_per_slice: np.arange(template.num_slices, dtype=np.int32) * np.int32(template.bits_per_slice)
    for template in (_TEMPLATE, _EARLIER)
}
"First bit of each slice."


@functools.lru_cache(maxsize=100_000)
def positions(item_id: str) -> NDArray[np.int32]:
    """Return the bit positions of an item in every tier: int32 `(SLICES,)`, read-only."""
    return _positions(_TEMPLATE, item_id)


def earlier_positions(item_id: str) -> NDArray[np.int32]:
    """Return the bit positions of an item in a tier of format 1 or 2: int32, read-only."""
    return _positions(_EARLIER, item_id)


def _positions(template: BloomFilter, item_id: str) -> NDArray[np.int32]:
    found = np.array(list(template.make_hashes(item_id)), np.int32)
    found += _STARTS[template.bits_per_slice][: len(found)]
    found.flags.writeable = False
    return found


def capacity(tiers: int) -> int:
    """Return the capacity of the newest of `tiers` tiers, in items."""
    return CAPACITY if tiers <= FIRST_TIERS else LATER_CAPACITY


class SeenSet:
    """Items that a user interacted with. It has no false negatives until an item's tier is dropped.

    No tier is dropped before the set holds `FIRST_TIERS * CAPACITY + (MAX_TIERS - FIRST_TIERS) * LATER_CAPACITY` items, 33,200.
    """

    __slots__ = ("_raw", "counts", "tiers")

    def __init__(self) -> None:
        self.tiers: list[NDArray[np.uint8]] = []
        "Bits of each tier, oldest first: uint8 `(TIER_BYTES,)`, least significant bit first."
        self._raw: list[bytearray] = []
        "Memory behind `tiers`, for `add`: it changes single bytes, for which NumPy calls cost too much."
        self.counts: list[int] = []
        "Number of items added to each tier."

    def add(self, item_id: str) -> bool:
        """Add an item; returns whether it was new."""
        bits = [(where >> 3, 1 << (where & 7)) for where in positions(item_id).tolist()]
        for tier in self._raw:
            if all(tier[index] & mask for index, mask in bits):
                return False
        if not self.tiers or self.counts[-1] >= capacity(len(self.tiers)):
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

    def facts(self) -> dict[str, float | int]:
        """Return `items`, `tiers`, `bytes`, and `false_positive_rate`: the share of other items that the set seems to hold.

        The rate follows from the bits that are set: an item is held by a tier if its bit is set in each slice.
        """
        per_slice, missed = BITS // SLICES, 1.0
        for tier in self.tiers:
            bits = np.unpackbits(tier, bitorder="little")[:BITS].reshape(SLICES, per_slice)
            missed *= 1.0 - float(np.prod(bits.mean(axis=1)))
        rate = 1.0 - missed
        return {
            "items": sum(self.counts),
            "tiers": len(self.tiers),
            "bytes": len(self.tiers) * TIER_BYTES,
            "false_positive_rate": rate,
        }

    def contains_many(self, where: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return whether each of m items is held: bool `(m,)`. `where`: bit positions, int32 `(m, SLICES)`."""
        if not self.tiers:
            return np.zeros(len(where), np.bool_)
        found: NDArray[np.bool_] = contained(np.stack(self.tiers), np.ascontiguousarray(where))
        return found

    def __contains__(self, item_id: str) -> bool:
        return bool(self.contains_many(positions(item_id)[None])[0])

    def to_bytes(self) -> tuple[Sequence[int], bytes]:
        """Return counts and bits of all tiers, oldest first."""
        return self.counts, b"".join(tier.tobytes() for tier in self.tiers)

    @classmethod
    def of_bytes(cls, counts: Sequence[int], bits: bytes) -> SeenSet:
        """Restore the result of `to_bytes`; raises ValueError if the lengths do not match."""
        if len(bits) != len(counts) * TIER_BYTES:
            raise ValueError("seen-set bits do not fit the number of tiers")
        made = cls()
        for n, count in enumerate(counts):
            made._append(bytearray(bits[n * TIER_BYTES : (n + 1) * TIER_BYTES]), count)
        return made


class EarlierSeenSet:
    """The seen-set of a record of format 1 or 2. Its bit layout differs, so its items must be found before they are moved."""

    __slots__ = ("_tiers",)

    def __init__(self, tiers: int, bits: bytes) -> None:
        """Wrap the bits; raises ValueError if they do not match the number of tiers."""
        self._tiers = np.frombuffer(bits, np.uint8).reshape(tiers, EARLIER_TIER_BYTES)

    def held(self, item_ids: Sequence[str], where: NDArray[np.int32]) -> list[str]:
        """Return the items that the set contains, of m items; `where`: their `earlier_positions`, int32 `(m, slices)`."""
        if not len(self._tiers) or not len(item_ids):
            return []
        return [item_ids[n] for n in np.flatnonzero(contained(self._tiers, where)).tolist()]
