"""The kinds of rankers, by the name that settings give them."""

from __future__ import annotations

from training.ranking.base import Ranker
from training.ranking.deepfm import DeepFM
from training.ranking.mmoe import MMoE
from training.recipe import KINDS, RankerSettings

__all__ = ["KINDS", "make_ranker"]


def make_ranker(features: int, heads: int, settings: RankerSettings) -> Ranker:
    """An untrained ranker of the kind that the settings ask for."""
    made = DeepFM if settings.kind == "deepfm" else MMoE
    return made(features, heads, settings)
