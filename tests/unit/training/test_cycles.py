"""Time-of-day and day-of-week features are learned only if the examples span their cycles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.features.compute import FEATURES
from models.features.context import CONTEXT, WEEK_MS, context_of
from models.units import DAY_MS
from schemas.records import Request
from training.ranking.base import Ranker
from training.ranking.cycles import without_short_cycles
from training.ranking.examples import Examples
from training.ranking.fit import train_ranker
from training.recipe import KINDS, RankerSettings

MONDAY_8 = 1_699_862_400_000
"Epoch ms of a Monday, 08:00 UTC."
HOUR = 3_600_000
SPAN = 2 * HOUR
COLUMNS = [FEATURES.index(name) for name in CONTEXT.names]
PRICE, SIMILAR = FEATURES.index("item_price"), FEATURES.index("similar")


def shown(queries: int, start_ms: int, span_ms: int, seed: int) -> Examples:
    """Slates of six items over a time span. Cheap items similar to a user's words are liked, at any time."""
    rng = np.random.default_rng(seed)
    features = np.zeros((queries, 6, len(FEATURES)), np.float32)
    for q, time_ms in enumerate(np.sort(rng.integers(start_ms, start_ms + span_ms, queries)).tolist()):
        features[q][:, COLUMNS] = context_of([Request("r", "u")], time_ms)
    features[..., [PRICE, SIMILAR]] = rng.normal(size=(queries, 6, 2))
    wanted = features[..., SIMILAR] - features[..., PRICE] + rng.normal(size=(queries, 6))
    labels = (wanted == wanted.max(axis=1, keepdims=True)).astype(np.float32)
    valid, none = np.ones((queries, 6), np.bool_), np.zeros((queries, 6), np.float32)
    return Examples(features, labels[..., None], labels, valid, none, np.zeros(queries, np.bool_))


def scores(ranker: Ranker, examples: Examples) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = ranker(torch.from_numpy(examples.features))[..., 0].numpy()
    return found


@pytest.mark.parametrize(
    ("span_ms", "kept"), [(DAY_MS, ()), (2 * DAY_MS, ("day",)), (WEEK_MS, ("day",)), (2 * WEEK_MS, ("day", "week"))]
)
def test_a_cycle_counts_that_came_round_twice(span_ms: int, kept: tuple[str, ...]) -> None:
    examples = shown(20, MONDAY_8, span_ms, 0)
    before = examples.features.copy()
    cut = without_short_cycles(examples, span_ms)
    gone = [FEATURES.index(f"{cycle}_{part}") for cycle in {"day", "week"} - set(kept) for part in ("sin", "cos")]
    rest = np.setdiff1d(np.arange(len(FEATURES)), gone)
    assert not cut.features[..., gone].any()
    assert np.array_equal(cut.features[..., rest], before[..., rest])
    assert np.array_equal(examples.features, before), "what was given stays as it was"


@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_that_knows_a_morning_scores_alike_at_any_hour(kind: str) -> None:
    torch.set_num_threads(1)
    settings = RankerSettings(kind=kind, width=16, experts=2, epochs=4, batch=32, rate=1e-2)
    ranker = train_ranker(without_short_cycles(shown(300, MONDAY_8, SPAN, 1), SPAN), settings)
    asked = shown(50, MONDAY_8, SPAN, 2)
    evening = replace(asked, features=asked.features.copy())
    evening.features[..., COLUMNS] = shown(50, MONDAY_8 + 4 * DAY_MS + 12 * HOUR, SPAN, 2).features[..., COLUMNS]
    assert not np.array_equal(evening.features, asked.features)
    assert scores(ranker, evening) == pytest.approx(scores(ranker, asked), abs=1e-6)
