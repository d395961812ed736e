"""A worker that ranks remotely, and its ranking processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import free_port
from learning_corpus import corpus

from agents.cli.release import promote
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics
from training.release.learned import Learned

ROOT = Path(__file__).resolve().parents[1]
READY_S = 90.0


class RankingProcess:
    """`riffle worker --role ranking` as its own process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = replace(settings, rank_port=free_port())
        self.log = settings.home / f"ranking-{self.settings.rank_port}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agents.worker", "--role", "ranking"],
                cwd=ROOT,
                env={**os.environ, **self.settings.environment()},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def get(self, path: str) -> tuple[int, bytes]:
        """Return status and body of the status page; status 0 if it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.rank_port}{path}", timeout=5) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError:
            return 0, b""

    def state(self) -> dict[str, Any]:
        status, body = self.get("/readyz")
        return json.loads(body) if status else {}

    async def ready(self, release: str = "") -> RankingProcess:
        """Wait until it ranks by this release; with `none`, until it says that it cannot use the announced one."""

        def holds() -> bool:
            state = self.state()
            if release == "none":
                return list(state.get("reasons", ())) == ["releases"] and bool(state["refused"])
            return bool(state.get("ready")) and state.get("release") in {release, release or state.get("release")}

        assert await asyncio.to_thread(wait_until, lambda: holds() or self.process.poll() is not None, READY_S)
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-4_000:]
        assert holds(), (self.state(), self.log.read_text(errors="replace")[-4_000:])
        return self

    async def end(self) -> int:
        """Continue it if it is stopped, and end it."""
        if self.process.poll() is None:
            self.process.send_signal(18)
            self.process.terminate()
        try:
            return await asyncio.to_thread(self.process.wait, 30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return await asyncio.to_thread(self.process.wait)


@asynccontextmanager
async def ranking(settings: Settings, number: int = 1, release: str = "") -> AsyncIterator[list[RankingProcess]]:
    """Ranking processes that are ready, and ended at the end."""
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(number):
            started.append(RankingProcess(settings))
            stack.push_async_callback(started[-1].end)
        for one in started:
            await one.ready(release)
        yield started


async def filled(settings: Settings, learned: Learned) -> str:
    """Produce the corpus and announce its release; returns the release's name."""
    await ensure_topics(settings)
    items, events = corpus()
    await produce_items(settings, items)
    await produce_events(settings, events)
    name = learned.write(settings.releases_dir, {"gate": {"passed": True}}).name
    await asyncio.to_thread(promote, settings, name, force=True)
    return name


async def until(check: Callable[[], object], seconds: float = 90.0, going: asyncio.Task[None] | None = None) -> None:
    """Wait until `check`, which may block, is true; fail if the task `going` ends before."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(check):
            assert going is None or not going.done()
            await asyncio.sleep(0.1)


def remotely(settings: Settings, **changes: Any) -> Settings:
    """The settings of a worker that ranks remotely."""
    return replace(settings, ranking="remote", session_timeout_s=6.0, **changes)


def warnings_of(settings: Settings) -> dict[str, str]:
    """Warnings of a worker's readiness."""
    with urllib.request.urlopen(f"{settings.web}/readyz", timeout=10) as response:
        return dict(json.load(response)["warnings"])


def metrics_of(settings: Settings) -> list[str]:
    """Lines of a worker's metrics about ranking elsewhere, and about what could not be sent."""
    with urllib.request.urlopen(f"{settings.web}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    return [line for line in lines if line.startswith(("riffle_rank", "riffle_sends_failed", "riffle_requests"))]


def count(settings: Settings, name: str, **labels: str) -> float:
    """Sum of a worker's counter over the series with these labels."""
    with urllib.request.urlopen(f"{settings.web}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    found = [line for line in lines if line.startswith((name + "{", name + " ")) and all(part in line for part in wanted)]
    return sum(float(line.rsplit(maxsplit=1)[-1]) for line in found)
