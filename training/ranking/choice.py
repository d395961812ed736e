"""Chooses the ranker's examples: slates from impression events are kept only if they help on held-out history."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from training.discount import discounts, expected_discount
from training.ranking.base import Ranker, run
from training.ranking.cycles import without_short_cycles
from training.ranking.examples import Examples, Replayed, calibrated_from
from training.ranking.fit import train_ranker
from training.recipe import RankerSettings

__all__ = ["listwise_ndcg", "trained_ranker"]


def trained_ranker(
    replayed: Replayed, span_ms: int, settings: RankerSettings, progress: Callable[[int, int], None] | None = None
) -> tuple[Ranker, Examples, int]:
    """Train a ranker. Returns it, its training examples, and how many of them are slates. `span_ms`: time span of the examples.

    In slates from impression events another system chose the items and the users. An item that it shows to everybody is no
    better than the rest of its slates, though it gets more interactions. So a second ranker trains without these slates. The
    first is kept only if it ranks likes no lower in the newest tenth of history, on which neither was trained.
    """
    told, slates = replayed.told, replayed.logged
    examples, ranker = _trained(replayed.examples, slates, span_ms, settings, progress)
    rows = np.flatnonzero(~told)
    if not told.any() or not len(rows):
        return ranker, examples, slates
    others = slates - int(told.sum())
    plain, without = _trained(replayed.examples.take(rows), others, span_ms, settings, progress)
    newest = np.arange(calibrated_from(len(rows)), len(rows))
    held = newest[rows[newest] >= calibrated_from(len(told))]
    if listwise_ndcg(without, plain.take(held)) > listwise_ndcg(ranker, examples.take(rows[held])):
        return without, plain, others
    return ranker, examples, slates


def _trained(
    examples: Examples, slates: int, span_ms: int, settings: RankerSettings, progress: Callable[[int, int], None] | None
) -> tuple[Examples, Ranker]:
    # replayed history holds times of actions, not of requests: its hours do not predict those of requests
    examples = without_short_cycles(examples, span_ms if slates else 0)
    return examples, train_ranker(examples, settings, progress)


def listwise_ndcg(model: Ranker, examples: Examples) -> float:
    """Mean NDCG of the valid candidates in the order of the first head, over queries with a gain; 0 without any.

    Tied candidates get the mean discount of their ranks, because `examples` list the liked ones first.
    """
    if not len(examples):
        return 0.0
    with torch.inference_mode():
        logits, _ = run(model, examples)
    scores = np.where(examples.valid, logits[..., 0].numpy(), -np.inf)
    discount = discounts(np.arange(scores.shape[1]))
    gains = (examples.gains * expected_discount(scores, discount)).sum(axis=1)
    best = -np.sort(-examples.gains, axis=1) @ discount
    return float((gains[best > 0] / best[best > 0]).mean()) if (best > 0).any() else 0.0
