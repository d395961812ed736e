"""Checks of a refitted release before it is published instead of the judged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluation.bounds import Bounds
from training.evaluation.evaluate import Figures
from training.evaluation.ranking_metrics import Interval
from training.release.gate import no_worse, unfit
from training.release.learned import Learned
from training.release.parity import Parity

__all__ = ["Refitted", "refitted"]


@dataclass(frozen=True, slots=True)
class Refitted:
    """A judged release that was trained again on all events."""

    learned: Learned
    parity: Parity | None
    difference: Interval
    "Difference in NDCG@10 from the judged release on the gate's queries, which the refit has learned from."
    reasons: Sequence[str]
    "Why it is not fit to be published; empty where it is."
    judged_events: int
    judged_until_ms: int
    "End of the training events of the judged release."

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON for the report."""
        manifest, difference = self.learned.manifest, self.difference.to_json()
        return {
            "published": not self.reasons,
            "reasons": list(self.reasons),
            "events": manifest.trained_events,
            "added_events": manifest.trained_events - self.judged_events,
            "judged_until_ms": self.judged_until_ms,
            "until_ms": manifest.trained_until_ms,
            "size_mb": round(self.learned.size_mb, 1),
            "seen_difference": None if difference is None else difference[0],
            **({"parity": self.parity.to_json()} if self.parity else {}),
        }

    def untimed(self, judged: str) -> dict[str, Any]:
        """Convert to JSON without timings, for the manifest. `judged`: name of the release that the gate judged."""
        found = {"of": judged, **self.to_json()}
        if self.parity:
            found["parity"] = {name: value for name, value in found["parity"].items() if name != "rank_p99_ms"}
        return found


def refitted(
    judged: Learned, refit: Learned, before: Figures, after: Figures, parity: Parity | None, bounds: Bounds
) -> Refitted:
    """Check a refit: parity, latency and size as the gate does, and that it is not worse than the judged release.

    `before`, `after`: figures of both on the gate's queries. The refit has learned from these, so it must do as well there. If
    it does not, its training has failed.
    """
    reasons = unfit(max(judged.parity, refit.parity), parity, refit.size_mb, bounds)
    difference, worse = no_worse(after, before, bounds)
    reasons += [f"worse on the gate's queries, although it learned from them: {reason}" for reason in worse]
    manifest = judged.manifest
    return Refitted(refit, parity, difference, reasons, manifest.trained_events, manifest.trained_until_ms)
