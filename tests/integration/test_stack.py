"""The commands that run the stack, on a real Kafka, Redis and worker: what is killed comes back, and instances do not mix."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from streams.embedded.kafka import FENCED
from streams.settings import Settings

pytestmark = pytest.mark.integration

KEYS = ["bootstrap", "redis", "web", "release", "ready", "pids"]
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
    """Settings of an instance that shares nothing with the session's stack."""
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
    """The command line in a process of its own, with `own` settings unless others are given."""

    def run(*arguments: str, settings: Settings = own) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from agents.cli import main; main()", *arguments],
            env={**os.environ, **settings.environment()},
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
    assert list(facts["pids"]) == ["kafka", "redis", "worker", "encoder"]
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

    for pid in before["pids"].values():
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
    assert status_of(riffle, own)["pids"] == after["pids"]
    changed = replace(own, kafka_port=free_ports(1)[0])
    joined = riffle("up", settings=changed)
    assert joined.returncode == 1, "it would be another instance's"
    assert "RIFFLE_KAFKA_PORT now says" in joined.stderr
    moved = replace(changed, redis_port=free_ports(1)[0], web_port=free_ports(1)[0])
    assert status_of(riffle, moved) == {**before, "pids": after["pids"]}, "what really runs"
    consumer = AIOKafkaConsumer(
        own.topic("dead-letters"), bootstrap_servers=own.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    assert (await consumer.getone()).value == b"kept"
    await consumer.stop()

    stopped = riffle("down")
    assert stopped.stdout.strip() == "stopped: the encoder, the worker, Redis, Kafka"
    assert riffle("down").stdout.strip() == "nothing was running"
    controller.unlink()
    assert riffle("up", "--no-worker").returncode == 0
    assert not controller.exists(), "after a clean stop nothing is to be written off"
    assert riffle("down").returncode == 0
    assert set(status_of(riffle, own)["pids"].values()) == {None}


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
