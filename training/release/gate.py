"""The gate: a release may serve if it beats the champion beyond noise, on events outside its training, and is fit to run.

The comparison resamples users, each with all queries. `prequential` draws them with replacement (percentile bootstrap).
`leave_last_out` has few users, for which that interval is too narrow. So its quantiles are moved outwards as far as Student's
lie beyond the normal ones (expanded percentile interval, Hesterberg 2015). In addition, a sign-flip test must reject that both
rank equally well (Fisher 1935; exact up to `EXACT` users that differ). Both conditions must hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.discount import discounts_at
from training.evaluation.bounds import PREQUENTIAL, STANDARD, Bounds
from training.evaluation.evaluate import Figures, K
from training.evaluation.ranking_metrics import NOTHING, Interval, bootstrap, expanded_bootstrap, sign_flip_test

if TYPE_CHECKING:  # it imports torch
    from training.release.parity import Parity

__all__ = ["Verdict", "judge", "no_worse", "unfit"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision; `reasons` lists why a release is refused, each with its figure."""

    passed: bool
    reasons: Sequence[str]
    ndcg: float
    against: float
    difference: Interval
    "Difference in NDCG@10 with its interval over users; NOTHING where there was too little to judge by."
    parity: Parity | None
    size_mb: float
    protocol: str
    queries: int
    people: int
    chance: float | None
    "Probability of so large a difference between equal systems. Only for `leave_last_out`."

    @property
    def difference_low(self) -> float:
        """Lower end of the interval of the difference."""
        return self.difference.low

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON for the manifest."""
        difference = self.difference.to_json()
        return {
            "passed": self.passed,
            "reasons": list(self.reasons),
            "protocol": self.protocol,
            "queries": self.queries,
            "people": self.people,
            "ndcg@10": round(self.ndcg, 4),
            "against": round(self.against, 4),
            "difference_low": None if difference is None else difference[1],
            "interval": None if difference is None else difference[1:],
            **({} if self.chance is None else {"chance": round(self.chance, 4)}),
            "size_mb": round(self.size_mb, 1),
            **({"parity": self.parity.to_json()} if self.parity else {}),
        }

    def untimed(self) -> dict[str, Any]:
        """Convert to JSON without timings, which differ in each run: a release's name holds the hash of its manifest."""
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
    protocol: str = PREQUENTIAL,
) -> Verdict:
    """Compare two releases on the same queries, and check the candidate's bounds.

    `exported`: largest difference between torch and ONNX found by the export on sampled inputs; `parity`: on real requests.
    Users are resampled with all their queries, because two likes of one user are not independent.

    Raises:
        ValueError: the two have different queries.
    """
    mine, theirs = _gains(candidate), _gains(serving)
    if len(mine) != len(theirs):
        raise ValueError("the two do not have the same queries")
    users = [one.user_id for one in candidate.asked] or [str(n) for n in range(len(mine))]
    people = np.unique(users, return_inverse=True)[1] if users else np.zeros(0, np.int64)
    found, chance, reasons = _compared(mine - theirs, people, bounds, seed, protocol)
    reasons += unfit(exported, parity, size_mb, bounds, asked=bool(candidate.asked))
    means = [float(gains.mean()) if len(gains) else 0.0 for gains in (mine, theirs)]
    return Verdict(
        not reasons, reasons, means[0], means[1], found, parity, size_mb, protocol, len(mine), len(set(users)), chance
    )


def unfit(exported: float, parity: Parity | None, size_mb: float, bounds: Bounds, *, asked: bool = True) -> list[str]:
    """Reasons why a release is not fit to run, whatever its quality: parity with torch, latency of ranking, size.

    `exported`, `parity`: as for `judge`. `asked`: whether slates were requested of it, so that parity must be known.
    """
    reasons = []
    worst = max(exported, parity.worst if parity else 0.0)
    if not worst <= bounds.parity:
        reasons.append(f"ONNX differs from torch by {worst:.1e}, {bounds.parity:.0e} is allowed")
    if parity is None and asked:
        reasons.append("no slates were requested of the release: neither parity on requests nor latency is known")
    if parity is not None:
        if parity.differing > bounds.differing:
            reasons.append(f"{parity.differing} of {parity.requests} requests get another first {K} from ONNX than from torch")
        if parity.tied > max(1.0, bounds.tied * parity.requests):  # few users get few requests, of which one is no share
            reasons.append(f"in {parity.tied} of {parity.requests} requests ONNX and torch retrieve other items")
        if not parity.rank_p99_ms <= bounds.rank_ms:
            took = f"{parity.rank_p99_ms:.1f} ms (99th percentile, {parity.candidates} candidates)"
            reasons.append(f"ranking takes {took}, {bounds.rank_ms:g} ms are allowed")
    if not size_mb <= bounds.size_mb:
        reasons.append(f"the release holds {size_mb:,.1f} MB, {bounds.size_mb:g} MB are allowed")
    return reasons


def no_worse(candidate: Figures, than: Figures, bounds: Bounds = STANDARD, seed: int = 0) -> tuple[Interval, list[str]]:
    """Interval of the difference in NDCG@10 on the same queries, and a reason where all of it is below 0."""
    differences = _gains(candidate) - _gains(than)
    if not len(differences):
        return NOTHING, []
    people = np.unique([one.user_id for one in candidate.asked], return_inverse=True)[1]
    found = bootstrap(differences, people, bounds.level, seed=seed)
    if found.high >= 0:
        return found, []
    return found, [f"NDCG@{K} differs by {found.mean:+.4f}, interval {found.low:+.4f} to {found.high:+.4f}"]


def _compared(
    differences: NDArray[np.float64], people: NDArray[np.int64], bounds: Bounds, seed: int, protocol: str
) -> tuple[Interval, float | None, list[str]]:
    """Interval of the mean difference, its probability under equal systems, and the reasons why it is no improvement."""
    asked, (queries, fewest) = len(np.unique(people)), bounds.needs(protocol)
    if len(differences) < queries:
        return NOTHING, None, [f"only {len(differences)} queries to judge by, {queries} are needed"]
    if asked < fewest:
        return NOTHING, None, [f"only {asked} users to judge by, {fewest} are needed"]
    if protocol == PREQUENTIAL:
        found, chance = bootstrap(differences, people, bounds.level, seed=seed), None
    else:
        found = expanded_bootstrap(differences, people, bounds.level, seed)
        chance = sign_flip_test(differences, people, seed)
    if found.low > 0 and (chance is None or chance <= (1 - bounds.level) / 2):
        return found, chance, []
    likely = "" if chance is None else f", probability under equal systems {chance:.2f}"
    interval = f"interval {found.low:+.4f} to {found.high:+.4f} over {asked} users{likely}"
    return found, chance, [f"not better beyond noise: NDCG@{K} differs by {found.mean:+.4f}, {interval}"]


def _gains(figures: Figures) -> NDArray[np.float64]:
    ranks = np.asarray(figures.ranks, np.int64)
    return discounts_at(ranks, K)
