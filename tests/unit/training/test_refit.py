"""After the gate a release learns from the events that were held out; it is judged against the champion of the moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from learning_corpus import corpus, write_dataset
from ranked_figures import figures

from models.release.release import Release, list_releases
from schemas.records import Interaction, Item
from training import trainer
from training.cli.train import train_command
from training.evaluation.bounds import STANDARD, Bounds
from training.evaluation.evaluate import Figures
from training.release.learned import Learned
from training.release.parity import Parity
from training.release.refitted import refitted

NEW = 400
FIT = Parity(1e-6, 0, 0, 0, 100, 1.0, 40)
Now = Callable[[str], str]


def grown() -> tuple[list[Item], list[Interaction]]:
    """The corpus of the release, and later likes by new users of its colours, which it has not seen."""
    items, events = corpus()
    rng, last = np.random.default_rng(3), events[-1].event_time
    for n in range(NEW):
        user = int(rng.integers(60))
        of_colour = np.flatnonzero(np.arange(len(items)) % 3 == user % 3)
        item = f"i{rng.choice(of_colour)}"
        events.append(Interaction(f"n{n}", f"u{user}", item, last + 60_000 * (n + 1), "like"))
    return items, events


@pytest.fixture
def train(learned: Learned, tmp_path: Path, vectors: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the command; only the first training was done before, all that follows it happens here."""
    data = write_dataset(tmp_path / "data", *grown())
    shift = 1_600_000_000_000
    earlier = replace(learned, manifest=replace(learned.manifest, trained_until_ms=learned.manifest.trained_until_ms + shift))
    monkeypatch.setattr(trainer, "train_release", lambda *_: earlier)
    (settings := tmp_path / "settings.json").write_text(
        json.dumps({"towers": {"dimensions": 16, "blocks": 1, "epochs": 4, "batch": 8, "rate": 0.01}, "neighbours": 16})
    )

    def run(*more: str, now: Now | None = None, against: str = "none") -> dict[str, Any]:
        at = ["--out", str(tmp_path / "releases"), "--cache", str(vectors.parent), "--settings", str(settings)]
        options = [str(data), *at, "--against", against, "--rank-ms", "10000", "--holdout", "0.2", "--queries", "100", *more]
        options += ["--follow"] if now is not None else []
        ran = CliRunner().invoke(train_command, [*options, "--json"], obj=now, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return dict(json.loads(ran.stdout.strip().splitlines()[-1]))

    return run


def scrambled(learned: Learned, root: Path, until_ms: int) -> str:
    """A release that retrieves at random, trained until then, promoted while another one trains."""
    rng = np.random.default_rng(0)
    arrays = dict(learned.arrays)
    for name in ("item_vectors.npy", "ease_weight.npy", "text.npy", "image.npy"):
        arrays[name] = rng.permutation(arrays[name])
    manifest = replace(learned.manifest, trained_until_ms=until_ms, name="20260101")
    return replace(learned, arrays=arrays, manifest=manifest).write(root, {"gate": {"passed": True}}).name


def test_a_release_that_passed_is_refitted_on_all_events(
    train: Callable[..., dict[str, Any]], learned: Learned, tmp_path: Path
) -> None:
    made = train(against=scrambled(learned, tmp_path / "releases", 0))
    assert made["gate"]["passed"], made["gate"]["reasons"]
    refit = made["refit"]
    assert (refit["published"], refit["reasons"]) == (True, [])
    events = grown()[1]
    assert (refit["events"], refit["added_events"]) == (len(events), len(events) - 900)
    assert refit["parity"]["top10_differing"] == 0
    assert refit["parity"]["requests"] > 0
    published = Release.open(tmp_path / "releases" / made["release"]).manifest
    assert published.trained_events == len(events)
    assert published.trained_until_ms == refit["until_ms"] > refit["judged_until_ms"]
    assert published.metrics["refit"]["added_events"] == refit["added_events"]
    assert "rank_p99_ms" not in published.metrics["refit"]["parity"], "timings would change its name"
    judged = Release.open(tmp_path / "releases" / published.metrics["refit"]["of"]).manifest
    assert judged.trained_until_ms == refit["judged_until_ms"]
    assert judged.metrics["gate"] == published.metrics["gate"], "the verdict is about the judged one"
    assert judged.files["ranker.onnx"] == published.files["ranker.onnx"]
    assert judged.files["item_vectors.npy"] != published.files["item_vectors.npy"]
    # nothing is newer than the champion now: settings are compared with what was judged, as both learn from the same events
    again = train(against=made["release"])
    assert (again["against"], again["measured_against"]) == (made["release"], judged.name)
    assert again["gate"]["ndcg@10"] == again["gate"]["against"], "here it is the same release"
    assert "refit" not in again, "what is refused is not refitted"


def test_without_refit_the_judged_release_is_published(
    train: Callable[..., dict[str, Any]], learned: Learned, tmp_path: Path
) -> None:
    worse = scrambled(learned, tmp_path / "releases", 0)
    made = train("--no-refit", against=worse)
    assert made["gate"]["passed"]
    assert "refit" not in made
    assert {manifest.name for manifest in list_releases(tmp_path / "releases")} == {worse, made["release"]}


def test_it_is_judged_against_a_release_promoted_during_the_training(
    train: Callable[..., dict[str, Any]], learned: Learned, tmp_path: Path
) -> None:
    root = tmp_path / "releases"
    worse = scrambled(learned, root, 0)
    asked: list[str] = []

    def now(before: str) -> str:
        asked.append(before)
        return worse

    made = train(now=now)
    assert made["gate"]["passed"], made["gate"]["reasons"]
    assert (made["against"], made["champion_before"]) == (worse, "none")
    assert asked == ["none", worse, worse], "asked before the refit and after it"
    assert 0 < made["gate"]["against"] < made["gate"]["ndcg@10"]
    assert Release.open(root / made["release"]).manifest.parent == worse, "so that it can be promoted"
    assert made["refit"]["published"]


def test_a_promotion_during_the_refit_is_noticed_and_an_equal_release_not_replaced(
    train: Callable[..., dict[str, Any]], learned: Learned, tmp_path: Path
) -> None:
    root = tmp_path / "releases"
    equal = replace(learned, manifest=replace(learned.manifest, name="20260102")).write(root, {"gate": {"passed": True}}).name
    worse = scrambled(learned, root, 0)
    names = iter([worse, equal, equal])
    made = train(now=lambda _: next(names), against=worse)
    assert not made["gate"]["passed"]
    assert (made["against"], made["champion_before"]) == (equal, worse)
    assert made["gate"]["ndcg@10"] == made["gate"]["against"]
    assert "not better beyond noise" in made["gate"]["reasons"][0]
    manifest = Release.open(root / made["release"]).manifest
    assert "refit" not in manifest.metrics, "what is refused stays as judged"


def test_a_champion_that_learned_from_the_gates_events_is_not_queried_on_them(
    train: Callable[..., dict[str, Any]], learned: Learned, tmp_path: Path
) -> None:
    worse = scrambled(learned, tmp_path / "releases", 10**15)
    made = train(now=lambda _: worse)
    assert not made["gate"]["passed"]
    assert made["against"] == worse
    assert made["gate"]["reasons"][0].startswith(f"{worse} was promoted during this training, and the events since")


@pytest.mark.parametrize(
    ("parity", "size", "ranks", "reason"),
    [
        (FIT, 4_096.0, [0] * 60, None),
        (replace(FIT, differing=1), 4_096.0, [0] * 60, "get another first 10"),
        (replace(FIT, rank_p99_ms=200.0), 4_096.0, [0] * 60, "ranking takes"),
        (FIT, 1e-6, [0] * 60, "the release holds"),
        (FIT, 4_096.0, [9] * 60, "although it learned from them"),
    ],
)
def test_a_refit_that_is_not_fit_is_not_published(
    learned: Learned, parity: Parity, size: float, ranks: list[int], reason: str | None
) -> None:
    bounds: Bounds = replace(STANDARD, size_mb=size)
    before: Figures = figures([0] * 60, people=60)
    found = refitted(learned, learned, before, figures(ranks, people=60), parity, bounds)
    assert bool(found.reasons) == (reason is not None)
    assert reason is None or reason in found.reasons[0]
    assert found.to_json()["published"] == (reason is None)
