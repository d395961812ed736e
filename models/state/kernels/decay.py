"""Exponential decay with identical results on every machine.

`exp2` differs between mathematical libraries in the last bit, and decayed counters accumulate such differences, so that rows
could not be compared byte for byte. Additions and multiplications of IEEE 754 give the same results everywhere.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

__all__ = ["COEFFICIENTS", "halved"]

COEFFICIENTS = np.array([math.log(2.0) ** n / math.factorial(n) for n in range(14)])
"Taylor series of 2^x around 0. For |x| ≤ 0.5, terms beyond the 13th power vanish in 64 bits."


@njit(cache=True, nogil=True)
def halved(weight: float, age_ms: int, half_life_ms: int) -> float:
    """Return `weight * 2 ** (-age_ms / half_life_ms)` for a non-negative age."""
    x = -np.float64(age_ms) / np.float64(half_life_ms)
    if x < -1070.0:
        return 0.0
    whole = np.floor(x + 0.5)
    part = x - whole
    power = COEFFICIENTS[13]
    for n in range(12, -1, -1):
        power = power * part + COEFFICIENTS[n]
    return weight * math.ldexp(power, int(whole))
