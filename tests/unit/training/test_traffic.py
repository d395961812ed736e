"""Probabilities are compared with outcomes on all traffic: at first interactions and on slates, liked or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from learning_corpus import POSITIVE, corpus

from models.features.compute import FEATURES
from models.pipeline.slot import ModelSlot
from models.release.serving import ServingModel
from models.rules import SHOWN, PositiveRule
from schemas.records import Interaction
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.slates.shown import final_slates, shown_slates
from training.evaluation.calibration import of_logged
from training.evaluation.evaluate import EvaluationPlan, evaluate
from training.evaluation.measurement import Catalogue, Measurement
from training.evaluation.report import html_report
from training.evaluation.shown_lists import shown_test
from training.release.learned import Learned
from training.replay.outcomes import Outcomes

RULE = PositiveRule(POSITIVE)
DAY_MS = 86_400_000


def told(per_slate: int = 5) -> list[Interaction]:
    """The corpus; before each event a slate with its item is shown, and after every third another one without any action."""
    rng, out = np.random.default_rng(0), []
    for n, event in enumerate(corpus()[1]):
        slates = [(f"r{n}", event.event_time - 1_000)] + [(f"q{n}", event.event_time + 1_000)] * (n % 3 == 0)
        for request, time in slates:
            others = [f"i{k}" for k in rng.choice(40, per_slate, replace=False) if f"i{k}" != event.item_id][: per_slate - 1]
            names = [event.item_id, *others] if request.startswith("r") else others
            out += [
                Interaction(f"{request}-{place}", event.user_id, name, time, SHOWN, None, None, request, place)
                for place, name in enumerate(names)
            ]
        out.append(replace(event, request_id=f"r{n}"))
    return sorted(out, key=lambda event: event.event_time)


@pytest.fixture(scope="module")
def split() -> tuple[EventFrame, EventFrame]:
    return EventFrame.of(told()).split(SHOWN)


def test_slates_with_and_without_likes_are_taken_if_their_windows_are_over(split: tuple[EventFrame, EventFrame]) -> None:
    history, shown = split
    heads, cut = (("positive", 1.0), ("view", 0.0)), 600
    every = final_slates(shown, history, heads, RULE, {}, cut, 10_000)
    assert all(slate.place >= cut for slate in every)
    end = history[-1].event_time
    assert max(slate.shown_ms for slate in every) <= end - DAY_MS
    liked = [bool(slate.labels[:, 0].any()) for slate in every]
    assert set(liked) == {False, True}
    some = final_slates(shown, history, heads, RULE, {}, cut, 20)
    assert len(some) == 20
    assert [slate.shown_ms for slate in some] == sorted(slate.shown_ms for slate in some)
    assert {slate.shown_ms for slate in some} <= {slate.shown_ms for slate in every}
    assert some[-1].shown_ms - some[0].shown_ms == every[-1].shown_ms - every[0].shown_ms, "evenly spread over all"
    assert final_slates(shown, history, heads, RULE, {}, len(history) - 1, 20) == []


def test_slates_to_learn_from_stand_for_all_of_their_kind(split: tuple[EventFrame, EventFrame]) -> None:
    history, shown = split
    heads = (("positive", 1.0),)
    after = history[300].event_time
    every = shown_slates(shown, history, heads, RULE, {}, after, 10_000)
    some = shown_slates(shown, history, heads, RULE, {}, after, 100)
    assert {slate.traffic for slate in every} == {1.0}
    for liked in (False, True):
        mine = [slate for slate in some if slate.labels[:, 0].any() == liked and slate.weight.any()]
        all_of_them = [slate for slate in every if slate.labels[:, 0].any() == liked and slate.weight.any()]
        assert sum(slate.traffic for slate in mine) == pytest.approx(len(all_of_them))


def test_moments_and_slates_of_all_traffic_are_measured_and_reported(
    learned: Learned, split: tuple[EventFrame, EventFrame]
) -> None:
    items, (history, shown) = corpus()[0], split
    whole = Corpus("glass", items, history, POSITIVE, shown=shown)
    model, slot = ServingModel(learned.release(), 1), ModelSlot()
    slot.swap(model)
    heads = tuple((name, 1.0) for name in model.heads)
    test = shown_test(whole, 0.8, 10, None, heads, model.windows_ms, 30)
    assert test is not None
    assert len(test.traffic) == 30
    plan = EvaluationPlan(0.8, 15, first=True, shown=True, traffic=40)
    figures = evaluate(items, history, RULE, plan, lambda done, of: None, slot, shown=test)
    cut, outcomes = int(len(history) * 0.8), Outcomes(history, RULE, model.heads, model.windows_ms)
    first = [n for n, event in enumerate(history) if n >= cut and outcomes.begins(event.user_id, n)]
    assert 0 < len(figures.traffic) <= min(40, len(first))
    assert 0 < len(figures.slates) <= 30
    assert len(figures.asked) <= 15, "moments of traffic are no queries"
    alone = evaluate(items, history, RULE, replace(plan, traffic=0), lambda done, of: None, slot)
    assert alone.ranks == figures.ranks, "and change none of their ranks"
    assert not len(alone.traffic)
    by_hand = {(slate.user_id, slate.shown_ms): slate.labels > 0 for slate in test.traffic}
    assert sum(part.sum() for part in figures.slates.came) <= sum(part.sum() for part in by_hand.values())
    for probabilities in (*figures.slates.heads, *figures.traffic.heads):
        assert ((probabilities >= 0) & (probabilities <= 1)).all()
    catalogue = Catalogue([item.item_id for item in items], np.ones(len(items), np.int64), np.ones((len(items), 2), np.float32))
    made = Measurement.of(figures, catalogue, "mine", "glass", "r", {})
    for where, part in (("traffic", figures.traffic), ("slates", figures.slates)):
        found = made.calibration["positive"][where]
        assert found["queries"] == len(part)
        assert sum(size for _, _, size in found["bins"]) == found["candidates"] == sum(map(len, part.heads))
    page = html_report([made])
    assert "on slates" in page
    assert "on all traffic" in page
    assert "By decile" in page


def test_without_a_release_or_logged_slates_there_is_nothing_to_compare(learned: Learned) -> None:
    items, events = corpus()
    figures = evaluate(items, events, RULE, EvaluationPlan(0.8, 5, traffic=40))
    assert not len(figures.traffic)
    model = ServingModel(learned.release(), 1)
    bare = Corpus("glass", items, EventFrame.of(events), POSITIVE)
    assert not len(of_logged(bare, model, 0, 1))
    nothing = replace(bare, logged=lambda *_: pl.DataFrame())
    assert not len(of_logged(nothing, model, 0, 1))
    one = {
        "user_id": ["u1", "u1"],
        "request_id": ["r", "r"],
        "item_id": ["i1", "i2"],
        "event_time": [events[0].event_time] * 2,
        "as_of": [{"partition": 0, "offset": 0}] * 2,
        "labels": [[{"key": "positive", "value": 1.0}], []],
        "weight": [1.0, 1.0],
        "features": [[0.5] * len(FEATURES)] * 2,
        "feature_spec": [learned.manifest.feature_spec] * 2,
    }
    logged = replace(bare, logged=lambda *_: pl.DataFrame(one))
    found = of_logged(logged, model, 0, 1)
    assert len(found) == 1
    assert found.came[0][:, 0].tolist() == [True, False]
    assert found.heads[0] == pytest.approx(model.rank(np.full((2, len(FEATURES)), 0.5, np.float32)))
