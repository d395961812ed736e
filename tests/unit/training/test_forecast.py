"""A training says beforehand what it read and what it will cost, and how far it is as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from learning_corpus import POSITIVE, corpus, write_dataset
from rich.console import Console

from models.rules import SHOWN
from schemas.records import Interaction, Item
from training.cli.forecast import REPLAY_S, Forecast, forecast_of
from training.cli.progress import Whole, progress
from training.cli.train import INTERRUPTED, train_command
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.evaluation.bounds import STANDARD
from training.evaluation.holdout import Holdout, held_out
from training.recipe import LearnSettings

SETTINGS = LearnSettings()


def given_of(n_events: int = 900) -> tuple[Corpus, Holdout]:
    items, events = corpus(n_events=n_events)
    items = [*items, Item("bare"), Item("pictured", image="x.png")]
    return Corpus("glass", items, events, POSITIVE), held_out(events, POSITIVE, 0.9, 100)


def forecast(n_events: int = 900, champion: str = "none", *, incremental: bool = False) -> Forecast:
    return forecast_of(*given_of(n_events), SETTINGS, 100, champion, incremental=incremental)


def test_it_counts_what_was_read() -> None:
    found, (_, held) = forecast(), given_of()
    assert (found.events, found.held_out) == (held.trained, 900 - held.trained)
    assert (found.users, found.items, found.texts, found.images) == (30, 42, 40, 1)
    assert (found.impressions, found.logged) == (0, False)
    assert held.independent, "so few events are judged by last likes"
    needed = {"needed_queries": STANDARD.last, "needed_users": STANDARD.last}
    assert found.gate == {"protocol": "leave_last_out", "queries": held.queries, "users": held.people, **needed}
    assert json.loads(json.dumps(found.to_json()))["total_s"] == pytest.approx(sum(found.seconds.values()), abs=0.1)
    said = "\n".join(found.lines())
    assert "900 events of 30 users, 42 items (40 with text, 1 with an image)" in said
    assert f"{held.queries} queries of {held.people} users" in said


def test_more_events_epochs_and_a_champion_cost_more() -> None:
    one, larger = forecast(), forecast(1_800)
    assert all(larger.seconds[name] >= seconds for name, seconds in one.seconds.items())
    assert larger.seconds["train the towers, all"] == pytest.approx(2 * one.seconds["train the towers, all"], rel=0.2)
    longer = replace(SETTINGS, towers=replace(SETTINGS.towers, epochs=2 * SETTINGS.towers.epochs))
    assert forecast_of(*given_of(), longer, 100, "none").seconds["train the towers, all"] > one.seconds["train the towers, all"]
    assert set(forecast(champion="r1").seconds) - set(one.seconds) == {"measure r1"}
    assert sum(forecast(champion="r1", incremental=True).seconds.values()) < sum(forecast(champion="r1").seconds.values())
    assert all(seconds >= 0 for seconds in one.seconds.values())


def test_slates_from_impressions_are_replayed_and_a_second_ranker_is_trained() -> None:
    (plain, held), asked = given_of(), range(200)
    told = [
        Interaction(f"s{n}-{at}", "u", f"i{at}", 10**9 + n, SHOWN, None, None, f"r{n}" if n % 2 else None, at)
        for n in asked
        for at in range(3)
    ]
    _, shown = EventFrame.of([*told, Interaction("end", "u", "i0", 10**10, "view")]).split(SHOWN)
    one, more = (forecast_of(part, held, SETTINGS, 100, "none").seconds for part in (plain, replace(plain, shown=shown)))
    assert more["replay"] - one["replay"] == pytest.approx(REPLAY_S * 60, abs=0.11), "the newer part of 200 slates"
    assert more["train the ranker"] > 2 * one["train the ranker"]
    few = replace(SETTINGS, shown_slates=10)
    limited = forecast_of(replace(plain, shown=shown), held, few, 100, "none").seconds
    assert limited["replay"] - one["replay"] == pytest.approx(REPLAY_S * 10, abs=0.11)


PARTS = st.dictionaries(st.sampled_from(["read", "towers", "replay", "export"]), st.floats(0, 100), min_size=1)


@given(PARTS, st.lists(st.tuples(st.sampled_from(["towers", "replay", "export", "other"]), st.integers(0, 10)), max_size=20))
def test_the_share_of_the_whole_never_falls_and_ends_at_one(parts: dict[str, float], steps: list[tuple[str, int]]) -> None:
    now = 0.0
    whole, before = Whole(lambda: now), 0.0
    whole.expect(parts)
    for part, done in steps:
        now += 1.0
        whole.at(part, done, 10)
        assert before <= whole.share <= 1.0 + 1e-9
        assert whole.left_s() >= -1e-6
        assert whole.text()
        before = whole.share
    if whole.known:
        whole.at(list(parts)[-1], 10, 10)
        assert whole.share == pytest.approx(1.0)


def test_the_time_left_follows_the_pace() -> None:
    now = 0.0
    whole = Whole(lambda: now)
    whole.expect({"towers": 60.0, "export": 60.0})
    assert whole.left_s() == 120.0
    now = 100.0
    whole.at("towers", 1, 2)
    assert whole.left_s() == pytest.approx(300.0), "a quarter took 100 s"
    assert whole.text() == "25 % of all, about 5 min left"


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_and_bars_show_the_whole(terminal: bool) -> None:
    now, out = 0.0, io.StringIO()
    with progress(Console(file=out, force_terminal=terminal, width=120), lambda: now) as report:
        report("read", 0, 1)
        report.expect({"towers": 60.0, "export": 60.0})
        now = 20.0
        report("towers", 1, 2)
    assert "25 % of all" in out.getvalue()


def test_an_interrupted_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.trainer.train_and_judge", interrupted)
    data = write_dataset(tmp_path / "data", *corpus())
    asked = [str(data), "--out", str(tmp_path / "releases"), "--cache", str(tmp_path), "--queries", "50"]
    for more, said in (([], "with --checkpoints FOLDER"), (["--checkpoints", str(tmp_path / "c")], "the newest checkpoint")):
        ran = CliRunner().invoke(train_command, [*asked, *more])
        assert ran.exit_code == INTERRUPTED
        assert "interrupted: " in ran.stderr
        assert said in ran.stderr
        assert "expected: " in ran.stderr
        assert "the gate: " in ran.stderr
