"""`riffle up --workers N`: several workers of one home, which share its partitions, and stop and start one by one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.embedded.process import riffle as command
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_events, produce_items

pytestmark = pytest.mark.integration

SOON_S = 120.0
PEOPLE = [f"u{n}" for n in range(12)]
SEEN = {f"i{n}" for n in range(3)}
Riffle = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        kafka_port=free_port(),
        controller_port=free_port(),
        redis_port=free_port(),
        web_port=free_port(),
        rank_port=free_port(),
        session_timeout_s=6.0,
        encoder="off",
    ).resolved()


@pytest.fixture
def riffle(own: Settings) -> Iterator[Riffle]:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **own.environment()}
        return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, timeout=400, check=False)

    yield run
    run("down")


def status_of(riffle: Riffle) -> dict[str, Any]:
    answer = riffle("status", "--json")
    assert answer.returncode == 0, answer.stderr
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def workers_of(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {process["name"]: process for process in facts["processes"] if process["role"] == "worker"}


def shared(riffle: Riffle, own: Settings, count: int) -> bool:
    """Whether `count` workers are ready, own all partitions among them, and copy each other's."""
    facts = status_of(riffle)
    workers = workers_of(facts)
    owned = [number for worker in workers.values() for number in worker["partitions"]]
    copies = [number for worker in workers.values() for number in worker["standbys"]]
    every = list(range(own.partitions))
    settled = sorted(owned) == every and sorted(copies) == (every if count > 1 else [])
    return facts["ready"] and len(workers) == count and settled and all(worker["partitions"] for worker in workers.values())


def slate(web: str, user: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{web}/v1/recommend/{user}?k=5&deadline_ms=10000", timeout=20) as response:
            return dict(json.load(response))
    except (urllib.error.URLError, ConnectionError) as exc:
        return {"error": repr(exc)}


def answers_for_all(web: str) -> bool:
    """Whether a worker answers for all users with what they have seen, from owners' rows only."""
    slates = [slate(web, user) for user in PEOPLE]
    if not all(made.get("degraded") == [] for made in slates):
        return False
    assert all(len(made["items"]) == 5 for made in slates)
    assert not any(SEEN & {item["item_id"] for item in made["items"]} for made in slates)
    return True


async def test_a_home_grows_and_shrinks_and_keeps_what_users_did(own: Settings, riffle: Riffle) -> None:
    started = riffle("up", "--workers", "2")
    assert started.returncode == 0, started.stderr
    await produce_items(own, [Item(f"i{n}", f"thing {n}") for n in range(30)])
    events = [
        Interaction(f"{user}-{item}", user, item, 1_000_000 + n) for n, item in enumerate(sorted(SEEN)) for user in PEOPLE
    ]
    await produce_events(own, events)

    assert wait_until(lambda: shared(riffle, own, 2), SOON_S, 0.5)
    facts = status_of(riffle)
    workers = workers_of(facts)
    first, second = workers["worker"], workers["worker-2"]
    assert first["address"] == own.web == facts["web"]
    assert f"HTTP   {second['address']} (worker 2)" in started.stderr
    assert second["address"] != first["address"]
    assert facts["pids"]["worker-2"] == second["pid"] != first["pid"]
    for web in (first["address"], second["address"]):
        assert wait_until(lambda web=web: answers_for_all(web), SOON_S, 0.5)  # type: ignore[misc]
    log = own.home / "workers" / "2" / "logs" / "worker.log"
    assert log.stat().st_size > 0, "each has its own log"
    assert (own.home / "workers" / "2" / "data" / "tables" / "users").is_dir(), "and its own rows"
    asked = json.loads(riffle("tables", "--json").stdout.splitlines()[-1])["tables"]
    assert {facts["worker"] for facts in asked} == {first["address"], second["address"]}

    refused = riffle("worker")
    assert refused.returncode == 1
    assert "another worker runs on RIFFLE_HOME" in refused.stderr
    assert "Traceback" not in refused.stderr

    os.kill(second["pid"], signal.SIGKILL)
    assert wait_until(lambda: status_of(riffle)["restarts"]["worker-2"]["restarts"] == 1, SOON_S, 0.5)
    assert wait_until(lambda: shared(riffle, own, 2), SOON_S, 0.5), "the supervisor starts it again at its address"
    assert workers_of(status_of(riffle))["worker-2"]["address"] == second["address"]
    assert workers_of(status_of(riffle))["worker"]["pid"] == first["pid"]

    more = riffle("up", "--workers", "3")
    assert more.returncode == 0, more.stderr
    assert "already running: Kafka, Redis, the worker, worker 2" in more.stderr
    assert wait_until(lambda: shared(riffle, own, 3), SOON_S, 0.5)
    assert status_of(riffle)["pids"]["worker"] == first["pid"], "those that run are left alone"

    fewer = riffle("up", "--workers", "1")
    assert fewer.returncode == 0, fewer.stderr
    assert "stopped: worker 3, worker 2; what they have on disk is kept" in fewer.stderr
    assert wait_until(lambda: shared(riffle, own, 1), SOON_S, 0.5)
    assert wait_until(lambda: answers_for_all(own.web), SOON_S, 0.5)
    assert list(status_of(riffle)["left_over"]) == ["worker-2", "worker-3"]
    assert "`riffle up --workers 3` runs it" in riffle("status").stdout
    told = riffle("doctor")
    assert told.returncode == 0, told.stdout
    assert "WARN data of worker 2: it does not run" in told.stdout
    for number in (2, 3):
        ended = (own.home / "workers" / str(number) / "logs" / "worker.log").read_text()
        assert "Traceback" not in ended, "it was not killed, and stopped without an error"
    kept = riffle("up")
    assert kept.returncode == 0
    assert shared(riffle, own, 1), "without a number what runs stays"

    back = riffle("up", "--workers", "2")
    assert back.returncode == 0, back.stderr
    assert wait_until(lambda: shared(riffle, own, 2), SOON_S, 0.5)
    for worker in workers_of(status_of(riffle)).values():
        assert wait_until(lambda web=worker["address"]: answers_for_all(web), SOON_S, 0.5)  # type: ignore[misc]
    assert list(status_of(riffle)["left_over"]) == ["worker-3"]
    stopped = riffle("down")
    assert stopped.stdout.strip() == "stopped: the supervisor, worker 2, the worker, Redis, Kafka"
    assert set(status_of(riffle)["pids"].values()) == {None}


def test_contradictions_are_usage_errors(riffle: Riffle) -> None:
    for arguments in (
        ["--no-worker", "--workers", "2"],
        ["--workers", "0"],
        ["--workers", "x"],
        ["--no-worker", "--ranking", "1"],
    ):
        assert riffle("up", *arguments).returncode == 2


def test_ranking_processes_are_parts_of_the_stack(own: Settings, riffle: Riffle) -> None:
    started = riffle("up", "--workers", "1", "--ranking", "2")
    assert started.returncode == 0, started.stderr
    facts = status_of(riffle)
    ranking = [process for process in facts["processes"] if process["role"] == "ranking"]
    assert [process["name"] for process in ranking] == ["ranking", "ranking-2"]
    assert all(process["ready"] for process in ranking), ranking
    assert len({process["address"] for process in facts["processes"] if process["address"]}) == 5, "each has its own"
    assert facts["ready"] is True
    warned = riffle("status").stdout
    assert "other settings" not in warned, "the shell need not say that the workers leave the ranking to them"

    os.kill(ranking[1]["pid"], signal.SIGKILL)
    assert wait_until(lambda: status_of(riffle)["restarts"]["ranking-2"]["restarts"] == 1, SOON_S, 0.5)
    again = riffle("up")
    assert again.returncode == 0, again.stderr
    assert "already running: Kafka, Redis, ranking process 1" in again.stderr
    after = status_of(riffle)
    assert after["pids"]["worker"] == facts["pids"]["worker"]
    assert after["pids"]["ranking"] == facts["pids"]["ranking"]

    fewer = riffle("up", "--ranking", "1")
    assert fewer.returncode == 0, fewer.stderr
    assert "stopped: ranking process 2" in fewer.stderr
    refused = riffle("up", "--ranking", "0")
    assert refused.returncode == 1, "workers that hand their requests over must be restarted"
    assert "workers must start anew: `riffle down`, then this command" in refused.stderr
    assert status_of(riffle)["pids"]["ranking"] == facts["pids"]["ranking"], "and nothing was stopped"
    assert riffle("down").stdout.strip() == "stopped: the supervisor, the worker, ranking process 1, Redis, Kafka"
    local = riffle("up")
    assert local.returncode == 0, local.stderr
    assert [process["name"] for process in status_of(riffle)["processes"]] == [
        "kafka",
        "redis",
        "worker",
        "encoder",
        "supervisor",
    ]
