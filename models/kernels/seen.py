"""Membership of many candidates in a person's seen-set."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["contained"]


@njit(cache=True, nogil=True)
def contained(tiers: Any, where: Any) -> NDArray[np.bool_]:
    """Which of m items some tier holds.

    `tiers`: bits uint8 `(t, bytes)`, least significant bit first; `where`: bit positions int32 `(m, slices)`. Returns bool
    `(m,)`. Most items fail at the first bits of a tier, so most bits are never looked at.
    """
    found = np.zeros(len(where), np.bool_)
    for i in range(len(where)):
        for t in range(len(tiers)):
            whole = True
            for s in range(where.shape[1]):
                bit = where[i, s]
                if not (tiers[t, bit >> 3] >> (bit & 7)) & 1:
                    whole = False
                    break
            if whole:
                found[i] = True
                break
    return found
