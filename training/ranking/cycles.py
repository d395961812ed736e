"""Times of day and of the week are learned only from examples that went through them."""

from __future__ import annotations

from dataclasses import replace

from models.features.compute import FEATURES
from models.features.context import WEEK_MS
from models.units import DAY_MS
from training.ranking.examples import Examples

__all__ = ["without_short_cycles"]

TURNS = 2
"How often a cycle must come round in the examples: one turn alone does not tell a time of the week from a trend."
CYCLES_MS = {"day": DAY_MS, "week": WEEK_MS}


def without_short_cycles(examples: Examples, span_ms: int) -> Examples:
    """The examples, with the times within cycles that `span_ms` holds less than TURNS of at 0.

    What never varied in training moves no score, whatever it says later (`Ranker.fit`). Without this a morning's examples
    would be held against evenings: far outside of what they spread over.
    """
    short = [name for name, length in CYCLES_MS.items() if span_ms < TURNS * length]
    columns = [FEATURES.index(f"{name}_{part}") for name in short for part in ("sin", "cos")]
    if not columns:
        return examples
    features = examples.features.copy()
    features[..., columns] = 0.0
    return replace(examples, features=features)
