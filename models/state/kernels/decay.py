"""Exponential decay in arithmetic that every machine does alike.

`exp2` of one mathematical library differs from that of another in the last bit, and a decayed counter carries every such
bit on: rows could then not be compared byte for byte. Additions and multiplications of IEEE 754 are exact everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["COEFFICIENTS", "halved"]

COEFFICIENTS = np.array([math.log(2.0) ** n / math.factorial(n) for n in range(14)])
"Taylor series of 2^x around 0: beyond the 13th power nothing is left of |x| ≤ 0.5 in 64 bits."


@njit(cache=True, nogil=True)
def halved(weight: float, age_ms: int, half_life_ms: int) -> float:
    """`weight * 2 ** (-age_ms / half_life_ms)` for an age that is not negative."""
    x = -np.float64(age_ms) / np.float64(half_life_ms)
    if x < -1070.0:
        return 0.0
    whole = np.floor(x + 0.5)
    part = x - whole
    power = COEFFICIENTS[13]
    for n in range(12, -1, -1):
        power = power * part + COEFFICIENTS[n]
    return weight * math.ldexp(power, int(whole))
