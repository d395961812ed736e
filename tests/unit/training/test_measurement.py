"""Laws of measurements: the values per query, and the comparison with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import POSITIVE, corpus

from benchmarks.nearest import nearest_ranks
from models.items.store import text_vector
from models.pipeline.pipeline import PipelineSettings
from models.rules import PositiveRule
from schemas.errors import BadInput
from schemas.records import Interaction, Item
from training.data.table import ATTRIBUTION_MS, EventTable, heads_of, vocabulary_of
from training.evaluation.evaluate import Figures, asked_of, evaluate
from training.evaluation.measurement import MEASURES, SEGMENTS, Catalogue, Measurement
from training.replay.outcomes import Outcomes
from training.replay.probe import Prober
from training.replay.world import SimulatedWorker

few = settings(max_examples=40, deadline=None)
LIKED = PositiveRule(POSITIVE)
NEW = [Item(f"new{n}", "red thing", "made of red glass", ("red",)) for n in range(4)]


def world(seed: int = 0) -> tuple[list[Item], list[Interaction]]:
    """The corpus; the items NEW have no interactions before the split."""
    items, events = corpus(seed)
    cut = int(len(events) * 0.8)
    late = [replace(e, item_id=NEW[n // 9 % 4].item_id, action="like") if n % 9 == 0 else e for n, e in enumerate(events[cut:])]
    return [*items, *NEW], [*events[:cut], *late]


def measured(seed: int = 0) -> tuple[Figures, Measurement]:
    items, events = world(seed)
    figures = evaluate(items, events, LIKED)
    counts = np.bincount([int(e.item_id[1:]) for e in events[:720]], minlength=len(items))
    catalogue = Catalogue([i.item_id for i in items], counts, np.stack([text_vector(i) for i in items]))
    return figures, Measurement.of(figures, catalogue, "plain", "corpus", "none", {"seconds": 1.5})


def test_the_place_among_the_candidates_says_what_the_light_cut_keeps() -> None:
    """Without a release and without diversity the light order is that of the slate."""
    items, events = world()
    known = SimulatedWorker(items)
    known.apply(events[:400])
    narrow = Prober(known.items, settings=PipelineSettings(light_top=8, diversity=0.0))
    stages = set()
    for event in events[400:500]:
        record = known.record(event.user_id)
        known.know(record)
        got = narrow.probe(event.user_id, record, event.item_id)
        stages.add(got.stage)
        assert (got.stage == "ranked") == (0 <= got.candidate_rank < 8)
        assert (got.stage == "light_cut") == (got.candidate_rank >= 8)
        assert got.rank == (got.candidate_rank if got.stage == "ranked" else -1)
        assert len(got.slate) == min(8, got.candidates)
    assert stages >= {"ranked", "light_cut", "filtered:seen"}


events_of = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 2 * ATTRIBUTION_MS), st.sampled_from(["view", "like"])),
    min_size=1,
    max_size=30,
)


@few
@given(events_of)
def test_what_follows_is_what_training_labels(drawn: list[tuple[int, int, int, str]]) -> None:
    events = [
        Interaction(f"e{n}", f"u{u}", f"i{i}", t, action)
        for n, (u, i, t, action) in enumerate(sorted(drawn, key=lambda d: d[2]))
    ]
    vocabulary = vocabulary_of(events, POSITIVE)
    heads = heads_of(events, vocabulary, POSITIVE)
    table = EventTable.of(events, [Item(f"i{n}") for n in range(5)], vocabulary, heads)
    outcomes = Outcomes(events, LIKED, [name for name, _ in heads])
    for n, event in enumerate(events):
        ahead = [
            m
            for m in range(n, len(events))
            if table.user[m] == table.user[n] and table.first[m] and events[m].event_time - event.event_time <= ATTRIBUTION_MS
        ]
        got = outcomes.of(event.user_id, n, event.event_time)
        assert {item: came.tolist() for item, came in got.items()} == {
            events[m].item_id: (table.labels[m] > 0).tolist() for m in ahead
        }


def test_figures_and_measurement_agree_and_segments_divide_the_queries() -> None:
    figures, got = measured()
    said = figures.to_json()
    for name in ("ndcg@10", "hr@10", "recall@50", "mrr", "candidate_recall@50", "candidate_recall"):
        assert got.interval(name).mean == pytest.approx(said[name], abs=1e-4)
    sizes = {name: int(got.within(name).sum()) for name in SEGMENTS}
    assert sizes["people_new"] + sizes["people_known"] == sizes["all"] == len(figures.ranks)
    assert sizes["items_new"] + sizes["items_head"] + sizes["items_tail"] == sizes["all"]
    assert sizes["people_new"] == figures.without_history
    events = world()[1]
    asked = asked_of(events, LIKED, 0.8)
    assert sizes["items_new"] == sum(events[n].item_id.startswith("new") for n in asked) > 0
    assert sizes["items_unmet"] == len(NEW) < sizes["items_new"], "who comes second finds the item met"
    assert 0 < got.coverage() <= 1
    for name in MEASURES:
        assert np.isfinite(got.values[name]).all()
        assert len(got.values[name]) == len(got)


def test_a_part_without_queries_has_no_figures() -> None:
    items, events = corpus()
    figures = evaluate(items, events, LIKED)  # every item has interactions before the split
    catalogue = Catalogue([i.item_id for i in items], np.ones(len(items), np.int64), np.stack([text_vector(i) for i in items]))
    found = Measurement.of(figures, catalogue, "plain", "corpus", "none").summary()["segments"]
    assert found["items_unmet"] == {"queries": 0, **dict.fromkeys(MEASURES)}
    assert found["all"]["ndcg@10"] is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_which_of_equally_popular_items_are_the_head_does_not_hang_on_their_place_in_the_file() -> None:
    figures, _ = measured()
    items, _ = world()
    counts = np.full(len(items), 3, np.int64)
    vectors = np.stack([text_vector(i) for i in items])
    ids = [i.item_id for i in items]
    heads = []
    for order in (np.arange(len(items)), np.arange(len(items))[::-1], np.random.default_rng(0).permutation(len(items))):
        catalogue = Catalogue([ids[n] for n in order], counts[order], vectors[order])
        made = Measurement.of(figures, catalogue, "plain", "corpus", "none")
        heads.append(made.within("items_head").tolist())
    assert heads[0] == heads[1] == heads[2]
    assert any(heads[0])
    assert not all(heads[0])


def test_a_saved_measurement_is_read_as_it_was(tmp_path: Path) -> None:
    _, got = measured()
    got.save(tmp_path / "m.json")
    again = Measurement.load(tmp_path / "m.json")
    for name in ("label", "dataset", "release", "stages", "sources", "item_ids", "calibration", "facts", "catalogue_size"):
        assert getattr(again, name) == getattr(got, name), name
    for name in ("people", "items", "ranks", "segments", "tops"):
        assert np.array_equal(getattr(again, name), getattr(got, name)), name
    assert again.summary() == got.summary()
    difference = again.against(got, "ndcg@10")
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_what_is_no_measurement_is_said(tmp_path: Path) -> None:
    _, got = measured()
    path = tmp_path / "m.json"
    got.save(path)
    saved = json.loads(path.read_text())
    changes: list[dict[str, object]] = [
        {"format": 2},
        {"kind": "other"},
        {"values": {}},
        {"columns": {**saved["columns"], "ranks": [1]}},
    ]
    for change in changes:
        path.write_text(json.dumps({**saved, **change}))
        with pytest.raises(BadInput):
            Measurement.load(path)
    path.write_text("[")
    with pytest.raises(BadInput):
        Measurement.load(path)


def test_measurements_of_other_queries_are_not_compared() -> None:
    with pytest.raises(BadInput, match="same queries"):
        measured(0)[1].against(measured(1)[1], "mrr")


def test_content_neighbours_equal_a_plain_recomputation_and_never_look_ahead() -> None:
    items, events = world()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(items), 6)).astype(np.float32)
    vectors[5] = 0.0
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    number = {item.item_id: n for n, item in enumerate(items)}
    asked = asked_of(events, LIKED, 0.8, 60)
    got = nearest_ranks(items, events, LIKED, asked, vectors)
    assert np.array_equal(got[:30], nearest_ranks(items, events[: asked[30]], LIKED, asked[:30], vectors))
    for rank, n in zip(got.tolist(), asked, strict=True):
        before = [e for e in events[:n] if e.user_id == events[n].user_id]
        met = {number[e.item_id] for e in before}
        kept = [number[e.item_id] for e in before if LIKED(e.action, e.value)] or sorted(met)
        mine = number[events[n].item_id]
        if mine in met:
            assert rank == -1
            continue
        scores = unit @ unit[kept].sum(axis=0) if kept else np.zeros(len(items))
        others = [scores[i] for i in range(len(items)) if i not in met and i != mine]
        better, tied = sum(s > scores[mine] + 1e-5 for s in others), sum(abs(s - scores[mine]) <= 1e-5 for s in others)
        assert better <= rank <= better + tied
