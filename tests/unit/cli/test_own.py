"""Commands notice that the server on a port is another home's."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import free_port

from agents.cli import dlq, group
from agents.cli.own import require_own
from agents.cli.rules import clear
from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.neighbours import home_of, listener_of
from streams.embedded.process import Daemon, serving, wait_until

LISTEN = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(600)
"""
OF_A_FOLDER = {"rules check", "release import", "evaluate", "report", "examples", "tune", "token", "size"}
ELSEWHERE = {"launch kubeflow", "launch kubernetes", "launch sagemaker", "launch status"}
OF_THE_STACK = {"up", "down", "status", "doctor", "demo"}
"Commands that start or describe the parts of the home, and name what is not its own."


def names(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in command.list_commands(context := click.Context(command)):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from names(inner, f"{path} {name}".strip())


def test_every_command_that_uses_the_stack_checks_that_it_is_the_homes_own() -> None:
    letters = inspect.getsource(dlq._letters)
    checking = set()
    for name, command in names(group):
        assert command.callback is not None
        source = inspect.getsource(command.callback).replace("_letters(", letters)
        if "own_settings()" in source:
            checking.add(name)
    assert {name for name, _ in names(group)} - checking == OF_A_FOLDER | ELSEWHERE | OF_THE_STACK


@contextmanager
def listening(daemon: Daemon, port: int, folder: Path) -> Iterator[int]:
    pid = daemon.start([sys.executable, "-c", LISTEN, str(port)], dict(os.environ), folder, f"127.0.0.1:{port}")
    try:
        assert wait_until(lambda: daemon.listens(port), 30)
        yield pid
    finally:
        daemon.stop()


@pytest.fixture
def homes(tmp_path: Path) -> tuple[Settings, Settings]:
    """Two homes with the same ports."""
    ports = {"kafka_port": free_port(), "controller_port": free_port(), "redis_port": free_port(), "web_port": free_port()}
    first, second = (Settings(home=tmp_path / name, **ports).resolved() for name in ("first", "second"))  # type: ignore[arg-type]
    return first, second


def test_kafka_of_another_home_is_told_with_its_home(homes: tuple[Settings, Settings]) -> None:
    first, second = homes
    require_own(second)
    kafka = EmbeddedKafka(first).daemon
    with listening(kafka, first.kafka_port, first.data_dir / "kafka") as pid:
        assert listener_of(first.kafka_port) == pid
        assert home_of(pid) == first.home
        require_own(first)
        with pytest.raises(ConfigError) as refused:
            require_own(second)
        assert refused.value.code == "another_home"
        for part in (f"RIFFLE_HOME={first.home}", str(second.home), "RIFFLE_KAFKA_PORT", "RIFFLE_WEB_PORT", "riffle up"):
            assert part in refused.value.message
        ran = CliRunner().invoke(clear, env=second.environment())
        assert isinstance(ran.exception, ConfigError)
    require_own(second)


def test_a_worker_of_another_home_is_told_even_if_its_kafka_is_elsewhere(homes: tuple[Settings, Settings]) -> None:
    first, second = homes
    with listening(serving(first), first.web_port, first.home):
        with pytest.raises(ConfigError, match=f"the worker on port {first.web_port} belongs to RIFFLE_HOME={first.home}"):
            require_own(second)
        require_own(first)


def test_an_unknown_broker_is_a_warning_and_one_that_is_named_is_none(
    homes: tuple[Settings, Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = homes
    unknown = Daemon("unknown", tmp_path / "unknown.pid", tmp_path / "unknown.log")
    with listening(unknown, first.kafka_port, tmp_path) as pid:
        require_own(second)
        assert f"(process {pid}) on port {first.kafka_port}" in capsys.readouterr().err
        named = Settings(home=second.home, bootstrap=f"127.0.0.1:{first.kafka_port}").resolved()
        require_own(named)
        assert capsys.readouterr().err == ""
