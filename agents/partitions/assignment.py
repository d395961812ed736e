"""Applies the group's partition assignments: opens the partitions of each new generation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from faust.types import TP

from agents.findings import Health, heals, why
from agents.partitions.ownership import Ownership
from agents.partitions.recovery import FIRST_S, MOST_S
from agents.tasks import Crash
from schemas.settings import Settings
from streams.back_off import BackOff
from streams.kafka.chunks import ChunkedApp

__all__ = ["Assignment"]

log = logging.getLogger(__name__)

REJOIN_S, REJOIN_LOOK_S = 60.0, 0.05
"Time limit in seconds for rejoining the group, and seconds between two checks whether this is done."


class Assignment:
    """Opens the assigned partitions. Chunks wait until the assignment is `settled`.

    `due`: set when a partition must be reopened. The attribute `taking` is held while partitions are opened or closed.
    """

    def __init__(
        self,
        settings: Settings,
        app: ChunkedApp,
        ownership: Ownership,
        health: Health,
        due: asyncio.Event,
        crash: Crash,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._app = app
        self._ownership = ownership
        self._health = health
        self._due = due
        self._crash = crash
        self._clock = clock
        self._number = 0
        "Number of assignments so far."
        self._restoring: list[asyncio.Task[None]] = []
        self.taking = asyncio.Lock()
        self.settled = asyncio.Event()
        "Set while the partitions of the current group generation are open."
        self.generation = 0
        "The latest group generation in which partitions were opened."

    def unsettle(self) -> None:
        """Make chunks wait until the next assignment is open, because a rebalance began."""
        self.settled.clear()

    async def assigned(self, partitions: set[TP]) -> None:
        """Open newly assigned partitions, keep those that are open, and close all others."""
        self._number += 1
        users, covisits = (
            {tp.partition for tp in partitions if tp.topic == self._settings.topic(name)}
            for name in ("interactions", "covisits")
        )
        # not awaited, because the group gets no heartbeat during the assignment and would remove the worker
        restoring = self._restore(users, covisits, self._number, self._app.consumer_generation_id)
        self._restoring = [task for task in self._restoring if not task.done()] + [asyncio.create_task(restoring)]

    async def _restore(self, users: set[int], covisits: set[int], number: int, generation: int) -> None:
        """Open these partitions, for which chunks wait. Does nothing if a newer assignment has replaced this one."""
        back_off = BackOff(FIRST_S, MOST_S)
        while True:
            try:
                async with self.taking:
                    if number != self._number:
                        return
                    await self._ownership.take(users, covisits, self._app.holding.standby)
                    self._health.clear("assignment")
                    break
            except Exception as error:
                if not heals(error):
                    self._crash(error)
                    return
                log.warning("partitions cannot be taken over now: %s", why(error))
                self._health.warn("assignment", why(error))
                await asyncio.sleep(back_off.failed())
        if number == self._number:
            self.generation = generation
            self.settled.set()
            if self._ownership.troubled():
                self._due.set()
            if self._app.holding.misnamed:
                log.info("the group knows another address of this worker: joining it again with the new one")
                await self._app.consumer.rejoin()

    async def rejoin(self) -> int:
        """Rejoin the group; returns the generation in which partitions were then opened, -1 after the time limit."""
        before = self._number
        await self._app.consumer.rejoin()
        until = self._clock() + REJOIN_S
        while self._number == before or not self.settled.is_set():
            if self._clock() > until:
                return -1
            await asyncio.sleep(REJOIN_LOOK_S)
        return self.generation

    async def stop(self) -> None:
        """Stop opening partitions."""
        for task in self._restoring:
            task.cancel()
        await asyncio.gather(*self._restoring, return_exceptions=True)
