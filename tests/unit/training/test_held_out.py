"""Queries of history and slates from impression events are held out from one moment on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features.compute import FEATURES
from training.data.slates.examination import FIXED
from training.ranking import choice
from training.ranking.base import Ranker
from training.ranking.choice import trained_ranker
from training.ranking.examples import Examples, Replayed, ShownLists, held_out_from, parts
from training.ranking.fit import train_ranker
from training.ranking.position_bias import Choices
from training.recipe import RankerSettings

PLACES = st.lists(st.integers(0, 400), min_size=1, max_size=300).map(sorted)
SETTINGS = RankerSettings(epochs=1)


def examples(places: list[int], candidates: int = 3) -> Examples:
    shape = len(places), candidates
    rng = np.random.default_rng(0)
    features = rng.normal(size=(*shape, len(FEATURES))).astype(np.float32)
    gains = np.zeros(shape, np.float32)
    gains[:, 0] = 1
    there, correction, exposed = np.ones(shape, np.bool_), np.zeros(shape, np.float32), np.zeros(len(places), np.bool_)
    return Examples(features, gains[..., None].copy(), gains, there, correction, exposed, np.asarray(places, np.int64))


def lists(places: list[int]) -> ShownLists:
    made = examples(places)
    made.exposed[:] = True
    positions = np.tile(np.arange(3, dtype=np.int64), (len(places), 1))
    return ShownLists(made, positions, np.arange(len(places), dtype=np.int64), positions)


@settings(max_examples=200, deadline=None)
@given(PLACES, PLACES)
def test_nothing_at_or_after_the_cut_is_learned_from(history: list[int], shown: list[int]) -> None:
    queries, slates = examples(history), lists(shown)
    cut = held_out_from(queries, slates)
    learn, later = parts(queries, cut)
    before, after = slates.parts(cut)
    assert len(learn) >= 1
    assert (learn.places < cut).all()
    assert (before.examples.places < cut).all()
    assert (after.examples.places >= cut).all()
    assert len(before) + len(after) == len(shown)
    held = int((queries.places >= cut).sum())
    if held >= 50:
        assert (later.places >= cut).all()
    else:
        assert later.places.tolist() == learn.places.tolist(), "too few to calibrate on"
    if len(set(history)) == len(history) >= 60:
        assert held <= 0.2 * len(history) + 1


def test_slates_of_the_newest_history_only_are_still_learned_from() -> None:
    queries = examples(list(range(2_000)))
    assert held_out_from(queries) == 1_800
    assert held_out_from(queries, lists(list(range(1_850, 1_950)))) == 1_940
    assert held_out_from(queries, lists(list(range(1_900, 2_000)))) == 1_950, "50 are left to calibrate on"
    assert held_out_from(queries, lists(list(range(100)))) == 1_600, "no more than a fifth"


def test_slates_whose_labels_are_not_final_enter_the_listwise_loss_only() -> None:
    queries, slates = examples(list(range(60))), lists(list(range(40)))
    slates.examples.correction[::2] = -np.inf
    other = lists(list(range(40)))
    other.examples.correction[::2] = -np.inf
    other.examples.labels[::2] = 1  # gains, of the listwise loss, stay
    first, second = (train_ranker(queries, SETTINGS, shown=given).state_dict() for given in (slates, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    slates.examples.correction[1::2] = -np.inf
    ranker = train_ranker(queries, SETTINGS, shown=slates)
    assert all(bool(torch.isfinite(part).all()) for part in ranker.state_dict().values())
    assert float(ranker.exposure_bias.detach().abs().max()) < 1e-6, "no slate says how much likelier an action is there"
    slates.examples.gains[::2] = 0
    assert any(
        not torch.equal(first[name], part) for name, part in train_ranker(queries, SETTINGS, shown=slates).state_dict().items()
    )


@pytest.mark.parametrize("helps", [True, False])
def test_rankers_are_compared_on_what_neither_learned_from(monkeypatch: pytest.MonkeyPatch, helps: bool) -> None:
    asked: list[NDArray[np.int64]] = []
    users: list[int] = []

    def measured(choices: Choices, logits: NDArray[np.float32]) -> None:
        assert len(logits) == len(choices)
        users.extend(choices.users.tolist())

    def noted(_: Ranker, part: Examples) -> NDArray[np.float64]:
        asked.append(part.places)
        return np.zeros(len(part))

    monkeypatch.setattr(choice, "ndcg_of_each", noted)
    monkeypatch.setattr(choice, "helps", lambda *_: helps)
    monkeypatch.setattr(choice, "measured", measured)
    replayed = Replayed(
        examples(list(range(0, 600, 2))), np.zeros((0, 4, 1), np.float32), ["a"], 0, lists(list(range(150, 590)))
    )
    found = trained_ranker(replayed, 0, replace(SETTINGS), examination=FIXED)
    assert min(int(places.min()) for places in asked) == held_out_from(replayed.examples, replayed.shown)
    assert found.cut == held_out_from(replayed.examples, replayed.shown if helps else None)
    assert found.slates == (440 if helps else 0)
    assert users == (replayed.shown.parts(found.cut)[1].users.tolist() if helps else [])
    assert found.examination is FIXED, "too few for a measurement given the ranker"
