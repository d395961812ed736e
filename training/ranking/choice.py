"""Chooses the ranker's examples: slates from impression events are kept only if they help on held-out slates and history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.slates.examination import FIXED, Examination
from training.discount import discounts, expected_discount
from training.ranking.base import Ranker, run
from training.ranking.calibrate import calibrate
from training.ranking.cycles import without_short_cycles
from training.ranking.examples import Examples, Replayed, ShownLists, held_out_from, parts
from training.ranking.fit import train_ranker
from training.ranking.position_bias import Choices, measured
from training.recipe import RankerSettings

__all__ = ["Chosen", "helps", "listwise_ndcg", "ndcg_of_each", "trained_ranker"]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A ranker, and what it was trained on."""

    ranker: Ranker
    examples: Examples
    "Queries from history and logged slates."
    slates: int
    "Number of slates that it learned from, logged ones and those from impression events."
    examination: Examination
    "How likely each position is looked at, measured given the ranker where it could be."
    cut: int
    "Place from which queries were held out from training."
    lists: Examples | None = None
    "Held-out slates from impression events, if there are any, whether or not the ranker learned from others."


def trained_ranker(
    replayed: Replayed,
    span_ms: int,
    settings: RankerSettings,
    progress: Callable[[int, int], None] | None = None,
    examination: Examination = FIXED,
) -> Chosen:
    """Train a ranker. `span_ms`: time span of the examples. `examination`: how likely each position of a slate is looked at.

    In slates from impression events another system chose the items and the users. An item that it shows to everybody is no
    better than the rest of its slates, though it gets more interactions. So a second ranker trains without these slates. The
    first is kept only if it ranks the likes of the newest of these slates no lower, and those of the newest history not lower
    by more than the standard error of the difference. Both parts begin at one moment; neither ranker was trained on what
    came after it.
    """
    shown = replayed.shown
    # replayed history holds times of actions, not of requests: its hours do not predict those of requests
    span_ms = span_ms if replayed.logged or len(shown) else 0
    examples = without_short_cycles(replayed.examples, span_ms)
    if not len(shown):
        return _plain(examples, replayed, settings, progress, examination)
    shown = replace(shown, examples=without_short_cycles(shown.examples, span_ms))
    plain = without_short_cycles(replayed.examples, span_ms if replayed.logged else 0)
    cut = held_out_from(examples, shown) if len(examples) else 0
    if not len(shown.parts(cut)[0]):
        return _plain(plain, replayed, settings, progress, examination)
    ranker = train_ranker(examples, settings, progress, shown, examination, cut)
    without = train_ranker(plain, settings, progress, cut=cut)
    newest = np.flatnonzero(examples.places >= cut)
    history = ndcg_of_each(ranker, examples.take(newest)), ndcg_of_each(without, plain.take(newest))
    later = shown.parts(cut)[1]
    lists = ndcg_of_each(ranker, later.examples), ndcg_of_each(without, later.examples)
    if not helps(history, lists):
        if cut == held_out_from(plain):
            calibrate(without, parts(plain, cut)[1], later.examples)
            return Chosen(without, plain, replayed.logged, examination, cut, later.examples)
        return _plain(plain, replayed, settings, progress, examination)
    curve = _given(ranker, later, examination)
    return Chosen(ranker, examples, replayed.logged + len(shown), curve, cut, later.examples)


def _plain(
    examples: Examples,
    replayed: Replayed,
    settings: RankerSettings,
    progress: Callable[[int, int], None] | None,
    examination: Examination,
) -> Chosen:
    """Train without slates from impression events. They still calibrate: they are traffic."""
    ranker, cut = train_ranker(examples, settings, progress), held_out_from(examples)
    if not len(replayed.shown):
        return Chosen(ranker, examples, replayed.logged, examination, cut)
    lists = replayed.shown.parts(cut)[1].examples
    calibrate(ranker, parts(examples, cut)[1], lists)
    return Chosen(ranker, examples, replayed.logged, examination, cut, lists)


def helps(history: tuple[NDArray[np.float64], ...], lists: tuple[NDArray[np.float64], ...]) -> bool:
    """Whether the first of two rankers is to be kept, by the NDCG of each on queries of history and on slates.

    Without slates to compare on, history decides.
    """
    change = history[0] - history[1]
    error = float(change.std() / np.sqrt(len(change))) if len(change) else 0.0
    no_lower = not len(change) or float(change.mean()) >= -error
    return no_lower and (not len(lists[0]) or float(lists[0].mean()) >= float(lists[1].mean()))


def _given(ranker: Ranker, shown: ShownLists, examination: Examination) -> Examination:
    """The curve measured once more, given what the ranker knows of users and items; `examination` where it cannot be.

    `shown`: slates that the ranker did not learn from, because its logits of others know what was chosen.
    """
    chosen = shown.examples.gains.sum(axis=1) > 0
    known = (shown.positions >= 0) | ~shown.examples.valid
    rows = np.flatnonzero(chosen & known.all(axis=1) & (shown.examples.valid.sum(axis=1) > 1))
    part = shown.take(rows)
    gains = part.examples.gains / part.examples.gains.sum(axis=1, keepdims=True)
    choices = Choices(part.users, part.items, part.positions.clip(0, len(examination.log) - 1), gains, part.examples.valid)
    if not len(rows):
        return examination
    with torch.inference_mode():
        logits = (run(ranker, part.examples)[0][..., 0] * ranker.platt[0, 0] + ranker.platt[1, 0]).numpy()
    return measured(choices, logits) or examination


def listwise_ndcg(model: Ranker, examples: Examples) -> float:
    """Mean of `ndcg_of_each`; 0 without a query with a gain."""
    found = ndcg_of_each(model, examples)
    return float(found.mean()) if len(found) else 0.0


def ndcg_of_each(model: Ranker, examples: Examples) -> NDArray[np.float64]:
    """NDCG of the valid candidates in the order of the first head, of each query with a gain.

    Tied candidates get the mean discount of their ranks, because `examples` list the liked ones first.
    """
    if not len(examples):
        return np.zeros(0)
    with torch.inference_mode():
        logits, _ = run(model, examples)
    scores = np.where(examples.valid, logits[..., 0].numpy(), -np.inf)
    discount = discounts(np.arange(scores.shape[1]))
    gains = (examples.gains * expected_discount(scores, discount)).sum(axis=1)
    best = -np.sort(-examples.gains, axis=1) @ discount
    found: NDArray[np.float64] = gains[best > 0] / best[best > 0]
    return found
