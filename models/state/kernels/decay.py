"""Exponential decay with identical results on every machine.

`exp2` differs between mathematical libraries in the last bit, and decayed counters accumulate such differences, so that rows
could not be compared byte for byte. Additions and multiplications of IEEE 754 give the same results everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

__all__ = ["COEFFICIENTS", "halved", "halved_sums"]

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


@njit(cache=True, nogil=True)
def halved_sums(weights: Any, times_ms: Any, rows: Any, now_ms: int, half_life_ms: int) -> Any:
    """Return the sum of each row of `weights` `(n, m)`, decayed from `times_ms` `(n, m)` to `now_ms`: float32."""
    out = np.empty(len(rows), np.float32)
    for i in range(len(rows)):
        total, row = 0.0, rows[i]
        for j in range(weights.shape[1]):
            if weights[row, j] != 0.0:
                total += halved(weights[row, j], max(now_ms - times_ms[row, j], 0), half_life_ms)
        out[i] = total
    return out
