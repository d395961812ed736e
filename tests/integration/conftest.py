"""Fixtures: a running worker for the tests that need one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from secured_broker import Secured, secured_broker

from schemas.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4_000:]


async def wait_ready(settings: Settings, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the worker answers `/readyz` with 200; fail with the end of its log if it does not."""
    async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
        while True:
            if process.poll() is not None:
                pytest.fail(f"the worker ended with {process.returncode}:\n{_end_of(log)}")
            try:
                async with session.get(f"{settings.web}/readyz") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.1)


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A ready worker process, which is stopped at the end, and killed if it does not stop."""
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    log = settings.logs_dir / "worker.log"
    environment = {**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "agents.worker"], cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        try:
            await wait_ready(settings, process, log)
        except TimeoutError:
            pytest.fail(f"the worker is not ready after {READY_TIMEOUT_S} s:\n{_end_of(log)}")
        yield process
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            await asyncio.to_thread(process.wait)


@pytest.fixture
async def worker(fresh: Settings) -> AsyncIterator[Settings]:
    """Settings of a stack with a ready worker that has its own topics."""
    async with running_worker(fresh):
        yield fresh


@pytest.fixture(scope="session")
def secured(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A separate broker with a listener of every kind of security."""
    with secured_broker(stack, tmp_path_factory.mktemp("secured")) as made:
        yield made
