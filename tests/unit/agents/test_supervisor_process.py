"""The supervisor's process: the parts that it started never outlive the folder with their process ids."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import free_port

from agents.processes import supervisor_daemon
from agents.supervisor import histories
from schemas.settings import Settings
from streams.embedded.process import Daemon, is_alive, python, wait_until
from streams.embedded.redis import EmbeddedRedis

SOON_S = 30.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", redis_port=free_port()).resolved()


@pytest.fixture
def supervisor(settings: Settings) -> Iterator[Daemon]:
    made = supervisor_daemon(settings)
    environment = {**os.environ, **settings.environment()}
    made.start(python("-m", "agents.supervisor", "redis"), environment, settings.home.parent)
    assert wait_until(EmbeddedRedis(settings).answers, SOON_S), made.tail(20)
    yield made
    made.stop()
    EmbeddedRedis(settings).stop()


def test_redis_that_is_killed_comes_back(settings: Settings, supervisor: Daemon) -> None:
    redis = EmbeddedRedis(settings)
    before = redis.daemon.pid()
    assert before is not None
    os.kill(before, 9)
    assert wait_until(lambda: redis.daemon.pid() not in {None, before} and redis.answers(), SOON_S)
    assert wait_until(lambda: histories(settings)["redis"].restarts == 1, SOON_S)
    assert histories(settings)["redis"].exit == -9
    assert supervisor.stop()
    assert redis.answers(), "parts outlive it"


def test_a_home_that_is_removed_takes_its_parts_with_it(settings: Settings, supervisor: Daemon) -> None:
    redis, itself = EmbeddedRedis(settings).daemon.pid(), supervisor.pid()
    assert redis is not None
    assert itself is not None
    shutil.rmtree(settings.home)
    for pid in (redis, itself):
        assert wait_until(lambda pid=pid: not is_alive(pid), SOON_S)  # type: ignore[misc]
    assert not settings.run_dir.exists(), "nothing is started anew in it"


def test_a_supervisor_that_another_one_replaced_ends_and_leaves_the_parts(settings: Settings, supervisor: Daemon) -> None:
    itself = supervisor.pid()
    assert itself is not None
    supervisor.record(os.getpid())
    assert wait_until(lambda: not is_alive(itself), SOON_S)
    assert EmbeddedRedis(settings).answers()
    supervisor.pid_file.unlink()
