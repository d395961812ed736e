"""Fixtures shared by all tests: one embedded stack per run, own topics per test."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings as hypothesis_settings

from agents.web.caller import Caller
from models.state.kernels.decay import halved
from models.warm import warm
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import wait_until
from streams.embedded.redis import EmbeddedRedis

if TYPE_CHECKING:
    from training.release.learned import Learned

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The duration of an example depends on the machine, not on the law. `make test` tries the same examples each time, so that a
# change is judged by what it changes; `make laws` and `make fuzz` look for new ones.
EXAMPLES = int(os.environ.get("LAW_EXAMPLES", "0"))
hypothesis_settings.register_profile("riffle", deadline=None, max_examples=EXAMPLES or 50, derandomize=not EXAMPLES)
hypothesis_settings.load_profile("riffle")


def pytest_configure() -> None:
    """End as for Ctrl-C when terminated, so that what the fixtures started is stopped: `make test` does that to its parts."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compiled loops are ready before the first test that is held to a deadline."""
    warm()
    halved(1.0, 1, 1)


def free_port() -> int:
    """A free port below those that the system gives outgoing connections (proc(5), ip_local_port_range).

    One of those might be taken by whoever tries to reach a server that is down, and then that server cannot start again.
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A running embedded Kafka and Redis."""
    settings = Settings(
        home=tmp_path_factory.mktemp("riffle"),
        kafka_port=free_port(),
        controller_port=free_port(),
        redis_port=free_port(),
        web_port=free_port(),
    ).resolved()
    kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
    try:
        kafka.start()
        redis.start()
        yield settings
    finally:
        redis.stop()
        kafka.stop()


@pytest.fixture
def fresh(stack: Settings, tmp_path: Path) -> Settings:
    """Settings on the running stack with topics, group, port and folder of their own."""
    name = uuid.uuid4().hex[:8]
    return replace(
        stack,
        home=tmp_path,
        bootstrap=stack.bootstrap_servers,
        topic_prefix=f"t{name}.",
        app_id=f"riffle-{name}",
        web_port=free_port(),
        commit_interval_s=0.2,
        deadline_ms=2_000,
    )


class WorkerProcess:
    """A worker as its own process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.log = settings.home / "worker.log"

    def start(self, *, fault: str = "") -> WorkerProcess:
        """Start and wait until it is ready; `fault` names one of `tests/faults/faulty.py`, which its build then has."""
        alive = self.spawn(fault=fault)
        assert wait_until(lambda: self.ready() or alive.poll() is not None, 60)
        assert self.ready(), self.log.read_text()[-4000:]
        return self

    def spawn(self, *, fault: str = "") -> subprocess.Popen[bytes]:
        """Start without waiting."""
        script = [str(Path(__file__).parent / "faults" / "faulty.py"), fault] if fault else ["-m", "agents.worker"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *script],
                env={**os.environ, **self.settings.environment()},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self.process

    def ready(self) -> bool:
        return self._says("readyz")

    def alive(self) -> bool:
        return self._says("healthz")

    def _says(self, what: str) -> bool:
        try:
            context = Caller(self.settings.http).context() if self.settings.web.startswith("https") else None
            with urllib.request.urlopen(f"{self.settings.web}/{what}", timeout=2, context=context) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


@pytest.fixture
def worker_of() -> Iterator[Callable[[Settings], WorkerProcess]]:
    """Starts workers and stops them at the end."""
    made: list[WorkerProcess] = []

    def make(settings: Settings) -> WorkerProcess:
        made.append(WorkerProcess(settings))
        return made[-1]

    yield make
    for process in made:
        process.stop()


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of encoded vectors. Commands with `--cache` of its parent use it too, so that a run encodes nothing twice."""
    folder = tmp_path_factory.mktemp("cache") / "vectors"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def learned(vectors: Path) -> Learned:
    """A release trained on `learning_corpus`, once per run."""
    from learning_corpus import small_release

    return small_release(vectors)


@pytest.fixture
def folder(learned: Learned, tmp_path: Path) -> Path:
    """The release as a folder below `tmp_path/releases`."""
    return learned.write(tmp_path / "releases", {"gate": {"passed": True}})
