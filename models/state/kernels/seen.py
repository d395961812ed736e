"""Membership test of many candidates in a user's seen-set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint8
from numpy.typing import NDArray

__all__ = ["contained", "in_tier"]

AT_ONCE = 4
"Bits of a tier that are tested without a branch, because a branch on one bit of a half-full tier is unpredictable."


@njit(inline="always")
def in_tier(tiers: Any, t: int, where: Any, i: int) -> bool:
    """Return whether tier t holds the item whose bit positions are row i of `where`. Most bits of most items are never read."""
    first = uint8(1)
    for s in range(AT_ONCE):
        bit = where[i, s]
        first &= tiers[t, bit >> 3] >> uint8(bit & 7)
    held = bool(first)
    s = AT_ONCE
    while held and s < where.shape[1]:
        bit = where[i, s]
        held = bool((tiers[t, bit >> 3] >> (bit & 7)) & 1)
        s += 1
    return held


@njit(cache=True, nogil=True)
def contained(tiers: Any, where: Any) -> NDArray[np.bool_]:
    """Return whether any tier holds each of m items: bool `(m,)`.

    `tiers`: bits, uint8 `(t, bytes)`, least significant bit first; `where`: bit positions, int32 `(m, slices)`, at least
    AT_ONCE slices.
    """
    found = np.zeros(len(where), np.bool_)
    for i in range(len(where)):
        for t in range(len(tiers)):
            if in_tier(tiers, t, where, i):
                found[i] = True
                break
    return found
