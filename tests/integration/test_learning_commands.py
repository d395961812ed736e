"""`riffle train`, `riffle release` and `riffle evaluate` as run from a shell."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from learning_corpus import POSITIVE, QUICK, contrary_corpus, corpus, write_dataset

from agents.cli import release
from models.archive.files import next_offsets
from models.archive.target import LocalFolder
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.announce import announced
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics
from training.data.corpus import open_corpus
from training.release.learned import Learned

pytestmark = pytest.mark.integration


def riffle(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from agents.cli import main; main()", *arguments],
        env={**os.environ, **settings.environment()},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def last_json(ran: subprocess.CompletedProcess[str]) -> Any:
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.strip().splitlines()[-1])


def shown_trainings(settings: Settings) -> Any:
    with urllib.request.urlopen(f"{settings.web}/v1/trainings", timeout=20) as response:
        return json.load(response)["trainings"]


def recommended(settings: Settings, user: str) -> Any:
    with urllib.request.urlopen(f"{settings.web}/v1/recommend/{user}?k=5&deadline_ms=10000", timeout=20) as response:
        return json.load(response)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "glass", *corpus())


def test_evaluate_trains_and_measures(dataset: Path, fresh: Settings, vectors: Path, tmp_path: Path) -> None:
    cache = ("--cache", str(vectors.parent), "--quick", "--json")
    plain = last_json(riffle(fresh, "evaluate", str(dataset), "--no-train", *cache))
    saved, page = tmp_path / "after.json", tmp_path / "page.html"
    written = ("--save", str(saved), "--report", str(page), "--parity", "20")
    trained = last_json(riffle(fresh, "evaluate", str(dataset), "--before", *written, *cache))
    for found in (plain, trained):
        assert {"ndcg@10", "hr@10", "recall@50", "mrr", "stages"} <= set(found)
        assert found["dataset"] == "glass"
        assert all(0 <= found[metric] <= 1 for metric in ("ndcg@10", "hr@10", "recall@50", "mrr"))
    assert plain["release"] == "none"
    assert trained["release"] != "none"
    assert trained["queries"] == plain["queries"] > 0
    assert trained["before"]["ndcg@10"] == plain["ndcg@10"]
    assert {"learned", "ease"} & set(trained["sources"])
    assert trained["segments"]["all"]["ndcg@10"][0] == pytest.approx(trained["ndcg@10"], abs=1e-4)
    assert trained["parity"]["requests"] == 20
    assert trained["parity"]["top10_differing"] == 0
    assert set(trained["calibration"]) >= {"positive"}
    assert "without a release" in page.read_text(encoding="utf-8")
    again = riffle(fresh, "report", str(saved), str(saved), "--out", str(page))
    assert again.returncode == 0, again.stderr


def test_from_the_archived_stream_to_a_release_that_serves_and_back(worker: Settings, tmp_path: Path) -> None:
    items, events = contrary_corpus()
    asyncio.run(produce_items(worker, items))
    tokens = asyncio.run(produce_events(worker, events))
    asyncio.run(produce_events(worker, events[:50]))  # an event that a producer repeats counts once
    target = LocalFolder(Path(worker.archive_target))

    def archived() -> bool:
        enough = all(next_offsets(target, "interactions").get(p, 0) > offset for p, offset in tokens.items())
        return enough and bool(next_offsets(target, "items"))

    assert wait_until(archived, 40)
    found = open_corpus(worker.archive_target, POSITIVE)
    assert sorted(map(str, map(asdict, found.items))) == sorted(map(str, map(asdict, items)))
    assert found.events == events

    (quick := tmp_path / "quick.json").write_text(json.dumps(QUICK))
    gate = ("--holdout", "0.3", "--queries", "200")
    how = ("--settings", str(quick), *gate, "--rank-ms", "10000")
    trained = last_json(riffle(worker, "train", "--positive", POSITIVE, *how, "--promote", "--json"))
    assert int(len(events) * 0.7) <= trained["events"] < len(events)
    assert trained["logged_slates"] == 0
    assert trained["gate"]["passed"], trained["gate"]["reasons"]
    name = trained["release"]
    assert (trained["champion"], trained["previous"], trained["served"]) == (name, "none", True)
    nothing = last_json(riffle(worker, "train", "--incremental", *gate, "--promote", "--json"))
    assert nothing == {"release": None, "skipped": "nothing_new", "new_events": 0, "needed": 50, "against": name}
    update, full = shown_trainings(worker)
    assert (update["state"], update["kind"], update["reasons"]) == ("skipped", "incremental", ["nothing_new"])
    assert (full["state"], full["kind"], full["release"], full["share"]) == ("accepted", "full", name, 1.0)
    assert full["parts"]
    assert 0 < full["elapsed_s"] < 300
    assert full["started_at"] < full["reported_at"] <= update["reported_at"]
    listed = last_json(riffle(worker, "release", "list", "--json"))
    judged = json.loads((worker.releases_dir / name / "manifest.json").read_text())["metrics"]["refit"]["of"]
    found_aliases = {row["release"]: (row["serving"], row["aliases"]) for row in listed}
    assert found_aliases == {name: (True, ["champion"]), judged: (False, [])}
    for user in ("u0", "u1", "u2"):
        slate = recommended(worker, user)
        assert (slate["release"], slate["degraded"], len(slate["items"])) == (name, [], 5)
    back = last_json(riffle(worker, "release", "rollback", "--json"))
    assert back == {"champion": "none", "previous": name, "served": True}
    assert recommended(worker, "u0")["release"] == "none"


def test_what_the_gate_refuses_is_not_promoted(fresh: Settings, learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(ensure_topics(fresh))
    for variable, value in fresh.environment().items():
        monkeypatch.setenv(variable, value)
    gate = {"passed": False, "reasons": ["only 6 queries"]}
    folder = learned.write(fresh.releases_dir, {"gate": gate})
    monkeypatch.setattr(release, "run_training", lambda *_: {"release": folder.name, "gate": gate})
    ran = CliRunner().invoke(release.train, ["--promote", "--json"], catch_exceptions=False)
    assert json.loads(ran.stdout) == {"release": folder.name, "gate": gate}
    assert asyncio.run(announced(fresh)) == {}
    refused = riffle(fresh, "release", "promote", folder.name)
    assert refused.returncode == 1
    assert "the gate refused" in refused.stderr


def test_training_on_nothing_says_what_is_wrong(fresh: Settings, tmp_path: Path) -> None:
    missing = riffle(fresh, "evaluate", str(tmp_path / "nowhere"))
    assert missing.returncode == 1
    assert "neither a dataset folder nor an archive" in missing.stderr
    (tmp_path / "empty").mkdir()
    empty = riffle(fresh, "train", str(tmp_path / "empty"))
    assert empty.returncode == 1
    assert "0 items and 0 events" in empty.stderr
