"""Context features: time and request context reach the ranker, equally in serving and replay, and improve it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import POSITIVE, SMALL, corpus
from numpy.typing import NDArray

from models.features.compute import FEATURES
from models.features.context import CONTEXT, context_of
from models.features.kernels.categories import hour_nearness
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.release.serving import ServingModel
from schemas.records import Interaction, Item, Request, Slate
from training.data.slates.logged import LoggedSlate
from training.data.table import EventTable, heads_of, vocabulary_of
from training.ranking.examples import Examples
from training.ranking.fit import train_ranker
from training.recipe import KINDS
from training.release.learned import Learned
from training.replay.replay import replay
from training.replay.world import SimulatedWorker

HOUR, DAY, WEEK = 3_600_000, 86_400_000, 604_800_000
MOMENT = ("day_sin", "day_cos", "week_sin", "week_cos")
SAID = tuple(name for name in CONTEXT.names if name.startswith("context"))
NOTHING = ItemStore(1)
TIMES = st.integers(1, 2**45)
SAYINGS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6)


def of(requests: Sequence[Request], now_ms: int) -> NDArray[np.float32]:
    return context_of(requests, now_ms)


def columns(*names: str) -> list[int]:
    return [CONTEXT.names.index(name) for name in names]


@given(TIMES, st.integers(0, 500))
def test_the_moment_is_the_time_of_day_and_of_the_week(now_ms: int, weeks: int) -> None:
    row = of([Request("r", "u")], now_ms)[0]
    then = datetime.fromtimestamp(now_ms / 1000, UTC)
    day = (then.hour + (then.minute + (then.second + then.microsecond / 1e6) / 60) / 60) / 24
    angle = 2 * np.pi * day
    assert row[columns("day_sin", "day_cos")] == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-4)
    assert np.array_equal(row, of([Request("r", "u")], now_ms + weeks * WEEK)[0])
    tomorrow = of([Request("r", "u")], now_ms + DAY)[0]
    assert np.array_equal(row[columns("day_sin", "day_cos")], tomorrow[columns("day_sin", "day_cos")])
    assert not np.array_equal(row[columns("week_sin", "week_cos")], tomorrow[columns("week_sin", "week_cos")])


def test_before_the_first_event_there_is_no_moment() -> None:
    assert not of([Request("r", "u")], 0).any()


@given(TIMES, st.lists(SAYINGS, min_size=1, max_size=4))
def test_a_request_says_the_same_in_any_batch_and_any_order(now_ms: int, sayings: list[dict[str, str]]) -> None:
    requests = [Request(f"r{n}", "u", context=said) for n, said in enumerate(sayings)]
    together = of(requests, now_ms)
    for row, request in zip(together, requests, strict=True):
        turned = replace(request, context=dict(reversed([*request.context.items()])))
        assert np.array_equal(of([turned], now_ms)[0], row)
        parts = of([replace(request, context={name: value}) for name, value in request.context.items()], now_ms)
        assert np.array_equal(parts[:, columns(*SAID)].sum(axis=0), row[columns(*SAID)]), "entry by entry"
        assert (np.abs(parts[:, columns(*SAID)]).sum(axis=1) == 1).all()


def test_what_was_asked_for_shows() -> None:
    requests = [Request("a", "u"), Request("b", "u", categories=("x",)), Request("c", "u", candidates=())]
    assert of(requests, 1)[:, columns("asked_categories", "asked_candidates")].tolist() == [[0, 0], [1, 0], [0, 1]]


@given(TIMES, TIMES)
def test_nearness_in_the_time_of_day_ends_after_six_hours(time_ms: int, now_ms: int) -> None:
    near = hour_nearness(time_ms, now_ms)
    apart = abs((time_ms - now_ms + DAY // 2) % DAY - DAY // 2) / HOUR
    assert near == pytest.approx(max(np.cos(np.pi * apart / 12), 0.0), abs=1e-9)


# ---- in the pipeline


def serving(learned: Learned, items: Sequence[Item]) -> tuple[SimulatedWorker, ServingModel, CandidatePipeline]:
    slot, model = ModelSlot(), ServingModel(learned.release())
    slot.swap(model)
    world = SimulatedWorker(items, slot)
    return world, model, CandidatePipeline(world.items, slot=slot)


def answer(world: SimulatedWorker, pipeline: CandidatePipeline, request: Request) -> Slate:
    user = world.record(request.user_id)
    world.know(user)
    return pipeline.run([request], [user], [None])[0]


def table_of(events: Sequence[Interaction], items: Sequence[Item]) -> EventTable:
    every = corpus()[1]
    vocabulary = vocabulary_of(every, POSITIVE)
    return EventTable.of(events, items, vocabulary, heads_of(every, vocabulary, POSITIVE))


@settings(max_examples=6, deadline=None)
@given(st.integers(300, 899), st.integers(1, 400))
def test_features_are_the_same_when_serving_and_in_replay(learned: Learned, n: int, chunk: int) -> None:
    items, events = corpus()
    met = replace(events[n], user_id="u0", item_id="i39")
    events = [event for event in events[:n] if (event.user_id, event.item_id) != ("u0", "i39")] + [met]
    n = len(events) - 1
    world, model, pipeline = serving(learned, items)
    examples = replay(SimulatedWorker(items), model, events, table_of(events, items), n, 8, 0).examples
    assert len(examples) == 1
    for start in range(0, n, chunk):
        world.apply(events[start : min(start + chunk, n)])
    slate = answer(world, pipeline, Request("r", "u0", k=500))
    served = np.asarray([item.features for item in slate.items])
    assert np.array_equal(np.unique(served, axis=0), np.unique(examples.features[0][examples.valid[0]], axis=0))
    assert served[:, [FEATURES.index(name) for name in MOMENT]].all(axis=0).any()
    assert not served[:, [FEATURES.index(name) for name in SAID]].any(), "history says nothing of requests"


@settings(max_examples=20, deadline=None)
@given(SAYINGS)
def test_a_context_that_training_never_saw_changes_no_slate(learned: Learned, said: dict[str, str]) -> None:
    items, events = corpus()
    world, _, pipeline = serving(learned, items)
    world.apply(events[:400])
    plain = answer(world, pipeline, Request("r", "u1", k=10))
    other = answer(world, pipeline, Request("r", "u1", k=10, context=said))
    assert [item.item_id for item in other.items] == [item.item_id for item in plain.items]
    assert [item.score for item in other.items] == pytest.approx([item.score for item in plain.items], abs=1e-6)


def test_what_a_person_does_at_this_time_of_day_shows(learned: Learned) -> None:
    """Red is viewed by day and green by night: each exceeds its overall share of events at its time, blue never does."""
    items, _ = corpus()
    world, _, pipeline = serving(learned, items)
    days = [Interaction(f"d{day}", "u", f"i{3 * day}", day * DAY + 9 * HOUR, "view") for day in range(12)]
    nights = [Interaction(f"n{day}", "u", f"i{3 * day + 1}", day * DAY + 21 * HOUR, "view") for day in range(12)]
    world.apply(sorted([*days, *nights], key=lambda event: event.event_time))
    shares = {}
    for hour in (9, 15, 21):
        world.apply([Interaction(f"now{hour}", "other", "i2", 20 * DAY + hour * HOUR, "view")])
        slate = answer(world, pipeline, Request("r", "u", k=3, candidates=("i36", "i37", "i38")))
        place = FEATURES.index("category_hour")
        shares[hour] = {items[int(item.item_id[1:])].categories[0]: item.features[place] for item in slate.items}
    assert shares[9]["red"] > 0.2 > -0.2 > shares[9]["green"]
    assert shares[21]["green"] > 0.2 > -0.2 > shares[21]["red"]
    assert all(share["blue"] == 0 for share in shares.values())
    assert shares[15] == pytest.approx({"red": 0, "green": 0, "blue": 0}, abs=1e-6)


# ---- prices


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.sampled_from(["view", "like"])), max_size=12), st.integers(0, 99))
def test_a_price_is_held_against_what_the_persons_newest_items_cost(
    learned: Learned, met: list[tuple[int, str]], seed: int
) -> None:
    """The newest liked items count, if there are any; without prices on both sides the feature is neutral."""
    rng = np.random.default_rng(seed)
    prices = [None if rng.random() < 0.3 else float(rng.integers(0, 500)) for _ in range(40)]
    items = [replace(item, price=price) for item, price in zip(corpus()[0], prices, strict=True)]
    world, _, pipeline = serving(learned, items)
    world.apply([Interaction(f"e{n}", "u", f"i{item}", 1_000 + n, action) for n, (item, action) in enumerate(met)])
    liked = [item for item, action in met if action == "like"]
    usual = [np.log1p(price) for item in liked or [item for item, _ in met] if (price := prices[item]) is not None]
    slate = answer(world, pipeline, Request("r", "u", k=40, candidates=tuple(f"i{n}" for n in range(40))))
    above, far = FEATURES.index("price_above"), FEATURES.index("price_far")
    for item in slate.items:
        price = prices[int(item.item_id[1:])]
        expected = 0.0 if price is None or not usual else np.log1p(price) - np.mean(usual)
        assert item.features[above] == pytest.approx(expected, abs=1e-4)
        assert item.features[far] == pytest.approx(abs(expected), abs=1e-4)


# ---- in training


def shown(learned: Learned, said: bool) -> Examples:
    """Logged slates: expensive items are liked on a television (`said`) or in the first half of the day, cheap ones else."""
    items, events = corpus()
    items = [replace(item, price=float(1 + 99 * (n // 3 % 2))) for n, item in enumerate(items)]
    dear = {item.item_id for item in items if item.price == 100}
    rng = np.random.default_rng(5)
    world, model, pipeline = serving(learned, items)
    world.apply(events[:300])
    slates = []
    for place in range(300, 900):
        world.apply(events[place - 1 : place] if place > 300 else [])
        on_television, page = bool(rng.random() < 0.5), f"{rng.integers(3)}"
        context: Mapping[str, str] = {"device": "tv" if on_television else "phone", "page": page} if said else {}
        slate = answer(world, pipeline, Request(f"r{place}", f"u{rng.integers(30)}", k=8, context=context))
        for_dear = on_television if said else world.items.stream_time_ms % DAY < DAY // 2
        names = [item.item_id for item in slate.items]
        liked = np.asarray([(name in dear) == for_dear for name in names]) ^ (rng.random(len(names)) < 0.1)
        labels = np.repeat(liked.astype(np.float32)[:, None], len(learned.manifest.heads), axis=1)
        features = np.asarray([item.features for item in slate.items], np.float32)
        slates.append(LoggedSlate(place, slate.user_id, names, features, labels, np.ones(len(names), np.float32)))
    examples = replay(SimulatedWorker(items), model, events, table_of(events, items), 300, 0, 0, None, slates).examples
    parts = {name: getattr(examples, name)[:, :8] for name in Examples.__slots__ if name not in {"exposed", "places"}}
    return replace(examples, **parts)


def first_liked(examples: Examples, kind: str) -> float:
    """Train a ranker on all but the last 150 slates; returns the share of these whose first item is liked."""
    torch.set_num_threads(1)
    cut = len(examples) - 150
    ranker = train_ranker(examples.take(slice(0, cut)), replace(SMALL.ranker, kind=kind, epochs=12, rate=1e-2))
    held = examples.take(slice(cut, None))
    with torch.inference_mode():
        heads = ranker(torch.from_numpy(held.features))[..., 0].numpy()
    best = np.where(held.valid, heads, -np.inf).argmax(axis=1)
    return float(held.labels[np.arange(len(held)), best, 0].mean())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", [True, False], ids=["request", "time of day"])
def test_a_ranker_learns_what_is_liked_in_which_context(learned: Learned, said: bool, kind: str) -> None:
    examples = shown(learned, said)
    blind = replace(examples, features=examples.features.copy())
    blind.features[..., [FEATURES.index(name) for name in (*CONTEXT.names, "category_hour")]] = 0
    seeing, unseeing = first_liked(examples, kind), first_liked(blind, kind)
    assert seeing > unseeing + 0.2
