"""Kinds of rankers by their name in the settings."""

from __future__ import annotations

from training.ranking.base import Ranker
from training.ranking.deepfm import DeepFM
from training.ranking.mmoe import MMoE
from training.recipe import KINDS, RankerSettings

__all__ = ["KINDS", "make_ranker"]


def make_ranker(features: int, heads: int, settings: RankerSettings) -> Ranker:
    """Make an untrained ranker of the kind in the settings."""
    made = DeepFM if settings.kind == "deepfm" else MMoE
    return made(features, heads, settings)
