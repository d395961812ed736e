"""Figures of an evaluation with given ranks, for the gate's tests."""

from __future__ import annotations

import numpy as np

from training.evaluation.evaluate import Figures, QueryOutcome
from training.replay.probe import Probed

NONE = np.zeros(0, np.int32)


def figures(ranks: list[int], people: int = 0) -> Figures:
    """Make figures of queries with these ranks, by `people` users in turn; without users no outcomes."""
    found = Figures(ranks=ranks)
    for n in range(len(ranks) if people else 0):
        probed = Probed(ranks[n], "ranked", [], 0, 0, NONE, NONE, np.zeros((0, 0), np.float32))
        none = np.zeros(0, np.bool_)
        found.asked.append(QueryOutcome(f"u{n % people}", "i", probed, False, False, False, (), none, 0, none.reshape(0, 0)))
    return found
