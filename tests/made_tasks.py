"""Tasks for ranking processes, of drawn numbers."""

from __future__ import annotations

import numpy as np

from models.features.compute import FEATURES
from models.pipeline.batch import Candidates
from models.pipeline.rank_task import RankTask
from schemas.records import AsOf, Request

__all__ = ["made_task"]


def made_task(n: int = 3, sources: tuple[str, ...] = ("popular", "ease")) -> RankTask:
    """A task of n candidates."""
    rng = np.random.default_rng(n)
    light = rng.random(n).astype(np.float32)
    scores = rng.random((n, len(sources))).astype(np.float32)
    candidates = Candidates(
        np.zeros(n, np.int32),
        np.arange(n, dtype=np.int32),
        np.where(scores > 0.7, np.float32(np.nan), scores),
        light,
        light,
        rng.random((n, len(FEATURES))).astype(np.float32),
        np.zeros((n, 0), np.float32),
    )
    return RankTask(
        Request("r1", "u1", 2, explain=True),
        "release-1",
        True,
        0.003,
        sources,
        [f"i{i}" for i in range(n)],
        rng.integers(-1, 3, n).astype(np.int32),
        candidates,
        ("source:ease", "stale"),
        {"hydrate": 0.5, "rank": 1.5},
        {"seen": 3},
        AsOf(1, 2, 3),
    )
