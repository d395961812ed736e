"""An existing release is measured on events outside its training, with the same figures as at the gate."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from learning_corpus import corpus

from schemas.errors import BadDataset, ConfigError, ReleaseRejected
from schemas.records import Interaction
from training.cli.evaluate import evaluate_command
from training.cli.train import train_command
from training.evaluation.bounds import STANDARD
from training.evaluation.existing import newer_share, seen_events
from training.evaluation.measurement import Measurement
from training.evaluation.report import html_report
from training.release.learned import Learned

AGES_MS = 10**12


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(-1, 20), st.floats(0, 1))
def test_what_is_asked_is_newer_than_what_was_learned(times: list[int], until_ms: int, share: float) -> None:
    events = [Interaction(f"e{n}", "u", "i", time) for n, time in enumerate(sorted(times))]
    newer = [event for event in events if event.event_time > until_ms]
    if newer:
        assert events[int(len(events) * newer_share(events, until_ms, "r")) :] == newer
    else:
        with pytest.raises(BadDataset, match="no event is newer"):
            newer_share(events, until_ms, "r")
    learned = [event for event in events[int(len(events) * share) :] if event.event_time <= until_ms]
    assert seen_events(events, share, until_ms, "r", allowed=True) == len(learned)
    if learned:
        with pytest.raises(ConfigError, match="--seen"):
            seen_events(events, share, until_ms, "r", allowed=False)
    else:
        assert seen_events(events, share, until_ms, "r", allowed=False) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The corpus as a dataset folder; the release was trained on its first 720 events."""
    items, events = corpus()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "items.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in items))
    moved = [replace(event, event_time=event.event_time + AGES_MS) for event in events]
    (folder / "events.jsonl").write_text("".join(json.dumps(asdict(event)) + "\n" for event in moved))
    return folder


@pytest.fixture
def release(learned: Learned, tmp_path: Path) -> Path:
    until = corpus()[1][719].event_time + AGES_MS
    made = replace(learned, manifest=replace(learned.manifest, trained_until_ms=until))
    return made.write(tmp_path / "home" / "releases", {})


@pytest.fixture
def cached(vectors: Path) -> str:
    """The option `--cache`."""
    return f"--cache={vectors.parent}"


def asked(data: Path, *options: str) -> Result:
    return CliRunner().invoke(evaluate_command, [str(data), "--queries", "20", "--json", *options])


def test_a_release_is_measured_without_training(data: Path, release: Path, cached: str, tmp_path: Path) -> None:
    saved, page = tmp_path / "m.json", tmp_path / "p.html"
    made = asked(data, cached, "--release", str(release), "--before", "--save", str(saved), "--report", str(page))
    assert made.exit_code == 0, made.output
    said: dict[str, Any] = json.loads(made.stdout)
    assert said["release"] == release.name
    assert said["training_seconds"] == {}
    assert (said["seen_events"], said["queries"]) == (0, 20)
    assert "warning" not in said
    assert set(said["calibration"]) >= {"positive"}
    assert said["before"]["queries"] == said["queries"]
    kept = Measurement.load(saved)
    assert (kept.release, kept.calibration) == (release.name, said["calibration"])
    assert release.name in page.read_text()
    for head in said["calibration"].values():
        parts = head["segments"]
        assert set(parts) == {name for name, part in said["segments"].items() if part["queries"]}
        assert parts["all"]["ece"] == head["ece"]
        for area in ("auc", "gauc"):
            assert (parts["all"][area] or [None])[0] == head[area]
            assert all(low <= mean <= high for mean, low, high in (part[area] for part in parts.values() if part[area]))
    earlier = replace(kept, calibration={name: {**said, "segments": {}} for name, said in kept.calibration.items()})
    assert "By segment" in html_report([kept])
    for head in earlier.calibration.values():
        del head["segments"]  # as it was saved before there were any
    earlier.save(saved)
    assert "By segment" not in html_report([Measurement.load(saved)])
    named = CliRunner().invoke(
        evaluate_command,
        [str(data), "--queries", "20", "--json", cached, "--release", release.name],
        env={"RIFFLE_HOME": str(tmp_path / "home")},
    )
    assert json.loads(named.stdout)["ndcg@10"] == said["ndcg@10"], "by its name it is the same"


def test_what_it_learned_is_asked_about_only_when_told(data: Path, release: Path, cached: str, tmp_path: Path) -> None:
    refused = asked(data, "--release", str(release), "--share", "0.7")
    assert isinstance(refused.exception, ConfigError)
    assert "--seen" in refused.exception.message
    told = asked(data, cached, "--release", str(release), "--share", "0.7", "--seen")
    assert told.exit_code == 0, told.output
    said = json.loads(told.stdout)
    assert said["seen_events"] == 720 - 630
    assert "was trained on 90" in said["warning"]
    for options, error in (
        (("--quick",), ConfigError),
        (("--parity", "5"), ConfigError),
        (("--no-train",), ConfigError),
        (("--ranker", "mmoe"), ConfigError),
    ):
        assert isinstance(asked(data, "--release", str(release), *options).exception, error), options
    missing = asked(data, "--release", "20260131-none", "--releases", str(tmp_path / "other"))
    assert isinstance(missing.exception, ReleaseRejected)
    assert "other" in missing.exception.message


def test_options_of_a_release_that_exists_need_one(data: Path, tmp_path: Path) -> None:
    for options in (("--seen",), ("--releases", str(tmp_path))):
        refused = asked(data, *options)
        assert isinstance(refused.exception, ConfigError), options
        assert refused.exception.field == options[0].removeprefix("--")
        assert "--release" in refused.exception.message


def test_training_does_not_ask_fewer_queries_than_the_gate_needs(data: Path) -> None:
    refused = CliRunner().invoke(train_command, [str(data), "--queries", str(STANDARD.queries - 1)])
    assert refused.exit_code == 2
    assert "--queries" in refused.output
