"""Reports of trainings on a real broker: they arrive, a killed training falls silent, and no failure fails a training."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import free_port

from agents.broadcast.trainings import SILENT_MS, Trainings
from agents.metrics import Metrics
from models.pipeline.clock import wall_ms
from schemas.settings import Settings
from schemas.trainings import TrainingProgress
from streams.kafka import connect
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.topics import ensure_topics
from streams.kafka.trainings import Announcer

pytestmark = pytest.mark.integration
KILLED = """
import os, signal, sys, time
from schemas.settings import Settings
from schemas.trainings import TrainingProgress
from streams.kafka.trainings import Announcer
Announcer(Settings.from_env(), lambda: TrainingProgress("killed", part="towers"), sys.exit).start()
time.sleep(60)
"""


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not check():  # noqa: ASYNC110 - another process or thread causes the change
            await asyncio.sleep(0.1)


async def test_reports_arrive_and_a_killed_training_falls_silent(fresh: Settings) -> None:
    await ensure_topics(fresh)
    ahead, warned, failed = 0, list[str](), list[BaseException]()
    known = Trainings(Metrics(), lambda: wall_ms() + ahead)
    reader = BroadcastReader(
        fresh, {"trainings": known.on_trainings}, profile=connect.TRAININGS, name="trainings", what="the progress of trainings"
    )
    await reader.start(failed.append)
    await reader.wait()
    now = TrainingProgress("t", part="start")
    announcer = Announcer(fresh, lambda: now, warned.append)
    process = subprocess.Popen([sys.executable, "-c", KILLED], env={**os.environ, **fresh.environment()})  # noqa: ASYNC220
    try:

        def states() -> dict[str, tuple[str, str]]:
            return {one["training"]: (one["state"], one["part"]) for one in known.listed()}

        announcer.start()
        await until(lambda: states().get("t") == ("running", "start"))
        now = replace(now, part="towers", share=0.25)
        await until(lambda: states().get("t") == ("running", "towers"))
        await until(lambda: states().get("killed") == ("running", "towers"))
        process.kill()
        await asyncio.to_thread(process.wait)
        now = replace(now, state="refused", reasons=("no better",))
        await asyncio.to_thread(announcer.stop)
        await until(lambda: states().get("t") == ("refused", "towers"))
        ahead = SILENT_MS + 1
        assert states() == {"t": ("refused", "towers"), "killed": ("silent", "towers")}
        again = Trainings(Metrics())
        other = BroadcastReader(fresh, {"trainings": again.on_trainings}, profile=connect.TRAININGS)
        await other.start(failed.append)
        await other.wait()
        await other.stop()
        assert [one["training"] for one in again.listed()] == [one["training"] for one in known.listed()], "after a restart"
        assert (warned, failed) == ([], [])
    finally:
        process.kill()
        await reader.stop()


@pytest.mark.parametrize("what", ["nobody listens", "there is no topic"])
async def test_reports_that_cannot_be_sent_are_said_once_and_stop_nothing(fresh: Settings, what: str) -> None:
    """Without the topic, as in an instance whose workers are older than its trainings."""
    settings = replace(fresh, bootstrap=f"127.0.0.1:{free_port()}") if what == "nobody listens" else fresh
    warned: list[Any] = []
    announcer = Announcer(settings, lambda: TrainingProgress("t"), warned.append)
    announcer.start()
    await until(lambda: bool(warned))
    await asyncio.to_thread(announcer.stop)
    (reason,) = warned
    assert reason
