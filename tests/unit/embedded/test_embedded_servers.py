"""Embedded servers are never mistaken for those of others, and Redis keeps its data."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner
from rich.console import Console

from agents.cli import starting
from agents.cli.operate import down
from schemas.errors import ConfigError, NotReady
from schemas.settings import Settings
from streams.embedded import process
from streams.embedded.jars import class_path
from streams.embedded.kafka import CONTROLLER, SERVER, EmbeddedKafka
from streams.embedded.process import answer_of
from streams.embedded.redis import EmbeddedRedis

Embedded = type[EmbeddedKafka] | type[EmbeddedRedis]


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    kafka, controller, port, web = free_ports(4)
    return Settings(home=tmp_path, kafka_port=kafka, controller_port=controller, redis_port=port, web_port=web).resolved()


@pytest.fixture
def server(settings: Settings) -> Iterator[EmbeddedRedis]:
    made = EmbeddedRedis(settings)
    made.start()
    yield made
    made.stop()


def test_only_a_part_that_is_not_ready_is_said_to_be_waited_for(server: EmbeddedRedis, settings: Settings) -> None:
    out = io.StringIO()
    starting._await(settings, Console(file=out), "redis", 0, server.answers)
    assert out.getvalue() == ""
    with pytest.raises(NotReady, match="the supervisor has ended"):
        starting._await(settings, Console(file=out), "kafka", 0, EmbeddedKafka(settings).answers)
    assert out.getvalue() == "waiting for Kafka …\n"


def test_a_connection_to_itself_is_no_answer_and_leaves_the_port_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    connect = socket.create_connection

    def from_the_same_port(address: tuple[str, int], timeout: float) -> socket.socket:
        """Connect from the server's own port, as the kernel occasionally does for ports in the client range."""
        return connect(address, timeout, source_address=address)

    monkeypatch.setattr(socket, "create_connection", from_the_same_port)
    for _ in range(3):  # a second connection from a port in TIME-WAIT would fail to bind
        assert answer_of(port, b"PING\r\n", 7) is None
        with socket.socket() as later:
            later.bind(("127.0.0.1", port))


def test_a_server_that_is_not_there_or_says_nothing_is_no_answer() -> None:
    (port,) = free_ports(1)
    assert answer_of(port, b"PING\r\n", 7) is None
    with socket.create_server(("127.0.0.1", port)):
        assert answer_of(port, b"PING\r\n", 7, timeout_s=0.1) is None
        assert answer_of(port, b"", 0) == b""


@pytest.mark.parametrize(
    ("kind", "field", "address"),
    [
        (EmbeddedKafka, "kafka_port", lambda port: f"127.0.0.1:{port}"),
        (EmbeddedRedis, "redis_port", lambda port: f"redis://127.0.0.1:{port}/0"),
    ],
)
def test_what_runs_on_another_port_is_not_joined_by_the_new_one(
    settings: Settings, kind: Embedded, field: str, address: Callable[[int], str]
) -> None:
    runs = kind(settings)
    runs.daemon.record(os.getpid(), address(getattr(settings, field)))
    runs.check()
    other: dict[str, Any] = {field: free_ports(1)[0]}
    with pytest.raises(ConfigError) as refused:
        kind(replace(settings, **other)).start()
    assert f"RIFFLE_{field.upper()}" in refused.value.message
    assert address(getattr(settings, field)) in refused.value.message
    assert runs.daemon.address() == address(getattr(settings, field))
    runs.daemon.pid_file.unlink()
    assert runs.daemon.address() == ""


def test_redis_keeps_what_it_holds(settings: Settings, server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(settings.redis) as client:
        client.set("kept", "1")
        assert client.config_get("save") == {"save": "60 1"}
    assert server.stop()
    server.start()
    with redis.Redis.from_url(settings.redis) as client:
        assert client.get("kept") == b"1"
    assert (settings.home / "data" / "redis" / "dump.rdb").exists()


def test_a_server_that_runs_says_where(settings: Settings, server: EmbeddedRedis) -> None:
    assert server.daemon.address() == settings.redis
    server.start()  # a running server is left alone
    assert server.answers()


def test_a_controller_that_was_left_alone_is_in_nobodys_way_and_is_stopped_with_kafka(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = EmbeddedKafka(settings)
    # left by an interrupted start: it listens on the controller's port
    listening = f"import socket, time; s = socket.create_server(('127.0.0.1', {settings.controller_port})); time.sleep(60)"
    kafka._controller.start([sys.executable, "-c", listening], dict(os.environ), settings.home)
    assert process.wait_until(lambda: not process.port_is_free(settings.controller_port), 10)
    kafka.check()
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert CliRunner().invoke(down).output.strip() == "stopped: Kafka"
    assert kafka._controller.pid() is None
    assert CliRunner().invoke(down).output.strip() == "nothing was running"


def test_another_servers_answer_is_not_taken_for_its_own(settings: Settings, server: EmbeddedRedis) -> None:
    other = EmbeddedRedis(replace(settings, home=settings.home / "other"))
    assert server.answers()
    assert not other.answers()
    other.daemon.record(os.getpid(), settings.redis)  # alive, and listens elsewhere
    assert not other.answers()


@pytest.mark.parametrize("name", ["a,b", "a b", "a=b#c", "a\\b", "é日", "[x]*?", "%41", "--x", "'\"", "$HOME"])
def test_redis_keeps_its_file_in_a_home_of_any_name(settings: Settings, name: str) -> None:
    made = replace(settings, home=settings.home / name)
    server = EmbeddedRedis(made)
    server.start()
    with redis.Redis.from_url(made.redis) as client:
        client.set("kept", "1")
    assert server.stop()
    assert (made.home / "data" / "redis" / "dump.rdb").exists()
    assert [path.name for path in settings.home.iterdir()] == [name]


def test_the_brokers_settings_name_no_path(settings: Settings) -> None:
    """A comma in a path would split it, and a backslash or a letter beyond Latin 1 would change it."""
    text = (SERVER + CONTROLLER).format(port=1, controller=2)
    assert "log.dirs=log\n" in text
    assert "/" not in text.replace("://", "")


def test_a_cache_that_java_would_split_is_refused_before_anything_is_written(settings: Settings) -> None:
    made = replace(settings, home=settings.home / "home", cache=settings.home / "a:b")
    with pytest.raises(ConfigError, match="RIFFLE_CACHE"):
        EmbeddedKafka(made).check()
    with pytest.raises(ConfigError, match="RIFFLE_CACHE"):
        class_path(made.cache)
    assert list(settings.home.iterdir()) == []
