"""Laws of training data and of trained models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import POSITIVE, SMALL, corpus, small_release
from numpy.typing import NDArray
from plain_history import history_inputs, liked_history
from reference import records_of

from models.features.compute import FEATURES
from models.items.store import ItemStore
from models.pipeline.batch import Queries
from models.pipeline.ragged import Scored
from models.pipeline.ties import Ties
from models.release.sequences import EVENT_WIDTH, LENGTH
from models.release.serving import ServingModel
from models.state.users import Users
from schemas.errors import BadDataset
from schemas.records import Interaction, Item, Request
from training.data.corpus import Corpus
from training.data.table import ATTRIBUTION_MS, EventTable, heads_of, vocabulary_of
from training.evaluation.evaluate import Figures
from training.learn import learn
from training.ranking.base import CONSTANT
from training.ranking.examples import Replayed
from training.ranking.kinds import make_ranker
from training.recipe import RankerSettings, TowerSettings
from training.release.export import to_onnx
from training.release.gate import judge
from training.release.learned import Learned
from training.replay.replay import replay
from training.replay.world import SimulatedWorker
from training.retrieval.ease import ease
from training.retrieval.fit_towers import event_columns
from training.retrieval.towers import UserTower

few = settings(max_examples=40, deadline=None)


# ---- signals


@few
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 19), st.floats(0, 5, width=32)), max_size=20, unique_by=lambda pair: pair[0]),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 30),
)
def test_sparse_scores_say_what_dense_vectors_say(queries: list[list[tuple[int, float]]], most: int) -> None:
    pairs = [(q, row, score) for q, mine in enumerate(queries) for row, score in mine]
    query_row, rows = np.asarray([p[0] for p in pairs], np.int32), np.asarray([p[1] for p in pairs], np.int32)
    scored = Scored.of_pairs(len(queries), query_row, rows, np.asarray([p[2] for p in pairs], np.float32))
    dense = np.zeros((len(queries), 20), np.float32)
    dense[query_row, rows] = [p[2] for p in pairs]
    every = np.arange(20, dtype=np.int32)
    best = scored.best(most, Ties(np.arange(20, dtype=np.uint64), np.arange(len(queries), dtype=np.uint64)))
    assert np.array_equal(scored.query_row, np.sort(query_row))
    assert scored.largest().tolist() == dense.max(axis=1).tolist()
    for q in range(len(queries)):
        assert scored.at(np.full(20, q, np.int32), every).tolist() == dense[q].tolist()
        found, values = best.of_query(q)
        assert sorted(values.tolist(), reverse=True) == sorted(dense[q][dense[q] > 0].tolist(), reverse=True)[:most]
        assert dense[q][found].tolist() == values.tolist()


# ---- training data

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(0, 4), st.integers(0, 2 * ATTRIBUTION_MS), st.sampled_from(["view", "like", "buy"])
    ),
    min_size=1,
    max_size=30,
)


@few
@given(EVENTS)
def test_labels_equal_a_plain_recomputation(drawn: list[tuple[int, int, int, str]]) -> None:
    events = [
        Interaction(f"e{n}", f"u{u}", f"i{i}", t, action)
        for n, (u, i, t, action) in enumerate(sorted(drawn, key=lambda d: d[2]))
    ]
    items = [Item(f"i{n}") for n in range(5)]
    vocabulary = vocabulary_of(events, POSITIVE)
    heads = (("positive", 1.0), ("view", 0.1))
    table = EventTable.of(events, items, vocabulary, heads)
    for n, event in enumerate(events):
        before = [e for e in events[:n] if (e.user_id, e.item_id) == (event.user_id, event.item_id)]
        assert table.first[n] == (not before)
        if table.first[n]:
            after = [
                e
                for e in events[n:]
                if (e.user_id, e.item_id) == (event.user_id, event.item_id)
                and e.event_time - event.event_time <= ATTRIBUTION_MS
            ]
            slot_of_view = vocabulary.slots(["view"])[0]
            assert table.labels[n, 0] == any(e.action == "like" for e in after)
            assert table.labels[n, 1] == any(vocabulary.slots([e.action])[0] == slot_of_view for e in after)


def test_what_is_never_liked_raises_no_score() -> None:
    events = [
        Interaction(f"e{n}", "u", "i", n, action, value)
        for n, (action, value) in enumerate([("rate", 5.0), ("rate", 1.0), ("skip", None), ("like", None)] * 3)
    ]
    rule = "(action == 'rate' and value >= 4) or action == 'like'"
    heads = dict(heads_of(events, vocabulary_of(events, rule), rule))
    assert heads == {"positive": 1.0, "rate": 0.1, "like": 0.1, "skip": 0.0}


def test_training_and_serving_read_the_same_history() -> None:
    """The towers' training inputs, event by event, equal those that a worker derives from the user's record."""
    items, events = corpus(3)
    vocabulary = vocabulary_of(events, POSITIVE)
    table = EventTable.of(events, items, vocabulary, heads_of(events, vocabulary, POSITIVE))
    inputs = event_columns(table)
    records = records_of(events, ItemStore(1))
    for user, record in records.items():
        mine = [n for n, event in enumerate(events) if event.user_id == user][-LENGTH:]
        served = history_inputs(record, vocabulary, liked_history(vocabulary, record))
        assert served == pytest.approx(inputs[mine], abs=1e-6)


def test_too_little_to_learn_from_is_said(vectors: Path) -> None:
    items, events = corpus()
    with pytest.raises(BadDataset, match="too little"):
        learn(Corpus("glass", items, events[:50], POSITIVE), vectors, SMALL)
    with pytest.raises(BadDataset, match=r"none of the 900 events is liked .* actions are view \(\d+\), like"):
        learn(Corpus("glass", items, events, "action == 'never'"), vectors, SMALL)


# ---- replay


def replayed(learned: Learned, events: list[Interaction]) -> np.ndarray:
    items, _ = corpus()
    vocabulary = vocabulary_of(corpus()[1], POSITIVE)
    table = EventTable.of(events, items, vocabulary, heads_of(corpus()[1], vocabulary, POSITIVE))
    model = ServingModel(learned.release())
    return replay(SimulatedWorker(items), model, events, table, 600, 10_000, 0).examples.features


def test_a_replayed_feature_never_sees_its_own_event_or_a_later_one(learned: Learned) -> None:
    """Other events after some moment change no feature gathered before it. Kept candidates are compared as sets."""
    _, events = corpus()
    n = 700
    altered = events[:n] + [replace(event, item_id="i0", action="view", value=5.0) for event in events[n:]]
    whole, changed = replayed(learned, events), replayed(learned, altered)
    pairs = {(e.user_id, e.item_id) for e in events[:600]}
    first = [e for e in events[600:n] if (e.user_id, e.item_id) not in pairs and not pairs.add((e.user_id, e.item_id))]  # type: ignore[func-returns-value]
    assert len(first) > 20
    for a, b in zip(whole[: len(first)], changed[: len(first)], strict=True):
        assert np.array_equal(np.unique(a.round(5), axis=0), np.unique(b.round(5), axis=0))


# ---- models


def test_ease_is_the_closed_form() -> None:
    rng = np.random.default_rng(1)
    x = (rng.random((50, 12)) < 0.3).astype(np.float64)
    users, items = np.nonzero(x)
    index, weight = ease(users, items, 12, neighbours=12, l2=5.0, least=1)
    inverse = np.linalg.inv(x.T @ x + 5.0 * np.eye(12))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    got = np.zeros((12, 12))
    for i in range(12):
        there = index[i] >= 0
        got[i, index[i][there]] = weight[i][there]
    assert got == pytest.approx(np.maximum(expected, 0), abs=1e-4)


def test_a_user_tower_on_a_window_is_the_user_tower_on_the_newest_events() -> None:
    """Padding in front changes nothing: a short history gives the same vector wherever the window starts."""
    torch.manual_seed(0)
    tower = UserTower(TowerSettings(dimensions=16)).eval()
    items, events = torch.randn(1, LENGTH, 17), torch.rand(1, LENGTH, EVENT_WIDTH)
    mask = torch.zeros(1, LENGTH)
    mask[:, -10:] = 1
    with torch.inference_mode():
        padded = tower(items, events, mask)
        noise = items.clone()
        noise[:, :-10] = 100.0
        assert torch.allclose(tower(noise, events, mask), padded, atol=1e-5)
        states = tower.states(items, events, torch.ones(1, LENGTH))
        altered = items.clone()
        altered[:, 40:] = 7.0
        assert torch.allclose(tower.states(altered, events, torch.ones(1, LENGTH))[:, :40], states[:, :40], atol=1e-5)


def _mean_of(tower: UserTower, items: torch.Tensor, events: torch.Tensor) -> torch.Tensor:
    """Return the contribution of the history's mean to the newest vector."""
    mask = torch.ones(items.shape[0], LENGTH)
    gain = tower.mean_gain.detach().clone()
    with torch.inference_mode():
        with_it = tower(items, events, mask)
        tower.mean_gain.zero_()
        without = tower(items, events, mask)
        tower.mean_gain.copy_(gain)
    added: torch.Tensor = with_it - without
    return added


def test_a_person_is_the_mean_of_what_they_met_before_anything_is_learned() -> None:
    """Compared with a plain recomputation: newest events weigh most, later ones nothing, and event inputs add to weights."""
    torch.manual_seed(0)
    tower = UserTower(TowerSettings(dimensions=16, resemblance=3.0)).eval()
    items, events = torch.randn(2, LENGTH, 17), torch.rand(2, LENGTH, EVENT_WIDTH)
    age = torch.arange(LENGTH - 1, -1, -1, dtype=torch.float32)
    for rate, told in ((0.1, 0.0), (0.0, 0.0), (0.5, 2.0)):
        with torch.no_grad():
            tower.mean_rate.fill_(rate)
            tower.mean_weight.weight[0, 3] = told
        weights = torch.exp(told * events[..., 3] - rate * age)
        expected = 3.0 * (weights.unsqueeze(-1) * items[..., :-1]).sum(1) / weights.sum(1, keepdim=True)
        found = _mean_of(tower, items, events)
        assert torch.allclose(found[:, :-1], expected, atol=1e-4)
        assert not found[:, -1].any(), "the bias of an item stays as it is"
        gone = items.clone()
        gone[:, 60:] = 0  # items that have no vector draw nothing to 0
        weights[:, 60:] = 0
        expected = 3.0 * (weights.unsqueeze(-1) * gone[..., :-1]).sum(1) / weights.sum(1, keepdim=True)
        assert torch.allclose(_mean_of(tower, gone, events)[:, :-1], expected, atol=1e-4)
        gone[:, :40] = 0
        ahead = gone.clone()
        ahead[:, 40:] = 7.0
        one, other = (tower.states(late, events, torch.ones(2, LENGTH))[:, :40] for late in (gone, ahead))
        assert torch.allclose(one, other, atol=1e-5), "where nothing is there yet, the mean is not what is to come"
        states = tower.states(items, events, torch.ones(2, LENGTH))
        ahead = items.clone()
        ahead[:, 40:] = 7.0
        assert torch.allclose(tower.states(ahead, events, torch.ones(2, LENGTH))[:, :40], states[:, :40], atol=1e-5)


@given(st.integers(0, 2), st.lists(st.integers(0, LENGTH), min_size=1, max_size=4), st.integers(0, 2**16))
def test_the_served_vector_is_the_state_after_the_newest_event(blocks: int, lengths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    tower = UserTower(TowerSettings(dimensions=16, blocks=blocks)).eval()
    items, events = torch.randn(len(lengths), LENGTH, 17), torch.randn(len(lengths), LENGTH, EVENT_WIDTH)
    mask = (torch.arange(LENGTH) >= LENGTH - torch.tensor(lengths)[:, None]).float()
    with torch.inference_mode():
        served, states = tower(items, events, mask), tower.states(items, events, mask)[:, -1]
    there = torch.tensor(lengths) > 0
    assert torch.allclose(served[there], states[there], atol=1e-5)


@given(
    st.integers(1, 3), st.integers(1, 3), st.lists(st.booleans(), min_size=2, max_size=9), st.integers(0, 1_000), st.booleans()
)
def test_an_mmoe_is_served_as_the_function_that_was_trained(
    heads: int, experts: int, constant: list[bool], seed: int, far: bool
) -> None:
    torch.manual_seed(seed)
    ranker = make_ranker(len(constant), heads, RankerSettings(width=8, experts=experts)).eval()
    with torch.no_grad():
        for parameter in ranker.parameters():
            parameter.normal_()
        scale = torch.where(torch.tensor(constant), torch.tensor(CONSTANT), torch.rand(len(constant)) + 0.5)
        ranker.scale.copy_(scale)
    drawn = torch.randn(20, len(constant)) * torch.where(torch.tensor(constant), 1.0, 1e4 if far else 1.0)
    with torch.inference_mode():
        assert torch.allclose(ranker.served()(drawn), ranker(drawn), atol=2e-5)


@pytest.mark.parametrize("heads", [1, 3])
def test_onnx_gives_what_torch_gives(heads: int) -> None:
    torch.manual_seed(heads)
    rng = np.random.default_rng(heads)
    ranker = make_ranker(len(FEATURES), heads, RankerSettings(width=16)).eval()
    inputs = {"features": rng.normal(0, 10, (256, len(FEATURES))).astype(np.float32)}
    graph, worst = to_onnx(ranker, inputs, "heads", checks=(1, 2, 255))
    assert worst <= 1e-4
    assert to_onnx(ranker, inputs, "heads")[0] == graph, "the same model gives the same bytes"


@pytest.fixture(scope="module")
def watched(vectors: Path) -> tuple[Learned, ServingModel]:
    """The release trained once more, and the model that retrieved the ranker's candidates."""
    asked: list[ServingModel] = []

    def noted(world: SimulatedWorker, model: ServingModel, *rest: Any) -> Replayed:
        asked.append(model)
        return replay(world, model, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.learn.replay", noted)
        again = small_release(vectors)
    (model,) = asked
    return again, model


def test_the_same_seed_and_data_give_the_same_release(
    learned: Learned, watched: tuple[Learned, ServingModel], tmp_path: Path
) -> None:
    again, _ = watched
    assert again.write(tmp_path / "a", {}).name == learned.write(tmp_path / "b", {}).name


def test_a_tenth_of_the_items_is_new_to_the_ranker_and_all_are_learned(
    learned: Learned, watched: tuple[Learned, ServingModel]
) -> None:
    _, model = watched
    events = corpus()[1]
    older = {event.item_id for event in events[: int(len(events) * 0.7)]}
    assert model.release.met.sum() == len(older) - len(older) // 10
    ids = np.asarray(model.release.item_ids)
    assert set(ids[model.release.met]) < older
    assert {str(ids[n]) for n in np.flatnonzero((model.release.ease_index >= 0).any(axis=1))} <= set(ids[model.release.met])
    everything = {event.item_id for event in events}
    assert {learned.item_ids[n] for n in np.flatnonzero(learned.arrays["met.npy"])} == everything


def test_what_was_learned_beats_chance_and_content_carries_new_items(learned: Learned) -> None:
    """Users who like a colour get its items, also those that training never saw."""
    items, _ = corpus()
    model = ServingModel(learned.release())
    store = ItemStore(1)
    for item in items:
        store.upsert(item)
    for n in range(60, 66):
        store.upsert(Item(f"new{n}", f"{('red', 'green', 'blue')[n % 3]} thing", "", (("red", "green", "blue")[n % 3],)))
    liked = [Interaction(f"e{n}", "u", f"i{3 * n}", n * 1000 + 1, "like") for n in range(6)]
    user = records_of(liked, store)["u"]
    queries = Queries.hydrate([Request("r", "u")], Users.of([user]), store, model)
    model.hydrate(queries, store)()
    assert model.synced(store)
    assert queries.user_vectors is not None
    scores = model.vectors[: len(store)] @ queries.user_vectors[0]
    red = np.arange(40) % 3 == 0
    assert scores[:40][red].mean() > scores[:40][~red].mean()
    assert np.abs(model.vectors[40 : len(store)]).sum(axis=1).all(), "new items have vectors"


# ---- gate


def figures(ranks: list[int]) -> Figures:
    return Figures(ranks=ranks)


def test_the_gate_passes_what_is_better_beyond_noise_only() -> None:
    rng = np.random.default_rng(0)
    weak, strong = rng.integers(0, 60, 400).tolist(), rng.integers(0, 15, 400).tolist()
    assert judge(figures(strong), figures(weak), 1e-6).passed
    assert not judge(figures(weak), figures(strong), 1e-6).passed
    assert "beyond noise" in judge(figures(weak), figures(weak), 1e-6).reasons[0]
    assert "differs from torch" in judge(figures(strong), figures(weak), 1e-2).reasons[0]
    assert "queries" in judge(figures(strong[:20]), figures(weak[:20]), 1e-6).reasons[0]
    with pytest.raises(ValueError, match="same queries"):
        judge(figures(strong), figures(weak[:-1]), 0.0)


def test_a_feature_that_never_varied_in_training_moves_no_score() -> None:
    """Otherwise untrained weights would score items that the release has not seen."""
    import torch

    from training.ranking.examples import Examples
    from training.ranking.fit import train_ranker
    from training.recipe import RankerSettings

    rng = np.random.default_rng(3)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    labels = (rng.random((64, 5, 2)) < 0.3).astype(np.float32)
    valid, none = np.ones((64, 5), np.bool_), np.zeros((64, 5), np.float32)
    examples = Examples(draw(64, 5, 3), labels, labels[..., 0], valid, none, np.zeros(64, np.bool_))
    examples.features[..., 0] = 1.0
    model = train_ranker(examples, RankerSettings(epochs=1)).eval()
    seen = torch.from_numpy(np.ascontiguousarray(examples.features[:, 0]))
    unseen = seen.clone()
    unseen[:, 0] = 0.0
    with torch.no_grad():
        assert torch.allclose(model(seen), model(unseen), atol=1e-6)
