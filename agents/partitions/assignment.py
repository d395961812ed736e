"""Partitions as the group assigns them: which generation is open, and the opening of the next."""

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
"Seconds that joining the group again may take, and between two looks whether it is done."


class Assignment:
    """Opens what the group assigns, while chunks wait until it is `settled`.

    `due`: set when a partition must be opened anew. `taking`, an attribute, is held while partitions are opened or closed.
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
        "Assignments so far."
        self._restoring: list[asyncio.Task[None]] = []
        self.taking = asyncio.Lock()
        self.settled = asyncio.Event()
        "Set while the partitions of the current group generation are open."
        self.generation = 0
        "The group generation in which partitions were opened last."

    def unsettle(self) -> None:
        """Let chunks wait until the next assignment is open: a rebalance began."""
        self.settled.clear()

    async def assigned(self, partitions: set[TP]) -> None:
        """Open what is new among the assigned partitions, keep what came back, let go of the rest."""
        self._number += 1
        users, covisits = (
            {tp.partition for tp in partitions if tp.topic == self._settings.topic(name)}
            for name in ("interactions", "covisits")
        )
        # not awaited: while a long restore held the assignment, the group would get no heartbeat and give the worker up
        restoring = self._restore(users, covisits, self._number, self._app.consumer_generation_id)
        self._restoring = [task for task in self._restoring if not task.done()] + [asyncio.create_task(restoring)]

    async def _restore(self, users: set[int], covisits: set[int], number: int, generation: int) -> None:
        """Own these partitions; chunks wait until then. An assignment that another one has followed is left to that one."""
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
                log.warning("partitions cannot be taken now: %s", why(error))
                self._health.warn("assignment", why(error))
                await asyncio.sleep(back_off.failed())
        if number == self._number:
            self.generation = generation
            self.settled.set()
            if self._ownership.troubled():
                self._due.set()

    async def rejoin(self) -> int:
        """Join the group again; returns the generation in which partitions were then opened, -1 when none were in time."""
        before = self._number
        await self._app.consumer.rejoin()
        until = self._clock() + REJOIN_S
        while self._number == before or not self.settled.is_set():
            if self._clock() > until:
                return -1
            await asyncio.sleep(REJOIN_LOOK_S)
        return self.generation

    async def stop(self) -> None:
        """Open nothing more."""
        for task in self._restoring:
            task.cancel()
        await asyncio.gather(*self._restoring, return_exceptions=True)
