"""What `riffle train` reports of a training that runs in another process."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.cli import release, reporting
from agents.cli.reporting import Reported, progress_of, state_of
from schemas.settings import Settings
from schemas.trainings import TrainingProgress, decode_progress, encode_progress
from training.cli.progress import Reporter, Whole
from training.cli.written import EVERY_S, written


class Announced:
    """Takes the place of the thread that sends: notes what it would send first and last."""

    made: list[Announced]

    def __init__(self, _settings: Settings, newest: Any, _warn: Any) -> None:
        self.newest, self.sent = newest, list[TrainingProgress]()
        self.made.append(self)

    def start(self) -> None:
        self.sent.append(self.newest())

    def stop(self) -> None:
        self.sent.append(self.newest())


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[Announced]:
    Announced.made = []
    monkeypatch.setattr(reporting, "Announcer", Announced)
    return Announced.made


OUTSIDE = Settings(bootstrap="127.0.0.1:1")


def test_what_a_training_writes_is_what_is_reported(tmp_path: Path, announced: list[Announced]) -> None:
    path, clock = tmp_path / "progress.json", itertools.count(0.0, EVERY_S)
    reported = Reported(
        OUTSIDE, path, ["--incremental"], clock=itertools.count(5.0, 1.0).__next__, wall=lambda: 1_700_000_000.5
    )
    assert (reported.newest().part, reported.newest().share) == ("start", None)
    seen = []
    with written(path, Reporter(lambda *_: None, whole := Whole(lambda: 0.0)), lambda: next(clock)) as report:
        report("read", 0, 1)
        seen.append(reported.newest())
        report.expect({"towers": 30.0, "replay": 10.0})
        report("towers", 5, 10)
        seen.append(reported.newest())
        report("replay", 1, 2)
        seen.append(reported.newest())
    assert [(one.part, one.part_share, one.share) for one in seen] == [
        ("read", 0.0, None),
        ("towers", 0.5, 0.375),
        ("replay", 0.5, 0.875),
    ]
    assert seen[1].parts == (("towers", 30.0), ("replay", 10.0))
    assert seen[1].left_s == round(whole.left_s(), 1) or seen[1].left_s is not None
    assert seen[0].elapsed_s < seen[1].elapsed_s < seen[2].elapsed_s
    assert (seen[0].kind, seen[0].started_at) == ("incremental", 1_700_000_000_500)
    assert all(decode_progress(encode_progress(one)) == one for one in seen)
    path.write_text("{")
    assert replace(reported.newest(), elapsed_s=0.0) == replace(seen[-1], elapsed_s=0.0), "what cannot be read changes nothing"


def test_a_part_is_written_at_once_and_then_only_every_second(tmp_path: Path) -> None:
    path, now = tmp_path / "progress.json", 0.0
    with written(path, Reporter(lambda *_: None, Whole(lambda: 0.0)), lambda: now) as report:
        found = []
        for n in range(20):
            now = n * EVERY_S / 4
            report("towers" if n < 10 else "replay", n, 20)
            found.append(json.loads(path.read_text())["done"])
    assert found == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 10, 10, 10, 10, 14, 14, 14, 14, 18, 18]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_stops_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "gone" / "progress.json"
    with written(path, Reporter(lambda part, *_: said.append(part), Whole(lambda: 0.0))) as report:
        report("read", 0, 1)
        report("towers", 0, 1)
    assert said == ["read", "towers"]


@pytest.mark.parametrize(
    ("status", "facts", "state", "reasons"),
    [
        (0, {"gate": {"passed": True}, "release": "r"}, "accepted", ()),
        (0, {"gate": {"passed": False, "reasons": ["worse", "slow"]}, "release": "r"}, "refused", ("worse", "slow")),
        (0, {"release": None, "skipped": "nothing_new", "new_events": 0}, "skipped", ("nothing_new",)),
        (1, {"error": {"code": "too_little", "message": "3 events"}}, "failed", ("3 events",)),
        (137, {}, "failed", ("it ended with status 137",)),
        (130, {}, "interrupted", ()),
    ],
)
def test_how_it_ended(status: int, facts: dict[str, Any], state: str, reasons: tuple[str, ...]) -> None:
    found = replace(TrainingProgress("t", part="towers", share=0.5), **state_of(status, facts))
    assert (found.state, found.reasons) == (state, reasons)
    assert found.release == facts.get("release")
    assert found.share == (1.0 if state in {"accepted", "refused"} else 0.5)


def test_no_other_file_is_taken_for_progress() -> None:
    wrongs: list[dict[str, Any]] = [
        {},
        {"part": "x"},
        {"share": None, "left_s": None, "done": "x", "of": 1, "part": "x", "parts": []},
    ]
    for wrong in wrongs:
        with pytest.raises((ValueError, TypeError, KeyError)):
            progress_of(wrong)


def test_a_killed_training_is_reported_as_failed_and_a_home_that_is_not_up_has_nobody_to_report_to(
    tmp_path: Path, announced: list[Announced], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(release, "TRAIN", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    for settings in (replace(OUTSIDE, home=tmp_path), Settings(home=tmp_path)):
        with pytest.raises(SystemExit):
            release.run_training(settings, ["nowhere"])
    (one,) = announced
    first, last = one.sent
    assert (first.state, first.kind) == ("running", "full")
    assert last.state == "failed"
    assert "ended by SIGKILL" in last.reasons[0]
    assert capfd.readouterr().err.count("SIGKILL") == 2
