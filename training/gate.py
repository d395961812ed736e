"""Whether a release may serve: better than what serves, beyond noise, on the newest events, and fit to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.evaluate import Figures, K
from training.metrics import bootstrap
from training.parity import Parity

__all__ = ["HALF", "STANDARD", "Bounds", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a release must keep to."""

    queries: int = 50
    "Fewest queries to judge by."
    people: int = 30
    "Fewest people to judge by: an interval from drawing a handful of people is too narrow."
    parity: float = 1e-4
    "Largest difference of a score between the exported graphs and torch."
    differing: int = 0
    "Requests, of those asked, whose first K may differ from torch's."
    tied: float = 0.01
    """Share of requests that may differ by the few candidates that only one of the two retrieved: true ties are rare (1 of
    1,000 was seen), and a graph that is wrong for some items has them everywhere."""
    rank_ms: float = 100.0
    "99th percentile of ranking one request's candidates on this machine, ms."
    size_mb: float = 4_096.0
    "Bytes of the release's files, MB."
    level: float = 0.9
    "Of the interval of the difference, whose lower end must be above 0."


STANDARD = Bounds()
HALF = Bounds(parity=1e-2, differing=10**9, tied=1.0)
"For graphs in half precision, which differ by design: they are measured as they serve, and must be better all the same."


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer; `reasons` says why a release is refused, each with its figure."""

    passed: bool
    reasons: Sequence[str]
    ndcg: float
    against: float
    difference_low: float
    "Lower end of the interval of the difference in NDCG@10, from paired bootstrap over people."
    parity: Parity | None
    size_mb: float

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "ndcg@10": round(self.ndcg, 4),
            "against": round(self.against, 4),
            "difference_low": round(self.difference_low, 4),
            "size_mb": round(self.size_mb, 1),
            **({"parity": self.parity.to_json()} if self.parity else {}),
        }

    def untimed(self) -> dict[str, Any]:
        """Without what no second run gives again: a release's name holds the hash of its manifest."""
        found = self.to_json()
        if self.parity:
            found["parity"] = {name: value for name, value in found["parity"].items() if name != "rank_p99_ms"}
        return found


def judge(
    candidate: Figures,
    serving: Figures,
    exported: float,
    parity: Parity | None = None,
    size_mb: float = 0.0,
    bounds: Bounds = STANDARD,
    seed: int = 0,
) -> Verdict:
    """Compare two releases on the same queries, and hold the candidate to its bounds.

    `exported`: largest difference between torch and ONNX that the export found on drawn inputs; `parity`: on real requests.
    People are drawn, with all their queries: what one of them likes twice is not twice as sure.

    Raises:
        ValueError: the two were not asked the same queries.
    """
    mine, theirs = _gains(candidate), _gains(serving)
    if len(mine) != len(theirs):
        raise ValueError("the two were not asked the same queries")
    reasons = []
    low = 0.0
    if len(mine) < bounds.queries:
        reasons.append(f"only {len(mine)} queries to judge by, {bounds.queries} are needed")
    elif candidate.asked and len({one.user_id for one in candidate.asked}) < bounds.people:
        asked = len({one.user_id for one in candidate.asked})
        reasons.append(f"only {asked} people to judge by, {bounds.people} are needed")
    else:
        people = np.unique([one.user_id for one in candidate.asked], return_inverse=True)[1] if candidate.asked else None
        found = bootstrap(mine - theirs, people, bounds.level, seed=seed)
        low = found.low
        if not low > 0:
            reasons.append(f"not better beyond noise: NDCG@{K} differs by {found.mean:+.4f}, interval from {low:+.4f}")
    worst = max(exported, parity.worst if parity else 0.0)
    if not worst <= bounds.parity:
        reasons.append(f"ONNX differs from torch by {worst:.1e}, {bounds.parity:.0e} is allowed")
    if parity is None and candidate.asked:
        reasons.append("the release was not asked for slates: neither parity on requests nor latency is known")
    if parity is not None:
        if parity.differing > bounds.differing:
            reasons.append(f"{parity.differing} of {parity.requests} requests get another first {K} from ONNX than from torch")
        if parity.tied > bounds.tied * parity.requests:
            reasons.append(f"in {parity.tied} of {parity.requests} requests ONNX and torch retrieve other items")
        if not parity.rank_p99_ms <= bounds.rank_ms:
            took = f"{parity.rank_p99_ms:.1f} ms (99th percentile, {parity.candidates} candidates)"
            reasons.append(f"ranking takes {took}, {bounds.rank_ms:g} ms are allowed")
    if not size_mb <= bounds.size_mb:
        reasons.append(f"the release holds {size_mb:,.1f} MB, {bounds.size_mb:g} MB are allowed")
    means = [float(gains.mean()) if len(gains) else 0.0 for gains in (mine, theirs)]
    return Verdict(not reasons, reasons, means[0], means[1], low, parity, size_mb)


def _gains(figures: Figures) -> NDArray[np.float64]:
    ranks = np.asarray(figures.ranks, np.int64)
    return np.where((ranks >= 0) & (ranks < K), 1.0 / np.log2(np.maximum(ranks, 0) + 2.0), 0.0)
