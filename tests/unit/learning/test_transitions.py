"""Transitions equal a plain count, reach the slate of a session, and are kept by a training only where they help."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import SMALL
from resealed import refused, reseal

from models.features.compute import FEATURES, SPEC
from models.pipeline.kernels import signals
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.sources import SOURCES
from models.release.release import FORMAT, WITH_TRANSITIONS, Release
from models.release.serving import ServingModel
from models.release.transitions import SESSION_GAP_MS, Transitions
from schemas.records import Interaction, Item, Request
from training.data.corpus import Corpus
from training.data.table import EventTable, vocabulary_of
from training.learn import learn
from training.ranking.examples import Examples, Replayed, ShownLists
from training.ranking.light import fit_light, gain_of
from training.release.learned import Learned
from training.replay.world import SimulatedWorker
from training.retrieval.transitions import (
    COUNTED_DECAY,
    DECAYS,
    LAGS,
    OTHER,
    SHRINKAGE,
    chosen_decay,
    lags_of,
    transitions,
)
from training.retrieval.weights import Champion
from training.update import update

CLICKED = "action == 'click'"
N_ITEMS = 5
DRAWN = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, N_ITEMS - 1), st.integers(0, 3 * SESSION_GAP_MS), st.sampled_from(["click", "view"])
    ),
    max_size=25,
)


def table_of(events: list[Interaction], n_items: int) -> EventTable:
    return EventTable.of(events, [Item(f"i{n}") for n in range(n_items)], vocabulary_of(events, CLICKED), (("positive", 1.0),))


def in_order(drawn: list[tuple[int, int, int, str]]) -> list[Interaction]:
    return [
        Interaction(f"e{n}", f"u{u}", f"i{i}", t, action)
        for n, (u, i, t, action) in enumerate(sorted(drawn, key=lambda d: d[2]))
    ]


def sessions_of(events: list[Interaction]) -> list[list[Interaction]]:
    found: list[list[Interaction]] = []
    for user in sorted({event.user_id for event in events}):
        last = None
        for event in (event for event in events if event.user_id == user):
            if last is None or event.event_time - last > SESSION_GAP_MS:
                found.append([])
            found[-1].append(event)
            last = event.event_time
    return found


@settings(max_examples=60, deadline=None)
@given(DRAWN, st.integers(1, N_ITEMS))
def test_weights_equal_a_plain_count(drawn: list[tuple[int, int, int, str]], followers: int) -> None:
    events = in_order(drawn)
    counts = np.zeros((N_ITEMS, N_ITEMS))
    for session in sessions_of(events):
        for n, event in enumerate(session):
            for lag, before in enumerate(reversed(session[max(0, n - LAGS) : n])):
                if before.item_id != event.item_id:
                    weight = COUNTED_DECAY**lag * (1 if event.action == "click" else OTHER)
                    counts[int(before.item_id[1:]), int(event.item_id[1:])] += weight
    expected = counts / (counts.sum(axis=1, keepdims=True) + SHRINKAGE)
    found = transitions(table_of(events, N_ITEMS), N_ITEMS, followers, lags_of(0.5))
    assert found.index.shape == found.weight.shape
    assert found.index.shape[1] <= followers
    for item in range(N_ITEMS):
        there = found.index[item] >= 0
        kept = found.index[item][there]
        assert there[: len(kept)].all(), "the followers come first"
        assert found.weight[item][there] == pytest.approx(expected[item][kept], rel=1e-5)
        assert found.weight[item][there] == pytest.approx(np.sort(expected[item])[::-1][: len(kept)], rel=1e-5)
        assert len(kept) == min(followers, int((expected[item] > 0).sum()))
        assert not found.weight[item][~there].any()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_signal_is_the_sum_over_the_newest_events_of_the_session(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n, lags = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    index = rng.integers(-1, n, (n, 3)).astype(np.int32)
    index = np.where(np.cumsum(index < 0, axis=1) > 0, np.int32(-1), index)
    weight, weights_of_lags = rng.random((n, 3)).astype(np.float32), rng.random(lags).astype(np.float32)
    numbers = rng.permutation(n).astype(np.int32)
    row_of_number = np.argsort(numbers).astype(np.int32)
    recent = rng.integers(-1, n, (3, 6)).astype(np.int32)
    times = -np.cumsum(rng.integers(0, 4, (3, 6)), axis=1).astype(np.int64)
    sums, marks = np.zeros(n, np.float32), np.zeros(n, np.int32)
    starts, rows, scores = signals.transitions(
        recent, times, weights_of_lags, 2, numbers, index, weight, row_of_number, n, sums, marks, 1
    )
    assert not sums.any(), "work arrays are left as they were"
    for q in range(3):
        expected = np.zeros(n)
        for place in range(lags):
            if place and times[q, place - 1] - times[q, place] > 2:
                break
            if recent[q, place] >= 0:
                number = numbers[recent[q, place]]
                for other, value in zip(index[number], weight[number], strict=True):
                    if other >= 0:
                        expected[row_of_number[other]] += value * weights_of_lags[place]
        mine = slice(starts[q], starts[q + 1])
        found = np.zeros(n)
        found[rows[mine]] = scores[mine]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert (np.diff(rows[mine]) > 0).all()


def test_a_fast_decay_is_chosen_where_only_the_last_event_counts() -> None:
    """Items lead to their successor; sessions jump at random now and then."""
    rng, events, n = np.random.default_rng(0), [], 30
    for session in range(400):
        item = int(rng.integers(n))
        for place in range(6):
            events.append(Interaction(f"{session}-{place}", f"u{session}", f"i{item}", 10_000 * session + place, "click"))
            item = (7 * item + 1) % n if rng.random() < 0.8 else int(rng.integers(n))
    table = table_of(events, n)
    found = transitions(table, n, n, lags_of(1.0))
    assert chosen_decay(found, table, len(table) // 2, 0) == DECAYS[0]
    assert chosen_decay(found, table, len(table), 0) == DECAYS[0], "without anything to judge by"


# ---- the light score


def scores_of(queries: int, informative: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(1)
    scores = rng.random((queries, 20, 3)).astype(np.float32)
    if informative:
        scores[:, 0, 2] = np.maximum(scores[:, 0, 2], 0.8)
    return scores


def test_a_source_has_a_gain_only_if_it_tells_liked_items_from_others() -> None:
    gain, error = gain_of(2, scores_of(600, informative=True))
    assert gain > 5 * error > 0
    gain, error = gain_of(2, scores_of(600, informative=False))
    assert gain < 2 * error
    assert gain_of(2, scores_of(150, informative=True)) == (0.0, np.inf), "too few to judge by"


def test_replayed_queries_without_transitions_hold_what_the_other_sources_brought() -> None:
    by = {name: n for n, name in enumerate(FEATURES) if name.startswith("by_")}
    features = np.zeros((2, 3, len(FEATURES)), np.float32)
    features[:, 0, by["by_transitions"]] = 1  # alone
    features[:, 1, [by["by_transitions"], by["by_ease"]]] = 1
    features[:, 2, by["by_popular"]] = 1
    ones = np.ones((2, 3), np.float32)
    exposed = np.asarray([False, True])
    examples = Examples(features, ones[..., None].copy(), ones.copy(), ones > 0, ones.copy(), exposed)
    names = [source.name for source in SOURCES]
    light = np.ones((2, 4, len(names)), np.float32)
    none = np.zeros((0, 3), np.int64)
    nothing = ShownLists(examples.take(slice(0, 0)), none, none[:, 0], none)
    left = Replayed(examples, light, names, 1, nothing).without_transitions()
    assert not left.examples.features[..., FEATURES.index("by_transitions")].any()
    assert left.examples.features[..., by["by_ease"]].any()
    assert left.examples.valid.tolist() == [[False, True, True], [True, True, True]], "slates were shown as they are"
    assert left.examples.gains.tolist() == left.examples.labels[..., 0].tolist() == [[0, 1, 1], [1, 1, 1]]
    column = names.index("transitions")
    assert not left.light_scores[..., column].any()
    assert (np.delete(left.light_scores, column, axis=-1) == 1).all()
    assert light.all(), "the given scores are unchanged"
    assert fit_light(light, names, {"popular": 1.0}) == {"popular": 1.0}


# ---- a whole training


def click_corpus(*, sequential: bool, sessions: int = 420, n: int = 40) -> Corpus:
    """Sessions of five clicks; with `sequential` most clicks follow from the one before."""
    rng, events = np.random.default_rng(0), []
    for session in range(sessions):
        item = int(rng.integers(n))
        for place in range(5):
            time_ms = 1_000_000_000 + 600_000 * session + 1_000 * place
            events.append(Interaction(f"{session}-{place}", f"u{session}", f"i{item}", time_ms, "click"))
            item = (7 * item + 3) % n if sequential and rng.random() < 0.8 else int(rng.integers(n))
    return Corpus("clicks", [Item(f"i{i}") for i in range(n)], events, CLICKED)


def trained(cache: Path, *, sequential: bool) -> Learned:
    torch.set_num_threads(1)
    towers = replace(SMALL.towers, epochs=2)
    return learn(click_corpus(sequential=sequential), cache, replace(SMALL, towers=towers, queries=500))


@pytest.fixture(scope="module")
def sequential(vectors: Path) -> Learned:
    return trained(vectors, sequential=True)


def test_a_training_keeps_transitions_of_sessions_and_the_slate_begins_with_what_follows(sequential: Learned) -> None:
    release = sequential.release()
    assert sequential.measured["transitions"]["kept"]
    assert release.manifest.format == WITH_TRANSITIONS
    assert release.manifest.feature_spec == SPEC
    assert release.manifest.light["transitions"] > 0
    world = SimulatedWorker([Item(f"i{n}") for n in range(40)])
    world.slot.swap(ServingModel(release))
    world.apply([Interaction("e", "somebody", "i5", 9_000_000_000, "click")])
    pipeline = CandidatePipeline(world.items, slot=world.slot)
    slate = pipeline.run([Request("r", "somebody", k=3)], [world.record("somebody")], [None])[0]
    assert slate.items[0].item_id == "i38", "7 times 5 and 3"
    assert "transitions" in slate.items[0].sources
    assert len(slate.items[0].features) == len(FEATURES)


def test_transitions_survive_the_folder_and_bad_ones_are_refused(sequential: Learned, tmp_path: Path) -> None:
    folder = sequential.write(tmp_path / "releases", {})
    read, made = Release.open(folder).transitions, sequential.release().transitions
    assert read is not None
    assert made is not None
    for name, array in made.arrays().items():
        assert np.array_equal(read.arrays()[name], array)
    n = len(made.index)
    broken: list[tuple[str, Any, str]] = [
        ("transition_index.npy", np.full_like(made.index, n), "shapes"),
        ("transition_index.npy", made.index[:-1], "shapes"),
        ("transition_weight.npy", made.weight[:, :-1], "shapes"),
        ("transition_weight.npy", np.full_like(made.weight, np.nan), "not_finite"),
        ("transition_weight.npy", -made.weight, "not_finite"),
        ("transition_lags.npy", np.zeros(0, np.float32), "shapes"),
        ("transition_lags.npy", np.ones(31, np.float32), "shapes"),
        ("transition_lags.npy", made.lags[:, None], "shapes"),
    ]
    for number, (name, array, code) in enumerate(broken):
        copy = tmp_path / str(number) / folder.name
        shutil.copytree(folder, copy)
        np.save(copy / name, array)
        assert refused(reseal(copy)) == code
    copy = tmp_path / "unlisted" / folder.name
    shutil.copytree(folder, copy)
    assert refused(reseal(copy, format=FORMAT)) == "wrong_files"


def test_an_update_counts_transitions_again(sequential: Learned, vectors: Path, tmp_path: Path) -> None:
    folder, old = sequential.write(tmp_path / "releases", {}), click_corpus(sequential=True)
    after_ms = old.events[-1].event_time
    new = [
        Interaction(f"new{n}-{place}", f"new{n}", f"i{item}", after_ms + 600_000 * (n + 1) + place, "click")
        for n in range(60)
        for place, item in enumerate((0, 39))
    ]
    made = update(Champion.open(folder), old.items, [*old.events, *new], vectors, SMALL)
    release, before = made.release(), sequential.release().transitions
    assert release.manifest.format == WITH_TRANSITIONS
    assert release.transitions is not None
    assert before is not None
    assert np.array_equal(release.transitions.lags, before.lags)
    assert release.transitions.index[0, 0] == 39, "which now follows most"
    assert before.index[0, 0] == 3
    ServingModel(release)


def test_a_training_drops_transitions_that_do_not_help_and_the_release_is_as_if_there_were_none(vectors: Path) -> None:
    made = trained(vectors, sequential=False)
    assert made.measured["transitions"]["kept"] is False
    assert made.manifest.format == FORMAT
    assert "transitions" not in made.manifest.light
    release = made.release()
    assert release.transitions is None
    model = ServingModel(release)
    features = np.zeros((2, len(FEATURES)), np.float32)
    others = features.copy()
    others[:, [FEATURES.index(name) for name in ("by_transitions", "transition", "transition_share")]] = 1.0
    assert np.array_equal(model.rank(features), model.rank(others)), "it does not read what it never saw"


def test_cold_items_neither_lead_anywhere_nor_follow() -> None:
    from training.retrieval.simulated_cold import _without_cold

    index = np.asarray([[1, 2], [2, -1], [0, 1]], np.int32)
    found = _without_cold(Transitions(index, np.ones((3, 2), np.float32), lags_of(0.5)), np.asarray([True, True, False]))
    assert found.index.tolist() == [[1, 2], [2, -1], [-1, -1]]
    assert found.weight.tolist() == [[1, 0], [0, 0], [0, 0]]
