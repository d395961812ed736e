"""Faults at random moments under load, each from a seed; the tables must come out as if nothing had happened.

`make faults` runs TRIALS seeds of each (default 20); `make faults TRIALS=2 FAULT=sleeps` fewer, or one kind.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from stream_check import Sent

from streams.settings import Settings
from streams.topics import ensure_topics

pytestmark = pytest.mark.integration
TRIALS = int(os.environ.get("TRIALS", "20"))
SESSION_TIMEOUT_S = 15
EVENTS = 3_000


class Trial:
    """One worker under load, and room for a second one."""

    def __init__(self, settings: Settings, worker_of: Any, seed: int) -> None:
        self.settings, self.worker_of = settings, worker_of
        self.sent = Sent(settings, seed)
        self.rng = self.sent.rng
        self.worker = worker_of(settings)
        self.folders = [settings]

    async def moment(self) -> None:
        await asyncio.sleep(self.rng.random() * 1.5)

    def table(self) -> Path:
        kind = self.rng.choice(("users", "covisits"))
        return self.settings.data_dir / "tables" / kind / str(self.rng.randrange(self.settings.partitions))


async def is_killed(trial: Trial) -> None:
    await trial.moment()
    trial.worker.kill()
    await asyncio.to_thread(trial.worker.start)


async def is_told_to_stop(trial: Trial) -> None:
    await trial.moment()
    trial.worker.process.terminate()
    assert await asyncio.to_thread(trial.worker.process.wait, 30) == 0
    await asyncio.to_thread(trial.worker.start)


async def sleeps(trial: Trial) -> None:
    """Stopped for twice the session timeout: its partitions may have gone to another, and it must not write over them."""
    other = replace(trial.settings, home=trial.settings.home / "other", web_port=free_port())
    other.home.mkdir()
    trial.folders.append(other)
    await trial.moment()
    trial.worker.process.send_signal(signal.SIGSTOP)
    second = trial.worker_of(other)
    starting = asyncio.create_task(asyncio.to_thread(second.start))
    await asyncio.sleep(2 * SESSION_TIMEOUT_S)
    trial.worker.process.send_signal(signal.SIGCONT)
    await starting
    await asyncio.sleep(3)
    # it either came back into the group or, being fenced, ended: both are right, going on with old state is not
    if trial.worker.process.poll() is not None:
        await asyncio.to_thread(trial.worker.start)


async def loses_a_folder(trial: Trial) -> None:
    await trial.moment()
    trial.worker.kill()
    shutil.rmtree(trial.table(), ignore_errors=True)
    await asyncio.to_thread(trial.worker.start)


async def finds_a_flipped_byte(trial: Trial) -> None:
    await trial.moment()
    trial.worker.kill()
    files = sorted(path for path in trial.table().glob("*") if path.suffix in {".sst", ".log"} and path.stat().st_size)
    if files:
        path = trial.rng.choice(files)
        data = bytearray(path.read_bytes())
        data[trial.rng.randrange(len(data))] ^= 0x55
        path.write_bytes(bytes(data))
    await asyncio.to_thread(trial.worker.start)


async def gets_and_loses_company(trial: Trial) -> None:
    other = replace(trial.settings, home=trial.settings.home / "other", web_port=free_port())
    other.home.mkdir()
    trial.folders.append(other)
    second = trial.worker_of(other)
    await trial.moment()
    await asyncio.to_thread(second.start)
    await asyncio.sleep(5)
    if trial.rng.random() < 0.5:
        second.kill()
    else:
        await asyncio.to_thread(second.stop)


FAULTS: list[Callable[[Trial], Awaitable[None]]] = [
    is_killed,
    is_told_to_stop,
    sleeps,
    loses_a_folder,
    finds_a_flipped_byte,
    gets_and_loses_company,
]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(TRIALS))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_nothing_is_lost_or_counted_twice_when_a_worker(
    fault: Callable[[Trial], Awaitable[None]], seed: int, fresh: Settings, worker_of: Any
) -> None:
    await ensure_topics(fresh)
    trial = Trial(fresh, worker_of, seed)
    await trial.sent.start()
    await asyncio.to_thread(trial.worker.start)
    load = asyncio.create_task(trial.sent.events(EVENTS))
    await fault(trial)
    await load
    await trial.sent.events(200)
    await trial.sent.stop()
    await trial.sent.check(timeout_s=90)
    if len(trial.folders) == 1:  # with another worker, a partition's rows may lie on either disk, or, older, on both
        await asyncio.to_thread(trial.worker.stop)
        trial.sent.check_disk(fresh)
