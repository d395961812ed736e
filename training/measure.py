"""Train on the first part of a corpus and measure on the rest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.pipeline.slot import ModelSlot
from models.release.serving import ServingModel
from models.rules import PositiveRule
from schemas.records import Item
from training.data.corpus import Corpus
from training.data.slates.examination import Examination
from training.environment import processes_here
from training.evaluation.calibration import of_logged
from training.evaluation.evaluate import EvaluationPlan, Figures, evaluate
from training.evaluation.measurement import Catalogue, Measurement
from training.evaluation.shown_lists import shown_test
from training.learn import learn
from training.recipe import LearnSettings
from training.release.learned import Learned
from training.release.parity import Parity, in_parity
from training.replay.world import SimulatedWorker, Vectors
from training.retrieval.content import hashed_words

__all__ = [
    "Encode",
    "catalogue_of",
    "examination_of",
    "measure",
    "measurement",
    "threads",
    "train_release",
]

Report = Callable[[str, int, int], None]
Encode = Callable[[Sequence[Item]], Vectors]
"Computes item vectors as `riffle encode` publishes them: `training.encoders.live.encode_catalogue`."


def train_release(corpus: Corpus, share: float, settings: LearnSettings, cache: Path, report: Report) -> Learned:
    """Train a release on the first `share` of the events."""
    return learn(corpus.until(share), cache, settings, report)


def measure(
    corpus: Corpus,
    plan: EvaluationPlan,
    report: Report,
    what: str,
    model: ServingModel | None,
    encode: Encode,
    learned: Learned | None = None,
) -> tuple[Figures, Parity | None]:
    """Measure the pipeline with `model`, or without a release. With `learned`, the source of `model`, parity too.

    Items that `model` was not trained with get their vectors from `encode` on publication, as in serving. Where its training
    items are unknown, all items do.
    """
    slot = ModelSlot()
    slot.swap(model)
    found: list[Parity] = []
    vectors: Vectors = {}
    if model is not None:
        known = set() if learned is None else set(learned.item_ids)
        since = [item for item in corpus.items if item.item_id not in known]
        if since:
            report("encode items that came since", 0, 1)
            vectors = encode(since)

    def at_cut(world: SimulatedWorker) -> None:
        if learned is not None and learned.modules is not None and plan.parity:
            report("hold ONNX against torch", 0, 1)
            cut = int(len(corpus.events) * plan.share)
            people = list(dict.fromkeys(event.user_id for event in corpus.events[:cut]))
            found.append(in_parity(world, learned.release(), learned.modules, people, plan.parity))

    rule = PositiveRule(corpus.positive)
    progress = lambda done, of: report(what, done, of)
    heads, windows = ((), {}) if model is None else (tuple((name, 1.0) for name in model.heads), model.windows_ms)
    examination = examination_of(model, learned)
    shown = (
        shown_test(corpus, plan.share, plan.queries, examination, heads, windows, plan.traffic if plan.shown else 0)
        if plan.shown
        else None
    )
    figures = evaluate(corpus.items, corpus.events, rule, plan, progress, slot, at_cut, vectors, shown)
    if model is not None and plan.traffic and plan.shown and (cut := int(len(corpus.events) * plan.share)) < len(corpus.events):
        logged = of_logged(corpus, model, corpus.events[cut].event_time, corpus.events[-1].event_time)
        figures.slates.heads += logged.heads
        figures.slates.came += logged.came
    return figures, found[0] if found else None


def examination_of(model: ServingModel | None, learned: Learned | None) -> Examination | None:
    """How likely each position of a shown slate is looked at, as `learned` or else the release of `model` measured it."""
    if learned is not None:
        found = learned.examination
        return None if found is None or found.low is None else found
    return None if model is None else Examination.of_json(model.release.manifest.metrics.get("position_bias"))


def measurement(
    corpus: Corpus, plan: EvaluationPlan, figures: Figures, label: str, release: str, facts: Mapping[str, Any] = {}
) -> Measurement:
    """Wrap figures as a measurement with a row per query."""
    return Measurement.of(figures, catalogue_of(corpus, plan.share), label, corpus.name, release, facts)


def catalogue_of(corpus: Corpus, share: float) -> Catalogue:
    """The items, with the number of events on each in the first `share`."""
    number = {item.item_id: n for n, item in enumerate(corpus.items)}
    rows = [number.get(event.item_id, -1) for event in corpus.events[: int(len(corpus.events) * share)]]
    counts = np.bincount(np.asarray([n for n in rows if n >= 0], np.int64), minlength=len(corpus.items))
    return Catalogue([item.item_id for item in corpus.items], counts, hashed_words(corpus.items))


FEW_EVENTS = 5_000
"Number of events up to which one thread trains: parallelising so little work costs more than it gains, most on a busy machine."


def threads(events: int = FEW_EVENTS + 1) -> int:
    """Set and return the thread count for torch and the graphs: this process's share of the cores (see `processes_here`).

    With few `events` to train on it is 1.
    """
    import torch

    if events <= FEW_EVENTS:
        torch.set_num_threads(1)
        return 1
    cores = max(1, (os.cpu_count() or 1) // processes_here())
    torch.set_num_threads(cores)
    return cores
