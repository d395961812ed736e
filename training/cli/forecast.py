"""What a training read, what it will cost, and what its gate has to judge by: reported before it begins.

Costs are CPU seconds of one thread per event, query or item, measured by `benchmarks/training_cost.py` (docs/training-cost.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from training.data.corpus import Corpus
from training.evaluation.bounds import STANDARD
from training.evaluation.holdout import Holdout
from training.recipe import LearnSettings

__all__ = ["Forecast", "forecast_of"]

TOWERS_S = 13.8 / 80_000
"Towers: an event in an epoch."
REPLAY_S, APPLY_S = 4.3 / 300, 25e-6
"Replay: a query, and an event that is applied."
RANKER_S = 1.5 / 300 / 5
"Ranker: a query in an epoch."
MEASURE_S, PARITY_S = 4.6 / 1_000, 30e-3
"The gate: a query, and a request that is compared with torch."
CUBE_S = 1.05 / 3_000**3
"Item-to-item weights: an item times an item times an item."
TEXT_S, IMAGE_S = 15e-3, 60e-3
"Encoders: an item's text or image. These two were not measured on their own, and vectors that are cached cost nothing."
EXPORT_S, CONTENT_S = 5.0, 2.0
LARGEST, BLOCK = 12_000, 6_000
"Items of one inverse, and of a block and its context beyond that (`training.retrieval.ease.EaseSettings`)."
BASE_GB, EVENT_GB, PAIR_GB = 1.1, 1e-6, 12e-9
"Memory of libraries and encoders, of an event, and of an item times an item (three matrices of float32)."
UPDATE_EPOCHS = 2
SLOWEST = 3.0
"A busy machine takes up to so many times longer."


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a training."""

    events: int
    "Events to train on."
    held_out: int
    "Events that the gate keeps."
    users: int
    items: int
    texts: int
    "Items with a title or text."
    images: int
    impressions: int
    "Events that only record that an item was shown."
    logged: bool
    "Whether the archive has slates that Riffle logged."
    seconds: Mapping[str, float]
    "Expected CPU seconds of each part, in their order, by the name that progress reports."
    memory_gb: float
    gate: Mapping[str, Any]
    "How the gate judges: `protocol`, `queries` and `users` that there are, and how many of each are needed."

    def to_json(self) -> dict[str, Any]:
        """Return the forecast as the entry `expected` of the facts."""
        return {**asdict(self), "seconds": dict(self.seconds), "total_s": round(sum(self.seconds.values()), 1)}

    def lines(self) -> list[str]:
        """Return the forecast as lines for a person."""
        total = sum(self.seconds.values())
        largest = sorted(self.seconds.items(), key=lambda part: -part[1])[:4]
        costs = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in largest)
        gate = self.gate
        slates = f", {self.impressions:,} impressions" if self.impressions else ""
        slates += ", logged slates" if self.logged else ""
        read = f"{self.events + self.held_out:,} events of {self.users:,} users, {self.items:,} items"
        told = f"({self.texts:,} with text, {self.images:,} with an image){slates}"
        busy = f"up to {SLOWEST:g} times that on a busy machine"
        there = f"{gate['queries']:,} queries of {gate['users']:,} users ({gate['protocol']})"
        needed = f"{gate['needed_queries']:,} of {gate['needed_users']:,} users are needed"
        return [
            f"read: {read} {told}",
            f"expected: {_minutes(total)} of one core, {busy}, and {self.memory_gb:.1f} GB of memory; most of it: {costs}",
            f"the gate: {there}; {needed}",
        ]


def forecast_of(
    corpus: Corpus, held: Holdout, settings: LearnSettings, queries: int, champion: str, *, incremental: bool = False
) -> Forecast:
    """Forecast a training on the corpus of `held`. `champion`: name of the release that the gate measures, too, or `none`."""
    n, events = len(corpus.items), held.trained
    texts = sum(bool(item.title or item.text) for item in corpus.items)
    images = sum(item.image is not None for item in corpus.items)
    asked = min(queries, held.queries)
    judged = ["measure the new release", "measure without a release", *([f"measure {champion}"] if champion != "none" else [])]
    size = min(n, LARGEST) if n <= LARGEST else BLOCK
    inverses = 1 if n <= LARGEST else -(-n // (BLOCK // 2))
    weights = CUBE_S * size**3 * inverses
    seconds: dict[str, float] = {"encode text": TEXT_S * texts, "encode images": IMAGE_S * images}
    if incremental:
        seconds["update the towers"] = TOWERS_S * events * UPDATE_EPOCHS + weights + EXPORT_S
    else:
        older = events * (1 - settings.replayed_share)
        learned = min(settings.queries, round(events * settings.replayed_share))
        lists, epochs = min(settings.shown_slates, round(_lists(corpus) * settings.replayed_share)), settings.towers.epochs
        # a second ranker trains without the slates from impression events
        ranked = 2 * learned + lists if lists else learned
        seconds |= {
            "weigh content": CONTENT_S,
            "item-to-item weights, older part": weights,
            "train the towers, older part": TOWERS_S * older * epochs,
            "replay": REPLAY_S * (learned + lists) + APPLY_S * events,
            "train the ranker": RANKER_S * ranked * settings.ranker.epochs,
            "item-to-item weights, all": weights,
            "train the towers, all": TOWERS_S * events * epochs,
            "export": EXPORT_S,
        }
    seconds["hold ONNX against torch"] = PARITY_S * queries
    for name in judged:
        seconds[name] = MEASURE_S * asked + APPLY_S * len(held.events)
    last = held.independent
    return Forecast(
        events,
        len(held.events) - events,
        len({event.user_id for event in held.events}),
        n,
        texts,
        images,
        0 if corpus.shown is None else len(corpus.shown),
        corpus.logged is not None,
        {name: round(value, 1) for name, value in seconds.items()},
        round(BASE_GB + EVENT_GB * len(held.events) + PAIR_GB * size**2, 1),
        {
            "protocol": held.protocol,
            "queries": held.queries,
            "users": held.people,
            "needed_queries": STANDARD.last if last else STANDARD.queries,
            "needed_users": STANDARD.last if last else STANDARD.people,
        },
    )


def _lists(corpus: Corpus) -> int:
    """Number of slates from impression events: those of one user and request, or of one moment without a request."""
    if corpus.shown is None or not len(corpus.shown):
        return 0
    moment = pl.when(pl.col("request_id").is_null()).then(pl.col("event_time"))
    return int(corpus.shown.frame.select(pl.struct("user_id", "request_id", moment).n_unique()).item())


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
