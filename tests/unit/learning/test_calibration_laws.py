"""Probabilities hold on all traffic, though training samples it: laws on data whose true probabilities are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from training.evaluation.calibration import Traffic
from training.ranking.base import Ranker
from training.ranking.calibrate import calibrate, calibration_error, reliability
from training.ranking.examples import FEWEST_LATER, Examples, of_traffic
from training.ranking.fit import train_ranker
from training.recipe import KINDS, RankerSettings

WIDTH = 40
"Candidates of a moment."
WITHIN = 0.01
"Maximum expected calibration error."
laws = settings(max_examples=12, deadline=None)


class Known(Ranker):
    """A ranker whose logits are the true ones, stretched and shifted."""

    def __init__(self, stretch: float, shift: float) -> None:
        super().__init__(2, 2)
        self._stretch, self._shift = stretch, shift
        self._add_output_parameters()

    def logits(self, features: Tensor) -> Tensor:
        return features * self._stretch + self._shift


def moments(n: int, seed: int, level: float = -3.0) -> tuple[Examples, NDArray[np.float64]]:
    """All traffic: `n` moments of WIDTH candidates, and the true probability of both heads `(n, WIDTH, 2)`.

    The features are the true log odds. How active the user is differs by moment.
    """
    rng = np.random.default_rng(seed)
    odds = level + rng.normal(0.0, 0.9, (n, 1, 1)) + rng.normal(0.0, 0.8, (n, WIDTH, 2))
    true = 1.0 / (1.0 + np.exp(-odds))
    labels = (rng.random(true.shape) < true).astype(np.float32)
    valid, none = np.ones((n, WIDTH), np.bool_), np.zeros((n, WIDTH), np.float32)
    return Examples(odds.astype(np.float32), labels, labels[..., 0], valid, none, np.zeros(n, np.bool_)), true


def sampled(every: Examples, liked_share: float, other_share: float, kept: int, seed: int) -> Examples:
    """A sample as training takes it: moments with a like more often, and of their candidates the liked and some others."""
    rng = np.random.default_rng(seed)
    liked = every.labels[..., 0].any(axis=1)
    share = np.where(liked, liked_share, other_share)
    rows = np.flatnonzero(rng.random(len(every)) < share)
    part = every.take(rows)
    acted = part.labels.any(axis=-1)
    # the candidates without an action in random order after those with one
    order = np.argsort(np.where(acted, -1.0, rng.random(acted.shape)), axis=1)
    place = np.argsort(order, axis=1)
    followed = acted.sum(axis=1, keepdims=True)
    room = np.maximum(kept - followed, 1)
    valid = place < followed + room
    drawn = (valid & ~acted).sum(axis=1, keepdims=True)
    correction = np.where(acted, 0.0, np.log((WIDTH - followed).clip(1) / drawn.clip(1))).astype(np.float32)
    return replace(part, valid=valid, correction=correction, traffic=(1.0 / share[rows]).astype(np.float32))


def error(said: NDArray[np.float32], came: NDArray[np.float32] | NDArray[np.float64], head: int) -> float:
    """Expected calibration error of one head in ten bins of equal size."""
    order = np.argsort(said[..., head], axis=None)
    predicted, observed = said[..., head].ravel()[order], came[..., head].ravel()[order]
    bins = np.array_split(np.arange(len(order)), 10)
    return float(sum(len(b) * abs(predicted[b].mean() - observed[b].mean()) for b in bins) / len(order))


def said_by(model: Ranker, examples: Examples) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = model(torch.from_numpy(examples.features.reshape(-1, examples.features.shape[-1]))).numpy()
    return found.reshape(*examples.features.shape[:2], -1)


@laws
@given(
    st.floats(0.4, 2.5),
    st.floats(-2.0, 2.0),
    st.sampled_from((-5.0, -4.0, -3.0)),
    st.floats(0.05, 1.0),
    st.integers(12, WIDTH),
    st.integers(0, 99),
)
def test_calibration_on_a_sample_recovers_the_true_probabilities_of_all_traffic(
    stretch: float, shift: float, level: float, other_share: float, kept: int, seed: int
) -> None:
    every, _ = moments(3_000, seed, level)
    model = Known(stretch, shift)
    calibrate(model, sampled(every, 1.0, other_share, kept, seed))
    later, true = moments(400, seed + 1_000, level)
    for head in (0, 1):
        assert error(said_by(model, later), true, head) < WITHIN


def test_without_the_correction_probabilities_would_be_too_high() -> None:
    every, _ = moments(3_000, 0, level=-5.0)
    sample, model = sampled(every, 1.0, 0.1, 12, 0), Known(1.0, 0.0)
    calibrate(model, replace(sample, traffic=np.ones(len(sample), np.float32)))
    later, true = moments(400, 1_000, level=-5.0)
    assert said_by(model, later)[..., 0].mean() > 1.5 * true[..., 0].mean()


@laws
@given(st.floats(0.4, 2.5), st.floats(-2.0, 2.0), st.floats(-1.0, 3.0), st.integers(0, 99))
def test_shown_slates_decide_where_there_are_enough_and_what_the_ranker_adds_for_exposure_is_left_out(
    stretch: float, shift: float, bias: float, seed: int
) -> None:
    history, _ = moments(200, seed, level=-6.0)
    slates, _ = moments(2_000, seed + 500)
    slates = replace(slates, exposed=np.ones(len(slates), np.bool_))
    model = Known(stretch, shift)
    with torch.no_grad():
        model.exposure_bias.fill_(bias)
    calibrate(model, history, slates)
    later, true = moments(400, seed + 1_000)
    for head in (0, 1):
        assert error(said_by(model, later), true, head) < WITHIN
    few = slates.take(np.arange(FEWEST_LATER - 1))
    assert [len(part) for part in of_traffic(history, few)] == [len(history)]


def test_slates_whose_labels_are_not_final_calibrate_nothing() -> None:
    slates, _ = moments(300, 0)
    slates = replace(slates, exposed=np.ones(len(slates), np.bool_))
    slates.correction[100:] = -np.inf
    assert [len(part) for part in of_traffic(slates)] == [100]


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_ranker_holds_on_later_traffic_and_its_own_estimate_says_so(kind: str) -> None:
    torch.set_num_threads(1)
    every, _ = moments(6_000, 1)
    sample = sampled(every, 0.9, 0.3, 20, 1)
    ranker = train_ranker(sample, RankerSettings(kind=kind, width=16, experts=2, epochs=2, batch=64, rate=5e-3, dropout=0.0))
    later, _ = moments(3_000, 2)
    said = said_by(ranker, later)
    for head in (0, 1):
        assert error(said, later.labels, head) < WITHIN
    for bins in reliability(ranker, sample):
        assert calibration_error(bins) < 2 * WITHIN, "of the tenth held out, which is small"


@laws
@given(st.lists(st.tuples(st.floats(0.0, 1.0, width=32), st.booleans()), min_size=1, max_size=200))
def test_reliability_by_decile_holds_each_item_once_and_its_error_is_that_of_its_bins(drawn: list[tuple[float, bool]]) -> None:
    found = Traffic()
    for said, came in drawn:
        found.note(np.asarray([[said]], np.float32), np.asarray([[came]]))
    told = found.to_json(("positive",))["positive"]
    assert told["candidates"] == told["queries"] == len(drawn)
    assert sum(size for _, _, size in told["bins"]) == len(drawn)
    assert 1 <= len(told["bins"]) <= 10, "equal probabilities share a bin"
    predicted = [one[0] for one in told["bins"]]
    assert predicted == sorted(predicted)
    gap = sum(size * abs(said - came) for said, came, size in told["bins"]) / len(drawn)
    assert told["ece"] == pytest.approx(gap, abs=1e-5)
    assert told["observed"] == pytest.approx(sum(came for _, came in drawn) / len(drawn), abs=1e-5)


def test_without_moments_there_is_no_reliability() -> None:
    found = Traffic()
    found.note(np.zeros((0, 1), np.float32), np.zeros((0, 1), np.bool_))
    assert found.to_json(("positive",)) == {}
