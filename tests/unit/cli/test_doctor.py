"""`riffle doctor` advises on a worker that is not ready by what it is doing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.cli import doctor
from agents.cli.states import recovery_of
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
