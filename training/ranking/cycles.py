"""Removes time-of-day and day-of-week features from examples that span too little time to learn them."""

from __future__ import annotations

from dataclasses import replace

from models.features.compute import FEATURES
from models.features.context import WEEK_MS
from models.units import DAY_MS
from training.ranking.examples import Examples

__all__ = ["without_short_cycles"]

TURNS = 2
"Minimum number of turns of a cycle in the examples: one turn alone cannot separate a time of the week from a trend."
CYCLES_MS = {"day": DAY_MS, "week": WEEK_MS}


def without_short_cycles(examples: Examples, span_ms: int) -> Examples:
    """Set the features of cycles with fewer than TURNS turns in `span_ms` to 0.

    A feature that is constant in training never changes a score (`Ranker.fit`). Otherwise a ranker trained on a morning's
    examples would be applied to evening values far outside their range.
    """
    short = [name for name, length in CYCLES_MS.items() if span_ms < TURNS * length]
    columns = [FEATURES.index(f"{name}_{part}") for name in short for part in ("sin", "cos")]
    if not columns:
        return examples
    features = examples.features.copy()
    features[..., columns] = 0.0
    return replace(examples, features=features)
