"""Whether a release may serve: better than what serves, beyond noise, on the newest events, and fit to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.evaluate import Figures, K

__all__ = ["Verdict", "judge"]

LEAST_QUERIES = 50
RESAMPLES = 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer; `reasons` says why a release is refused."""

    passed: bool
    reasons: Sequence[str]
    ndcg: float
    against: float
    difference_low: float
    "Lower end of the 90 % interval of the difference in NDCG@10, from paired bootstrap."

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "ndcg@10": round(self.ndcg, 4),
            "against": round(self.against, 4),
            "difference_low": round(self.difference_low, 4),
        }


def _gains(figures: Figures) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    ranks = np.asarray(figures.ranks, np.int64)
    return np.where((ranks >= 0) & (ranks < K), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)


def judge(candidate: Figures, serving: Figures, parity: float, allowed_parity: float = 1e-4, seed: int = 0) -> Verdict:
    """Compare two releases on the same queries. Paired bootstrap over queries (Efron & Tibshirani 1993), 90 % interval."""
    mine, theirs = _gains(candidate), _gains(serving)
    if len(mine) != len(theirs):
        raise ValueError("the two were not asked the same queries")
    reasons = []
    low = 0.0
    if len(mine) < LEAST_QUERIES:
        reasons.append(f"only {len(mine)} queries to judge by, {LEAST_QUERIES} are needed")
    else:
        rng = np.random.default_rng(seed)
        difference = mine - theirs
        drawn = rng.integers(0, len(difference), (RESAMPLES, len(difference)))
        low = float(np.quantile(difference[drawn].mean(axis=1), 0.05))
        if not low > 0:
            reasons.append(f"not better beyond noise: NDCG@10 differs by {difference.mean():+.4f}, interval from {low:+.4f}")
    if not parity <= allowed_parity:
        reasons.append(f"ONNX differs from torch by {parity:.1e}")
    means = [float(gains.mean()) if len(gains) else 0.0 for gains in (mine, theirs)]
    return Verdict(not reasons, reasons, means[0], means[1], low)
