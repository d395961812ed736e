"""A worker under load, and the checks of its state."""

from __future__ import annotations

import asyncio
import json
import os
import random
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from conftest import free_port
from stream_check import Sent

from agents.cli.tables import changelog_digests
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka

FIRST, TRIALS = int(os.environ.get("FIRST", "0")), int(os.environ.get("TRIALS", "20"))
"The first seed, and how many."
EVENTS = 800
"Events of one trial; the fault comes while they are produced."
UNWELL = 6
"Answers that a supervisor misses before it kills a worker."


class Trial:
    """A worker under load, room for a second one, and the broker."""

    def __init__(self, settings: Settings, kafka: EmbeddedKafka, worker_of: Any) -> None:
        self.settings, self.kafka, self.worker_of = settings, kafka, worker_of
        self.rng = random.Random()
        self.sent = Sent(settings, seed=0)
        self.worker = worker_of(settings)
        self.other = replace(settings, home=settings.home / "other", web_port=free_port(), instance="")
        self.other.home.mkdir()
        self.second = worker_of(self.other)

    async def moment(self, most_s: float = 1.0) -> None:
        """Wait for a random time."""
        await asyncio.sleep(self.rng.random() * most_s)

    async def start(self, fault: str = "works", *, may_die: bool = False) -> None:
        """Start the worker, with a fault built in or without; `may_die`: perhaps so soon that it is never ready."""
        await self._start(self.worker, fault, may_die=may_die)

    async def _start(self, worker: Any, fault: str = "works", *, may_die: bool) -> None:
        try:
            await asyncio.to_thread(worker.start, fault=fault)
        except AssertionError:
            if not may_die or worker.process.poll() is None:
                raise

    @asynccontextmanager
    async def supervised(self, *workers: Any) -> AsyncIterator[None]:
        """As a supervisor would: start these again when they have ended, or when they do not say that they are alive."""
        tasks = [asyncio.create_task(self._supervise(worker)) for worker in workers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self, worker: Any) -> None:
        unwell = 0
        while True:
            await asyncio.sleep(0.5)
            if worker.process.poll() is not None:
                await self._start(worker, may_die=True)
            unwell = 0 if await asyncio.to_thread(worker.alive) else unwell + 1
            if unwell == UNWELL:
                worker.kill()
                unwell = 0

    async def ended(self, timeout_s: float = 60.0) -> int:
        """The worker ends by itself; its exit status."""
        return int(await asyncio.to_thread(self.worker.process.wait, timeout_s))

    def table(self) -> Path:
        """A partition's folder of a table, drawn."""
        return self.settings.table_dir(self.rng.choice(("users", "covisits")), self.rng.randrange(self.settings.partitions))

    async def agree(self, *workers: Settings, timeout_s: float = 60.0) -> None:
        """Rows of these workers, owned or stood by for, come to agree with their changelogs."""
        until = asyncio.get_running_loop().time() + timeout_s
        missed: OSError | None = None
        while True:
            changelogs = await changelog_digests(self.settings)
            try:
                found = [facts for settings in workers for facts in await asyncio.to_thread(_tables, settings)]
            except OSError as error:  # a worker that finds a damaged block reports it, ends, and is restarted
                found, missed = [], error
            different = []
            for facts in found:
                newest, made = changelogs[facts["table"], facts["partition"]]
                if facts["position"] >= newest:
                    assert facts["hash"] == made.hash, f"{facts} differs from its changelog"
                else:
                    different.append(facts)
            owners = [(facts["table"], facts["partition"]) for facts in found if facts["role"] == "owner"]
            if not different and sorted(owners) == sorted(changelogs):
                return
            assert asyncio.get_running_loop().time() < until, different or owners or missed
            await asyncio.sleep(0.5)


def _tables(settings: Settings) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{settings.web}/v1/tables?digests=1", timeout=60) as response:
        return list(json.load(response)["tables"])


Fault = Callable[[Trial], Awaitable[None]]
