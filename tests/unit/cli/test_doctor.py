"""`riffle doctor` advises on a worker that is not ready by what it is doing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agents.cli import doctor
from agents.cli.states import recovery_of, restarts_of, starting_of
from agents.processes import supervisor_daemon
from agents.supervisor import History, state_file
from schemas.settings import Settings

RESTORING = {"restoring": [1], "catalogue": "the broadcast topics are still being read"}
RECOVERY = [
    {"table": "users", "partition": 1, "restored": 250, "of": 1_000},
    {"table": "covisits", "partition": 0},
]


def facts(**given: Any) -> dict[str, Any]:
    usual = {"name": "worker", "pid": 7, "address": "http://a", "ready": False, "reasons": {}, "warnings": {}, "refused": {}}
    return {**usual, "recovery": [], **given}


@pytest.mark.parametrize(
    ("given", "said", "up"),
    [
        ({"reasons": RESTORING, "recovery": RECOVERY}, "recovering, wait: restoring: [1]; catalogue: ", False),
        ({"reasons": RESTORING, "recovery": RECOVERY}, "(users-1 25 % of 1,000 records, covisits-0 not begun)", False),
        ({"reasons": {"partitions": "no partition is assigned yet"}}, "recovering, wait: partitions: no partition", False),
        ({"reasons": {"web": "does not answer"}}, "web: does not answer; its process 7 runs", False),
        ({"reasons": {**RESTORING, "broker": "no Kafka"}}, "broker: no Kafka", False),
        ({"reasons": {"web": "does not answer"}, "pid": None}, "web: does not answer; run `riffle up`", True),
    ],
)
def test_what_a_worker_needs_depends_on_what_it_is_doing(tmp_path: Path, given: dict[str, Any], said: str, up: bool) -> None:
    (check,) = doctor._worker(Settings(home=tmp_path), facts(**given))
    assert said in check.line()
    assert check.line().startswith("BAD ")
    assert ("riffle up" in check.line()) == up


def test_a_worker_that_restores_nothing_has_no_recovery() -> None:
    assert recovery_of(facts()) == ""
    assert recovery_of({"name": "ranking"}) == ""


NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("history", "said"),
    [
        (History(), ""),
        (History(ended_at=NOW_MS, next_try_at=NOW_MS + 7_000), "next try in 7 s"),
        (History(ended_at=NOW_MS, next_try_at=NOW_MS - 70_000), "next try now"),
        (History(doing="it reads its log", doing_since=NOW_MS - 77_000), "it is being started for 77 s: it reads its log"),
    ],
)
def test_status_says_what_is_true_of_a_part_that_ended(history: History, said: str) -> None:
    assert starting_of(history, NOW_MS) == said
    assert restarts_of(history, NOW_MS).endswith(said)
    assert doctor._runs_well(history) == (said == "")


def test_a_part_that_the_supervisor_restarts_needs_nobody(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    settings.run_dir.mkdir()
    state_file(settings).write_text(json.dumps({"worker": History(doing="waiting for kafka").to_json()}))
    gone = facts(pid=None, reasons={"web": "does not answer"})
    (check,) = doctor._worker(settings, gone)
    assert "run `riffle up`" in check.advice, "nothing supervises it"
    supervisor_daemon(settings).record(os.getpid())
    (check,) = doctor._worker(settings, gone)
    assert "wait, the supervisor restarts it: it is being started for 0 s: waiting for kafka" in check.advice
    assert "riffle up" not in check.advice
