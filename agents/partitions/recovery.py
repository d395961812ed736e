"""Reopens failed partitions, while the others continue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from agents.findings import code_of, why
from agents.metrics import Metrics
from agents.partitions.ownership import Ownership, Partition
from schemas.errors import StoreCorrupt
from streams.back_off import BackOff

__all__ = ["FIRST_S", "MOST_S", "Recovery"]

log = logging.getLogger(__name__)

FIRST_S, MOST_S = 0.5, 30.0
"Seconds before a failed partition is reopened: for the first attempt, and their maximum."


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failure of a partition."""

    applied: int
    "Newest source offset in memory at that time."
    spoiled: bool
    "Whether the record after it may be the cause; else the transaction of the records up to it is."

    def is_past(self, part: Partition) -> bool:
        """Whether the partition has made durable since then what it failed at."""
        state = part.state
        return not state.probe_reason and state.durable >= self.applied + self.spoiled


class Recovery:
    """Reopens failed partitions.

    A partition fails, with a `trouble`, if the broker fenced or forgot its producer or found it out of sequence, or if its rows
    are damaged or cannot be written. The worker first rejoins the group. This confirms that it still owns the partition before
    it fences other writers. Further attempts follow at growing intervals, without a rebalance. The partition's records are read
    again once it is open. The interval is short again once the partition is past what it failed at: unrelated
    failures do not add up, and a record that fails each time does not keep the group from work.

    `taking`: held while partitions are opened or closed. `generation`: the group generation in which they were opened.
    `rejoin`: rejoins the group and returns the resulting generation, -1 if there is none. `due`: set while a partition must be
    reopened.
    """

    def __init__(
        self,
        ownership: Ownership,
        metrics: Metrics,
        taking: asyncio.Lock,
        generation: Callable[[], int],
        rejoin: Callable[[], Awaitable[int]],
        due: asyncio.Event,
    ) -> None:
        self._ownership = ownership
        self._metrics = metrics
        self._taking = taking
        self._generation = generation
        self._rejoin = rejoin
        self._back_offs: dict[tuple[str, int] | None, BackOff] = {}
        "By changelog and partition; None for copies."
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._confirmed = -1
        "Generation in which the group confirmed this worker's partitions after the newest failure."
        self.due = due

    def failed(self, part: Partition, error: BaseException) -> None:
        """Mark a partition as failed: requests do not read it, its chunks are dropped, and it will be reopened."""
        state = part.state
        key = state.changelog, part.partition
        if (last := self._failures.get(key)) is not None and last.is_past(part):
            self._back_off(key).succeeded()
        self._failures[key] = _Failure(state.applied, state.spoiled)
        log.warning("%s-%d is opened anew: %s", state.changelog, part.partition, why(error), exc_info=error)
        self._metrics.partitions_failed.add(table=state.changelog, code=code_of(error))
        self._confirmed = -1
        state.fail(error)
        self.due.set()

    async def look(self) -> None:
        """Schedule the reopening of partitions and copies whose rows were found damaged."""
        for part in self._ownership.parts():
            if part.state.store.damaged and part.state.trouble is None:
                message = f"a damaged block was met in {part.state.store.folder}: it is rebuilt from the changelog"
                error = StoreCorrupt("store_unreadable", message)
                part.state.spoil(error)
                self.failed(part, error)
        if self._ownership.standby.damaged():
            self.due.set()  # rejoining the group recreates damaged copies

    async def run(self) -> None:
        """Recover until cancelled."""
        unread = False  # whether records were dropped that have not been read again
        while True:
            await self.due.wait()
            await asyncio.sleep(self._wait_s())
            async with self._taking:
                self.due.clear()
                if self._ownership.standby.damaged():
                    unread = True  # rejoining recreates copies
                elif self._ownership.troubled():
                    owned = self._confirmed == self._generation()
                    unread = unread or not owned or await self._reopened()
                    if not unread:
                        self.due.set()
            if unread:
                joined = await self._rejoin()
                self._confirmed, unread = joined, joined < 0
                if unread:
                    self.due.set()

    def _back_off(self, key: tuple[str, int] | None) -> BackOff:
        if key not in self._back_offs:
            self._back_offs[key] = BackOff(FIRST_S, MOST_S)
        return self._back_offs[key]

    def _wait_s(self) -> float:
        """Seconds until the next attempt: the longest of what is to be opened."""
        keys: list[tuple[str, int] | None] = [(part.state.changelog, part.partition) for part in self._ownership.troubled()]
        return max(self._back_off(key).failed() for key in keys or [None])

    async def _reopened(self) -> bool:
        try:
            return await self._ownership.reopen(self._generation())
        except KafkaError as error:
            log.warning("partitions cannot be opened now: %s", why(error))
            return False
