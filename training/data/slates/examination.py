"""Examination probabilities: how likely a user looks at each position of a slate, relative to the first position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIXED", "POSITIONS", "Examination", "continued", "fixed_curve"]

POSITIONS = 100
"Number of positions that are told apart; lower ones count as the last of them."
BIAS = 0.5
"Exponent of the fixed curve, as in `training.data.slates.attribution.ImpressionSettings.position_bias`."
Floats = NDArray[np.float64]


def fixed_curve() -> Floats:
    """Log of (1 + p)^-0.5 (Joachims et al. 2017), the curve without a measurement: `(POSITIONS,)`."""
    curve: Floats = -BIAS * np.log1p(np.arange(POSITIONS, dtype=np.float64))
    return curve


def continued(log: Floats) -> Floats:
    """Continue a curve of fewer positions by the steps of the fixed curve: `(POSITIONS,)`."""
    fixed, n = fixed_curve(), min(len(log), POSITIONS)
    return np.concatenate([log[:n], log[n - 1] + fixed[n:] - fixed[n - 1]])


@dataclass(frozen=True, slots=True)
class Examination:
    """Log of the probability that each position is looked at, 0 for the first."""

    log: Floats
    "`(POSITIONS,)`."
    low: Floats | None = None
    "Lower end of the 95 % interval of `log`, `(measured,)`; None for a curve that was not measured."
    high: Floats | None = None
    choices: int = 0
    "Number of choices that it was measured by."
    scale: float = 1.0
    "Weight of the ranker's log odds in those choices, where they entered the measurement."

    def log_at(self, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """Log of the probability at these positions; 0 where a position is unknown (-1)."""
        found = self.log[np.clip(positions, 0, len(self.log) - 1)]
        return np.where(positions < 0, 0.0, found).astype(np.float32)

    def at(self, positions: NDArray[np.integer]) -> NDArray[np.float32]:
        """Probability at these positions; 1 where a position is unknown."""
        return np.exp(self.log_at(positions))

    def to_json(self) -> dict[str, object]:
        """Probabilities by position with intervals, of the measured positions."""
        if self.low is None or self.high is None:
            return {"measured": False, "choices": self.choices}
        rows = zip(self.log.tolist(), self.low.tolist(), self.high.tolist(), strict=False)
        curve = [[round(float(np.exp(value)), 4) for value in row] for row in rows]
        return {"measured": True, "choices": self.choices, "scale": round(self.scale, 4), "examination": curve}

    @classmethod
    def of_json(cls, told: object) -> Examination | None:
        """Read what `to_json` wrote; None for anything else, and for a curve that was not measured."""
        if not isinstance(told, Mapping) or not told.get("measured"):
            return None
        try:
            curve = np.log(np.asarray(told["examination"], np.float64))
            log, low, high = curve.T
            made = cls(continued(log), low, high, int(told["choices"]), float(told["scale"]))
        except (KeyError, TypeError, ValueError):
            return None
        return made


FIXED = Examination(fixed_curve())
