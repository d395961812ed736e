"""A study can be continued, prunes bad trials, and never reads events after its part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import POSITIVE, SMALL, corpus
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from tower_corpus import tower_corpus

from schemas.errors import ConfigError
from schemas.records import Interaction
from training import tune as tune_module
from training import tune as tuning
from training.cli.evaluate import evaluate_command
from training.cli.train import train_command
from training.cli.tune import tune_command
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.table import EventTable
from training.recipe import KINDS, LearnSettings, RankerSettings, TowerSettings
from training.retrieval.fit_towers import train_towers
from training.retrieval.next_item import Validation
from training.settings_file import BOUNDS, read_settings, write_settings
from training.tune import SPACE, TuneSettings, _bind, _expressible, _fingerprint, _opened, tried, tune

SMALLER = replace(SMALL, towers=replace(SMALL.towers, epochs=3), queries=40, least_steps=1)
HOW = TuneSettings(validation=0.2, queries=40, startup=1)

# ---- the study


def test_a_study_goes_on_prunes_and_tries_again_what_was_cut_off(
    tmp_path: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    narrow = {**SPACE, "towers.dimensions": CategoricalDistribution([16, 8]), "ranker.width": CategoricalDistribution([16, 8])}
    monkeypatch.setattr(tuning, "SPACE", narrow)
    items, events = corpus()
    file = tmp_path / "s.jsonl"
    said: list[tuple[str, int, int]] = []
    asked: list[int] = []

    def logged(after_ms: int, until_ms: int, most: int, windows_ms: Mapping[str, int]) -> pl.DataFrame:
        asked.append(until_ms)
        return pl.DataFrame(schema={"features": pl.List(pl.Float32), "feature_spec": pl.String})

    columns, progress = EventFrame.of(events[:700]), lambda *told: said.append(told)
    part = Corpus("glass", items, columns, POSITIVE, logged=logged)
    found = tune(part, vectors, file, 1, SMALLER, HOW, progress)
    assert asked == [events[559].event_time], "logged slates of the trial's own part"
    assert {part for part, _, _ in said} == {"trial 1 of 1"}
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)
    assert all(0 <= done <= of for _, done, of in said)
    with pytest.raises(ConfigError, match="a study of other data or settings"):
        tune(Corpus("glass", items, events[:699], POSITIVE), vectors, file, 1, SMALLER, HOW)
    assert found.states == {"complete": 1}
    assert 0 < found.value <= 1
    assert found.best == tried(_expressible(SMALLER), SMALLER) == SMALLER, "the first trial is the standard"
    study = _opened(file, HOW)
    (first,) = study.trials
    assert sorted(first.intermediate_values) == [1, 2, 3], "an NDCG after each epoch"
    for _ in range(3):  # trials so good that the next one must be worse
        study.add_trial(
            create_trial(
                params=first.params, distributions=narrow, value=0.0, intermediate_values=dict.fromkeys(range(1, 4), 0.99)
            )
        )
    cut_off = study.ask(narrow)  # a call that was killed while it tried this
    again = tune(Corpus("glass", items, events[:700], POSITIVE), vectors, file, 1, SMALLER, HOW)
    assert again.states == {"complete": 4, "fail": 1, "pruned": 1}
    assert (again.best, again.value) == (found.best, found.value)
    last = _opened(file, HOW).trials[-1]
    assert last.state == TrialState.PRUNED
    assert last.params == cut_off.params
    assert len(last.intermediate_values) == 2, "ended after the second epoch, not the last"
    assert all(isinstance(json.loads(line), dict) for line in file.read_text().splitlines()), "plain JSON, nothing pickled"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"events": 699}, "events 700, here 699"),
        ({"items": 39}, "items 40, here 39"),
        ({"name": "prints"}, "dataset 'glass', here 'prints'"),
        ({"positive": "True"}, "positive \"action == 'like'\", here 'True'"),
        ({"how": replace(HOW, queries=41)}, "queries 40, here 41"),
        ({"standard": replace(SMALLER, neighbours=17)}, "neighbours 16, here 17"),
        ({"moved": {"item_id": "i0"}}, "content of the events"),
        ({"moved": {"value": 0.5}}, "content of the events"),
        ({"moved": {"request_id": "r"}}, "content of the events"),
        ({"changed": {"image": "b.png"}}, "content of the items"),
        ({"changed": {"attributes": {"by": "x"}}}, "content of the items"),
        ({"changed": {"published_at": 1}}, "content of the items"),
        ({"shown": [Interaction("s", "u", "i1", 1, "impression")]}, "shown 0, here 1"),
    ],
)
def test_a_study_is_of_one_thing(tmp_path: Path, vectors: Path, change: dict[str, Any], said: str) -> None:
    items, events = corpus()

    def bound(**other: Any) -> None:
        of = events[: other.get("events", 700)]
        if other.get("moved"):
            of = [*of[:-1], replace(of[-1], **other["moved"])]
        some = [*items[: other.get("items", 40) - 1], replace(items[-1], **other.get("changed", {}))]
        given, shown = other.get("columns", list)(of), EventFrame.of(other.get("shown", []))
        part = Corpus("glass", some, given, other.get("positive", POSITIVE), shown=shown)
        about = {"dataset": other.get("name", "glass")}
        mine = _fingerprint(about, part, other.get("standard", SMALLER), other.get("how", HOW))
        _bind(_opened(tmp_path / "s.jsonl", HOW), tmp_path / "s.jsonl", mine)

    bound()
    bound(columns=EventFrame.of)
    bound(standard=replace(SMALLER, ease_l2=7.0, checkpoints="elsewhere"))  # searched settings and locations may differ
    with pytest.raises(ConfigError) as refused:
        bound(**change)
    assert said in refused.value.message
    assert "--study" in refused.value.message
    bound()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("SPEC", "f0", "features"), ("SPACE", {**SPACE, "towers.more": SPACE["towers.other"]}, "searched")],
)
def test_a_study_ends_where_what_is_learned_or_searched_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    items, events = corpus()
    given = {"dataset": "glass"}, Corpus("glass", items, events, POSITIVE), SMALLER, HOW
    file = tmp_path / "s.jsonl"
    _bind(_opened(file, HOW), file, mine := _fingerprint(*given))
    other = {**mine, "searched": sorted(value)}
    if name == "SPEC":
        monkeypatch.setattr(tune_module, name, value)
        other = _fingerprint(*given)
    with pytest.raises(ConfigError, match=said):
        _bind(_opened(file, HOW), file, other)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_is_tried_can_be_written_and_read_again(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    drawn = {}
    for name, distribution in SPACE.items():
        if isinstance(distribution, CategoricalDistribution):
            drawn[name] = data.draw(st.sampled_from(distribution.choices))
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            share = data.draw(st.floats(0, 1))
            drawn[name] = type(distribution.low)(distribution.low + share * (distribution.high - distribution.low))
    made = tried(drawn, LearnSettings())
    file = tmp_path_factory.mktemp("settings") / "s.json"
    write_settings(file, made, LearnSettings())
    assert read_settings(file, LearnSettings()) == made
    assert tried(_expressible(made), LearnSettings()) == made


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"towers": 3}',
        '{"towers": {"layers": 3}}',
        '{"other": 1}',
        '{"towers": {"epochs": 0}}',
        '{"towers": {"epochs": 2.5}}',
        '{"towers": {"epochs": true}}',
        '{"towers": {"rate": NaN}}',
        '{"towers": {"rate": "1"}}',
        '{"towers": {"dimensions": 30, "attention_heads": 4}}',
        '{"ranker": {"kind": "trees"}}',
        '{"text_model": 1}',
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(ConfigError):
        read_settings(tmp_path / "s.json", LearnSettings())
    with pytest.raises(ConfigError):
        read_settings(tmp_path / "missing.json", LearnSettings())


@pytest.mark.parametrize("command", [evaluate_command, train_command, tune_command])
def test_settings_are_read_before_the_data(tmp_path: Path, command: click.Command) -> None:
    (tmp_path / "s.json").write_text('{"layers": 3}')
    made = CliRunner().invoke(command, [str(tmp_path / "nowhere"), "--settings", str(tmp_path / "s.json")])
    assert isinstance(made.exception, ConfigError)
    assert "there is no setting 'layers'" in made.exception.message
    assert "read" not in made.output


def test_a_search_exports_nothing_and_has_no_option_for_it() -> None:
    assert "no such option" in CliRunner().invoke(tune_command, ["d", "--fp16"]).output.lower()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"ranker": {"kind": "deepfm"}, "ease_l2": 100}')
    standard = LearnSettings(seed=3, towers=TowerSettings(seed=3))
    found = read_settings(tmp_path / "s.json", standard)
    assert found == replace(standard, ease_l2=100.0, ranker=replace(standard.ranker, kind="deepfm"))
    assert set(KINDS) == {"mmoe", "deepfm"}
    for name in BOUNDS:  # every bound is that of a setting
        part, _, inner = name.rpartition(".")
        assert isinstance(getattr(getattr(standard, part) if part else standard, inner), int | float | dict)
    parts: dict[str, LearnSettings | TowerSettings | RankerSettings] = {
        "": standard,
        "towers.": standard.towers,
        "ranker.": standard.ranker,
    }
    values = {f"{part}{each.name}": getattr(whole, each.name) for part, whole in parts.items() for each in fields(whole)}
    numbers = {name for name, value in values.items() if isinstance(value, int | float | dict) and not isinstance(value, bool)}
    assert numbers == set(BOUNDS), "every number has a bound"


# ---- validation during the training of trials


def test_validation_never_looks_at_its_own_event_or_a_later_one() -> None:
    table, content = tower_corpus()
    towers = train_towers(table, content, TowerSettings(dimensions=8, blocks=1, epochs=1, batch=8))
    start = 600
    validation = Validation(table, content, start, 0, most=10_000)
    assert len(validation) > 20
    for n, row in enumerate(validation._rows):
        query = int(np.flatnonzero((table.item == validation._targets[n]) & table.first & (np.arange(len(table)) >= start))[0])
        assert (row < len(table)).all()
        assert validation._targets[n] not in validation._seen[n]
        assert query >= start
    later = EventTable(*(getattr(table, name).copy() for name in table.__slots__))
    last = int(np.max(validation._rows))
    later.item[last + 1 :] = 0
    later.slot[last + 1 :] = 0
    changed = Validation(later, content, start, 0, most=10_000)
    assert np.array_equal(changed._rows, validation._rows)
    assert np.array_equal(changed._inputs[: last + 1], validation._inputs[: last + 1])
    assert 0 <= validation(*towers) <= 1


def test_what_nobody_has_met_is_validated_by_its_content_as_a_release_has_it() -> None:
    torch.set_num_threads(1)
    table, content = tower_corpus()
    start = 600
    cold = table.item % 5 == 0
    kept = np.flatnonzero(~cold | (np.arange(len(table)) >= start))
    table = table.take(kept)
    start = int((kept < start).sum())
    validation = Validation(table, content, start, 0, most=10_000)
    user, item = train_towers(table.until(start), content, TowerSettings(dimensions=8, blocks=1, epochs=2, batch=8))
    before = validation(user, item)
    with torch.no_grad():
        item.ids.weight[::5] = 7.0
        item.id_bias.weight[::5] = 7.0
    assert validation(user, item) == before, "ids that nothing taught are not read"
    with torch.no_grad():
        item.ids.weight[1] = 7.0
        item.id_bias.weight[1] = 7.0
    assert validation(user, item) != before


def test_watching_a_training_changes_nothing_and_a_learned_tower_does_better() -> None:
    torch.set_num_threads(1)
    table, content = tower_corpus()
    few = TowerSettings(dimensions=16, blocks=1, epochs=6, batch=8, rate=1e-2, other=0.0)
    base = table.until(600)
    validation = Validation(table, content, 600, 0)
    seen: list[float] = []
    watched = train_towers(base, content, few, watch=lambda epoch, user, item: seen.append(validation(user, item)))
    plain = train_towers(base, content, few)
    for a, b in zip(watched, plain, strict=True):
        assert all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in a.state_dict())
    assert len(seen) == few.epochs
    assert seen[-1] > seen[0]
