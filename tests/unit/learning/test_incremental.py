"""An update continues from the champion: it keeps learned tastes, learns new items, and leaves all else unchanged."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import COLOURS, POSITIVE, SMALL, corpus, pictured
from numpy.typing import NDArray

from models.release.release import ARRAYS, MET, PROJECTIONS, WEIGHTS, Release, write_release
from models.release.sequences import LENGTH, Vocabulary
from models.release.serving import ServingModel
from models.release.transitions import Transitions
from schemas.errors import BadDataset
from schemas.records import Interaction, Item
from training.cli.train import train_command
from training.data.slates.examination import Examination, fixed_curve
from training.data.table import EventTable
from training.evaluation.bounds import HALF
from training.loop.group import Group
from training.recipe import TowerSettings
from training.release import renewed as renewal
from training.release.learned import Learned
from training.release.parity import in_parity
from training.replay.world import SimulatedWorker
from training.retrieval.fit_towers import Progress, train_towers
from training.retrieval.negatives import NEVER, first_interaction_ms
from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors
from training.retrieval.weights import Champion, Start, warm_start
from training.update import rows_to_learn, update

AGES_MS = 10**12
few = settings(max_examples=40, deadline=None)
DRAWN = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)


def table_of(drawn: list[tuple[int, int]]) -> EventTable:
    events = [Interaction(f"e{n}", f"u{u}", f"i{i}", 1_000 + n, "view") for n, (u, i) in enumerate(drawn)]
    vocabulary = Vocabulary(("view",), 0.0, 1.0, "True")
    return EventTable.of(events, [Item(f"i{n}") for n in range(10)], vocabulary, (("positive", 1.0),))


@few
@given(DRAWN, st.integers(0, 60))
def test_an_update_sees_every_new_event_and_about_as_many_old_ones(drawn: list[tuple[int, int]], new: int) -> None:
    table, cut = table_of(drawn), max(0, len(drawn) - new)
    rows = rows_to_learn(table, 1_000 + cut - 1, 0)
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert set(range(cut, len(drawn))) <= set(rows.tolist())
    active = set(table.user[cut:].tolist())
    of_active = [n for n in range(len(drawn)) if table.user[n] in active]
    assert set(of_active) <= set(rows.tolist()), "their newest events, which here are all"
    others = [n for n in rows.tolist() if table.user[n] not in active]
    people = [int((table.user == u).sum()) for u in set(table.user.tolist()) - active]
    assert len(others) <= len(of_active) + max(people, default=0)


def test_a_long_history_is_cut_to_what_the_tower_reads() -> None:
    table = table_of([(0, n % 10) for n in range(LENGTH + 40)] + [(1, 0)] * 10)
    rows = rows_to_learn(table, 1_000 + LENGTH + 29, 0)
    assert rows[rows < LENGTH + 40].tolist() == list(range(30, LENGTH + 40))


@pytest.fixture
def champion(learned: Learned, tmp_path: Path) -> Champion:
    return Champion.open(learned.write(tmp_path / "releases", {}))


def later() -> tuple[list[Item], list[Interaction]]:
    """Two new items, and new likes of them by users who like their colour."""
    _, events = corpus()
    new = [Item(f"new{n}", f"{COLOURS[n]} thing", "of glass", (COLOURS[n],)) for n in range(2)]
    start = events[-1].event_time
    likes = [
        Interaction(f"n{n}", f"u{n % 30}", f"new{n % 3 % 2}" if n % 3 < 2 else f"i{n % 40}", start + 1_000 * (n + 1), "like")
        for n in range(90)
    ]
    return new, events + likes


def test_warm_towers_are_the_champions_towers(champion: Champion, learned: Learned, vectors: Path) -> None:
    n = len(learned.item_ids)
    ids = [*reversed(learned.item_ids), "new"]
    user = UserTower(champion.settings)
    item = ItemTower(
        n + 1, learned.arrays["text.npy"].shape[1], learned.arrays["image.npy"].shape[1], champion.settings.dimensions
    )
    warm_start(champion, ids)(user, item)
    for name, tensor in user.state_dict().items():
        assert torch.equal(tensor, champion.weights[f"user.{name}"])
    old = champion.weights["item.ids.weight"]
    assert torch.equal(item.ids.weight[:n].detach(), old.flip(0))
    assert torch.equal(item.ids.weight[n].detach(), item.no_id.detach()), "a new id starts where a hidden one is"
    content = Content(
        np.zeros((n + 1, 128), np.float32),
        np.zeros((n + 1, item.text.in_features), np.float32),
        np.zeros((n + 1, item.image.in_features), np.float32),
        np.zeros((n + 1, 2), np.float32),
    )
    shown, hidden = (item_vectors(item.eval(), content, np.full(n + 1, unmet)) for unmet in (False, True))
    assert shown[n] == pytest.approx(hidden[n], abs=1e-6)


def test_an_update_learns_what_is_new_and_keeps_what_was(
    champion: Champion, learned: Learned, vectors: Path, tmp_path: Path
) -> None:
    seen, unmet = pictured(vectors / "images")
    new, events = later()
    items = [*seen, *unmet, *new]
    curve = Examination(fixed_curve(), np.zeros(6), np.zeros(6), 400)
    metrics = {**champion.release.manifest.metrics, "position_bias": curve.to_json(), "gate": {"passed": True}}
    champion.release.manifest = replace(champion.release.manifest, metrics=metrics)
    made = update(champion, items, events, vectors, SMALL)
    again = update(champion, items, events, vectors, SMALL)
    assert set(made.measured) == {"reliability", "calibration", "position_bias", "transitions"}, (
        "of what is copied, nothing of its gate"
    )
    for name in ("reliability", "calibration"):
        assert made.measured[name] == learned.measured[name]
    assert made.examination is not None
    assert made.examination.log[:6] == pytest.approx(fixed_curve()[:6], abs=1e-3)
    world, people = SimulatedWorker(items), sorted({event.user_id for event in events})
    world.apply(events)
    assert made.modules is not None
    held = in_parity(world, made.release(), made.modules, people, 40)
    assert held.worst <= 1e-4
    assert held.differing == 0
    folder = made.write(tmp_path / "releases", {}, champion.release.name)
    assert again.write(tmp_path / "releases", {}, champion.release.name) == folder, "the same seed, the same release"
    release = Release.open(folder)
    before = champion.release.manifest
    assert release.manifest.trained_until_ms == events[-1].event_time > before.trained_until_ms
    for name in ("heads", "actions", "value_mean", "light", "encoders", "content", "feature_spec"):
        assert getattr(release.manifest, name) == getattr(before, name)
    assert release.graphs["ranker.onnx"] == champion.release.graphs["ranker.onnx"]
    for modality, projection in champion.release.projections.items():
        assert np.array_equal(release.projections[modality], projection)
    assert WEIGHTS in release.manifest.files
    ServingModel(release)
    old = len(champion.release.item_ids)
    both = champion.release.item_vectors.ravel() @ release.item_vectors[:old].ravel()
    lengths = np.linalg.norm(champion.release.item_vectors) * np.linalg.norm(release.item_vectors[:old])
    assert both / lengths > 0.9, "moved, not replaced"
    assert not np.array_equal(champion.release.item_vectors, release.item_vectors[:old])
    assert (release.ease_index[old:] >= 0).any(), "new items have neighbours"
    assert len(Champion.open(folder).weights["item.ids.weight"]) == len(items), "the next update goes on from this one"


def test_what_was_met_before_an_update_counts_as_not_chosen_in_it(
    monkeypatch: pytest.MonkeyPatch, champion: Champion, vectors: Path
) -> None:
    """This holds although it trains on a part of the history, without some items' first interactions."""
    seen, unmet = pictured(vectors / "images")
    new, events = later()
    items = [*seen, *unmet, *new]
    # a user without new events whose only interaction is too old for that part
    start = events[0].event_time
    old = [Interaction(f"o{n}", "old", f"i{n % 40}" if n else unmet[0].item_id, start, "view") for n in range(LENGTH + 5)]
    events = [*old, *events]
    asked: list[tuple[EventTable, NDArray[np.int64]]] = []

    def trained(
        table: EventTable,
        content: Content,
        settings: TowerSettings,
        progress: Progress | None,
        *,
        start: Start,
        first_ms: NDArray[np.int64],
    ) -> tuple[UserTower, ItemTower]:
        asked.append((table, first_ms))
        return train_towers(table, content, settings, progress, start=start, first_ms=first_ms)

    monkeypatch.setattr(renewal, "train_towers", trained)
    update(champion, items, events, vectors, SMALL)
    number, expected = {item.item_id: n for n, item in enumerate(items)}, [NEVER] * len(items)
    for event in events:
        expected[number[event.item_id]] = min(expected[number[event.item_id]], event.event_time)
    ((part, first_ms),) = asked
    assert first_ms.tolist() == expected
    long_ago = number[unmet[0].item_id]
    assert first_ms[long_ago] == start
    assert first_interaction_ms(part, len(items))[long_ago] == NEVER


def test_an_update_in_half_precision_is_measured_as_such_and_stays_so(
    champion: Champion, vectors: Path, tmp_path: Path
) -> None:
    seen, unmet = pictured(vectors / "images")
    new, events = later()
    items = [*seen, *unmet, *new]
    made = update(champion, items, events, vectors, replace(SMALL, half=True))
    assert 0 < made.measured["half"] <= 1e-2
    for name in ("user_tower.onnx", "item_tower.onnx"):
        assert products(made.graphs[name]) == {onnx.TensorProto.FLOAT16}
        assert products(champion.release.graphs[name]) == {onnx.TensorProto.FLOAT}
    assert made.graphs["ranker.onnx"] == champion.release.graphs["ranker.onnx"]
    world, people = SimulatedWorker(items), sorted({event.user_id for event in events})
    world.apply(events)
    assert made.modules is not None
    assert 1e-7 < in_parity(world, made.release(), made.modules, people, 20).worst <= HALF.parity
    after = Champion.open(made.write(tmp_path / "releases", {}, champion.release.name))
    further = [replace(e, event_id=f"{e.event_id}+", event_time=e.event_time + 10**6) for e in events[-90:]]
    again = update(after, items, [*events, *further], vectors, SMALL)
    assert "half" in again.measured, "an update of half precision stays in it"


def test_nothing_new_is_no_error_and_writes_nothing(
    champion: Champion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hourly job must not fail for an hour without events."""
    agreed: list[tuple[str, int]] = []
    monkeypatch.setattr(Group, "agree", lambda _, what, value: agreed.append((what, value)))
    data, (items, events) = tmp_path / "data", corpus()
    data.mkdir()
    (data / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    name, releases = champion.release.name, tmp_path / "releases"
    options = ["--out", str(releases), "--against", name, "--incremental", "--positive", POSITIVE, "--cache", str(tmp_path)]
    asked = replace(champion.release.manifest, name="20260131", trained_until_ms=events[-1].event_time + AGES_MS, files={})
    folder = write_release(
        releases,
        asked,
        {name: np.load(releases / champion.release.name / name) for name in (*ARRAYS, MET, *PROJECTIONS)},
        champion.release.graphs,
        champion.release.item_ids,
    )
    options[3] = folder.name
    before = sorted(path.name for path in releases.iterdir())
    for more in (0, 40):
        last = events[-1].event_time + AGES_MS
        late = [Interaction(f"l{n}", f"u{n % 30}", f"i{n}", last + 1 + n, "view") for n in range(more)]
        moved = [replace(event, event_time=event.event_time + AGES_MS) for event in events]
        (data / "events.jsonl").write_text("".join(json.dumps(asdict(event)) + "\n" for event in [*moved, *late]))
        ran = CliRunner().invoke(train_command, [str(data), *options, "--json"], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        said = json.loads(ran.stdout)
        assert (said["release"], said["skipped"], said["needed"], said["against"]) == (None, "nothing_new", 50, folder.name)
        assert 0 <= said["new_events"] <= more
        assert agreed.pop() == ("new events", said["new_events"]), "by all processes, or by none"
        assert "nothing to learn yet" in ran.stderr
    assert sorted(path.name for path in releases.iterdir()) == before
    options[3] = "none"
    refused = CliRunner().invoke(train_command, [str(data), *options])
    assert isinstance(refused.exception, BadDataset), "what cannot be done stays an error"


def products(graph: bytes) -> set[int]:
    """Return the types of the weights of matrix products."""
    model = onnx.load_from_string(graph).graph
    types = {tensor.name: tensor.data_type for tensor in model.initializer}
    return {
        types[name] for node in model.node if node.op_type in {"MatMul", "Gemm"} for name in node.input[1:2] if name in types
    }


def test_what_cannot_be_gone_on_from_is_said(learned: Learned, champion: Champion, vectors: Path, tmp_path: Path) -> None:
    seen, unmet = pictured(vectors / "images")
    earlier = replace(champion.release.manifest, feature_spec="f0")
    before = Release(earlier, learned.arrays, champion.release.graphs, champion.release.item_ids)
    with pytest.raises(BadDataset, match=r"features f0, this has .*train in full"):
        update(replace(champion, release=before), [*seen, *unmet], later()[1], vectors, SMALL)
    with pytest.raises(BadDataset, match="newer than release"):
        update(champion, [*seen, *unmet], corpus()[1], vectors, SMALL)
    bare = replace(learned, weights=b"").write(tmp_path / "bare", {})
    with pytest.raises(BadDataset, match="no weights"):
        Champion.open(bare)
    none = np.zeros((len(champion.release.item_ids), 0))
    champion.release.transitions = Transitions(none.astype(np.int32), none.astype(np.float32), np.ones(1, np.float32))
    with pytest.raises(BadDataset, match=r"has transitions, .*train in full"):
        update(champion, [*seen, *unmet, *later()[0]], later()[1], vectors, replace(SMALL, followers=0))
    champion.release.transitions = None
    manifest = replace(learned.manifest, encoders={**learned.manifest.encoders, "text": "text-another"})
    other = Champion.open(replace(learned, manifest=manifest).write(tmp_path / "other", {}))
    with pytest.raises(BadDataset, match="another"):
        update(other, [*seen, *unmet, *later()[0]], later()[1], vectors, SMALL)
