"""Hash a table independently of the order of its rows, to compare owner, standby and changelog.

The hash is the sum modulo 2^128 of a hash of each row (Bellare & Micciancio, EUROCRYPT 1997). Rows can be added in any order,
and the row that a newer one replaces in a changelog can be subtracted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["Digest", "digest"]

_BITS = 128


@dataclass(frozen=True, slots=True)
class Digest:
    """Number of rows and their hash, as 32 hexadecimal digits."""

    rows: int
    hash: str


def digest(rows: Iterable[tuple[bytes, bytes]]) -> Digest:
    """Digest of (key, value) rows with distinct keys."""
    count = total = 0
    for key, value in rows:
        count += 1
        row = blake2b(len(key).to_bytes(4, "little") + key + value, digest_size=_BITS // 8)
        total += int.from_bytes(row.digest(), "little")
    return Digest(count, f"{total % (1 << _BITS):032x}")
