"""The commands that run the stack, on a real Kafka, Redis and worker: killed parts restart, and instances stay separate."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from interrupting import INTERRUPTIBLE

from agents.supervisor import histories
from schemas.settings import Settings
from streams.embedded.kafka import FENCED, FENCING, READING, EmbeddedKafka
from streams.embedded.process import riffle as command
from streams.embedded.process import wait_until

pytestmark = pytest.mark.integration

KEYS = ["bootstrap", "redis", "web", "release", "ready", "pids", "reasons", "warnings", "restarts", "processes", "left_over"]
PARTS = ["kafka", "redis", "worker", "encoder"]
SOON_S = 90.0
Riffle = Callable[..., subprocess.CompletedProcess[str]]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    """Return settings of an instance that shares nothing with the session's stack."""
    kafka, controller, redis, web = free_ports(4)
    return Settings(
        session_timeout_s=6.0,
        home=tmp_path / "home",
        kafka_port=kafka,
        controller_port=controller,
        redis_port=redis,
        web_port=web,
    ).resolved()


@pytest.fixture
def riffle(own: Settings) -> Iterator[Riffle]:
    """Run the command line in a separate process, with the `own` settings unless others are given."""

    def run(*arguments: str, settings: Settings = own, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments),
            env={**os.environ, **settings.environment(), **more},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )

    yield run
    run("down")


def status_of(riffle: Riffle, settings: Settings) -> dict[str, Any]:
    answer = riffle("status", "--json", settings=settings)
    assert answer.returncode == 0, answer.stderr
    facts = json.loads(answer.stdout.splitlines()[-1])
    assert list(facts) == KEYS
    assert list(facts["pids"]) == [*PARTS, "supervisor"]
    return dict(facts)


async def test_whatever_is_killed_comes_back_with_its_records(own: Settings, riffle: Riffle) -> None:
    first = riffle("up")
    assert first.returncode == 0, first.stderr
    before = status_of(riffle, own)
    assert before["ready"] is True
    assert (before["bootstrap"], before["redis"], before["web"]) == (own.bootstrap_servers, own.redis, own.web)
    producer = AIOKafkaProducer(bootstrap_servers=own.bootstrap_servers, acks="all")
    await producer.start()
    await producer.send_and_wait(own.topic("dead-letters"), b"kept", partition=0)
    await producer.stop()

    # the supervisor first, because it replaces a part at once
    for pid in reversed(before["pids"].values()):
        os.kill(pid, signal.SIGKILL)
    down = status_of(riffle, own)
    assert down["ready"] is False
    assert set(down["pids"].values()) == {None}

    second = riffle("up")
    assert second.returncode == 0, second.stderr
    after = status_of(riffle, own)
    assert after["ready"] is True
    assert not set(after["pids"].values()) & set(before["pids"].values())
    controller = own.logs_dir / "kafka-controller.log"
    assert FENCED in controller.read_text(), "the new broker took itself for the leader that the killed one was"
    third = riffle("up")
    assert third.returncode == 0
    assert "already running: Kafka, Redis, the worker, the encoder" in third.stderr
    assert "waiting for" not in third.stderr
    assert status_of(riffle, own)["pids"] == after["pids"]
    refused = riffle("up", settings=replace(own, deadline_ms=300, commit_interval_s=1.0))
    assert refused.returncode == 1
    assert "other settings (RIFFLE_COMMIT_INTERVAL_S, RIFFLE_DEADLINE_MS): `riffle down`, then `riffle up`" in refused.stderr
    assert status_of(riffle, own)["pids"] == after["pids"], "nothing is started, and nothing is stopped"
    changed = replace(own, kafka_port=free_ports(1)[0])
    joined = riffle("up", settings=changed)
    assert joined.returncode == 1, "it would be another instance's"
    assert "RIFFLE_KAFKA_PORT is now" in joined.stderr
    moved = replace(changed, redis_port=free_ports(1)[0], web_port=free_ports(1)[0])
    assert status_of(riffle, moved) == {**before, "pids": after["pids"], "processes": after["processes"]}, "what really runs"
    consumer = AIOKafkaConsumer(
        own.topic("dead-letters"), bootstrap_servers=own.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    assert (await consumer.getone()).value == b"kept"
    await consumer.stop()

    stopped = riffle("down")
    assert stopped.stdout.strip() == "stopped: the supervisor, the encoder, the worker, Redis, Kafka"
    assert riffle("down").stdout.strip() == "nothing was running"
    controller.unlink()
    assert riffle("up", "--no-worker").returncode == 0
    assert not controller.exists(), "after a clean stop nothing is to be written off"
    assert riffle("down").returncode == 0
    assert set(status_of(riffle, own)["pids"].values()) == {None}


def is_ready(riffle: Riffle, own: Settings) -> bool:
    return bool(status_of(riffle, own)["ready"])


def test_what_ends_by_itself_is_started_again_and_said(own: Settings, riffle: Riffle) -> None:
    nobody = "http://127.0.0.1:1"
    started = riffle("up", HTTP_PROXY=nobody, http_proxy=nobody, ALL_PROXY=nobody)
    assert started.returncode == 0, started.stderr
    for name in ("worker", "redis", "kafka"):
        pid = status_of(riffle, own)["pids"][name]
        os.kill(pid, signal.SIGKILL)
        said = set[str]()

        def restarted(name: str = name, said: set[str] = said) -> bool:
            history = histories(own)[name]
            said.add(history.doing)
            return history.restarts == 1

        assert wait_until(restarted, SOON_S)
        assert name != "kafka" or {FENCING, READING} <= said, "what a start waits for is shown while it waits"
        assert status_of(riffle, own)["pids"][name] not in {None, pid}
        found = status_of(riffle, own)["restarts"][name]
        assert (found["restarts"], found["exit"], found["why"]) == (1, -signal.SIGKILL, "ended by SIGKILL")
        assert found["next_try_at"] is None
        assert wait_until(lambda: is_ready(riffle, own), SOON_S)
    assert FENCED in (own.logs_dir / "kafka-controller.log").read_text(), "the killed broker is written off first"
    rows = [line for line in riffle("status").stdout.splitlines() if "restarts: 1, last ended at" in line]
    assert {row.split()[0] for row in rows} >= {"worker", "redis", "kafka"}
    asked = riffle("ask", "someone", "--json")
    assert asked.returncode == 0, asked.stderr
    before = status_of(riffle, own)
    os.kill(before["pids"]["supervisor"], signal.SIGKILL)
    assert "parts that end are not restarted" in riffle("status").stdout
    again = riffle("up")
    assert again.returncode == 0, again.stderr
    after = status_of(riffle, own)
    assert [after["pids"][name] for name in PARTS] == [before["pids"][name] for name in PARTS], "what runs is taken over"
    assert after["pids"]["supervisor"] not in {None, before["pids"]["supervisor"]}
    assert after["restarts"]["kafka"]["restarts"] == 1, "and its past"
    os.kill(after["pids"]["redis"], signal.SIGTERM)
    assert wait_until(lambda: status_of(riffle, own)["restarts"]["redis"]["restarts"] == 2, SOON_S)
    # another home on the same ports: no part of this one is reported as its own
    other = replace(own, home=own.home.parent / "other")
    foreign = status_of(riffle, other)
    assert (foreign["ready"], set(foreign["pids"].values())) == (False, {None})
    assert "a RIFFLE_HOME other than" in foreign["reasons"]["web"]
    assert riffle("doctor", settings=other).returncode == 1
    refused = riffle("ask", "someone", settings=other)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)
    assert f"Kafka on port {own.kafka_port} belongs to RIFFLE_HOME={own.home}" in refused.stderr
    assert "are in use by other programs" in riffle("up", settings=other).stderr
    # a hanging broker accepts connections but does not answer
    kafka = after["pids"]["kafka"]
    os.kill(kafka, signal.SIGSTOP)
    try:
        assert not is_ready(riffle, own)
        assert "kafka" in status_of(riffle, own)["reasons"]
    finally:
        os.kill(kafka, signal.SIGCONT)


def test_a_worker_that_can_never_start_is_said_and_not_tried_in_a_hot_loop(own: Settings, riffle: Riffle) -> None:
    wrong = replace(own, web_host="203.0.113.1", http_without_tokens="yes")
    started = riffle("up", settings=wrong)
    assert started.returncode == 1
    assert "the worker ended" in started.stderr
    assert "still running: Kafka, Redis" in started.stderr
    found = status_of(riffle, wrong)
    assert found["ready"] is False
    worker = found["restarts"]["worker"]
    assert worker["exit"] not in {None, 0}
    assert worker["in_row"] >= 2
    assert worker["in_row"] - 1 <= worker["restarts"] <= 6, "each wait is twice the one before"
    assert "BAD  worker runs well" in riffle("doctor", settings=wrong).stdout
    mended = riffle("up")
    assert mended.returncode == 0, mended.stderr
    assert is_ready(riffle, own)


def test_a_home_of_any_name_will_do_and_up_that_is_cut_off_says_what_runs(own: Settings, riffle: Riffle) -> None:
    odd = replace(own, home=own.home.parent / "a,b = #c\\d é日 [x]*%41")
    environment = {**os.environ, **odd.environment()}
    # a shell makes its background jobs ignore SIGINT, and these tests may be one
    with subprocess.Popen([*INTERRUPTIBLE, *command("up")], env=environment, stderr=subprocess.PIPE, text=True) as cut:
        # not read from `riffle status`: when that command has started, all parts may already run
        assert wait_until(lambda: EmbeddedKafka(odd).daemon.pid() is not None, SOON_S)
        cut.send_signal(signal.SIGINT)
        _, said = cut.communicate(timeout=60)
    try:
        assert cut.returncode == 130
        assert "Traceback" not in said
        assert said.splitlines()[-1].startswith("riffle: interrupted; still running: Kafka")
        assert status_of(riffle, odd)["pids"]["supervisor"] is None, "nothing more is started"
        assert "parts that end are not restarted" in riffle("status", settings=odd).stdout
        assert riffle("up", settings=odd).returncode == 0
        assert is_ready(riffle, odd)
        assert [path.name for path in own.home.parent.iterdir()] == [odd.home.name], "no folder beside it"
    finally:
        assert riffle("down", settings=odd).returncode == 0


@pytest.mark.parametrize("home", ["a\nb", "a\x1bb", "a\udcffb"])
def test_a_home_that_cannot_be_is_one_sentence_before_anything_is_written(own: Settings, riffle: Riffle, home: str) -> None:
    refused = riffle("up", RIFFLE_HOME=str(own.home.parent / home))
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == ["riffle: RIFFLE_HOME must be UTF-8 text without control characters"]
    assert list(own.home.parent.iterdir()) == []


def test_two_instances_run_side_by_side(stack: Settings, own: Settings, riffle: Riffle) -> None:
    here = status_of(riffle, stack)
    started = riffle("up", "--no-worker")
    assert started.returncode == 0, started.stderr
    there = status_of(riffle, own)
    assert there["pids"]["worker"] is None
    assert there["pids"]["encoder"] is None
    assert None not in (there["pids"]["kafka"], there["pids"]["redis"])
    assert there["pids"]["kafka"] != here["pids"]["kafka"]
    riffle("down")
    assert status_of(riffle, stack)["pids"] == here["pids"]


@pytest.mark.parametrize(
    ("field", "variable"),
    [
        ("kafka_port", "RIFFLE_KAFKA_PORT"),
        ("controller_port", "RIFFLE_CONTROLLER_PORT"),
        ("redis_port", "RIFFLE_REDIS_PORT"),
        ("web_port", "RIFFLE_WEB_PORT"),
    ],
)
def test_a_taken_port_is_one_clear_line(own: Settings, riffle: Riffle, field: str, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        answer = riffle("up", settings=replace(own, **{field: taken.getsockname()[1]}))
    assert answer.returncode == 1
    assert variable in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert "Traceback" not in answer.stderr
    assert set(status_of(riffle, own)["pids"].values()) == {None}, "nothing is started before every port is known to be free"


def test_an_unknown_command_is_a_usage_error(riffle: Riffle) -> None:
    assert riffle("no-such-command").returncode == 2
