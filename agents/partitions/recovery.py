"""Reopens failed partitions, while the others continue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
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
PAST_MOST_S = 4.0
"""Their maximum for a partition that is past what it failed at before. It bounds how long unrelated failures in a row keep it
closed, and how often a partition that works for a moment each time makes the group rebalance."""
Key = tuple[str, int] | None
"Changelog and partition; None for standby copies."


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failure of a partition."""

    applied: int
    "Newest source offset in memory at that time."
    spoiled: bool
    "Whether the record after it may be the cause; else the transaction of the records up to it is."

    def is_past(self, part: Partition) -> bool:
        """Whether the partition has made durable since then what it failed at, or reads a source that begins anew."""
        state = part.state
        return state.durable >= self.applied + self.spoiled or state.applied < self.applied


class Recovery:
    """Reopens failed partitions.

    A partition fails, with a `trouble`, if the broker fenced or forgot its producer or found it out of sequence, or if its rows
    are damaged or cannot be written. The worker first rejoins the group. This confirms that it still owns the partition before
    it fences other writers. Further attempts follow at growing intervals, without a rebalance. The partition's records are read
    again once it is open. Each partition has its own interval, which stays short while the partition gets past what it failed
    at: unrelated failures do not add up, and a record that fails each time does not keep the group from work.

    `taking`: held while partitions are opened or closed. `generation`: the group generation in which they were opened.
    `rejoin`: rejoins the group and returns the resulting generation, -1 if there is none. `due`: set while a partition must be
    reopened. `clock`: monotonic, in seconds.
    """

    def __init__(
        self,
        ownership: Ownership,
        metrics: Metrics,
        taking: asyncio.Lock,
        generation: Callable[[], int],
        rejoin: Callable[[], Awaitable[int]],
        due: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ownership = ownership
        self._metrics = metrics
        self._taking = taking
        self._generation = generation
        self._rejoin = rejoin
        self._clock = clock
        self._back_offs: dict[Key, BackOff] = {}
        self._due_at: dict[Key, float] = {}
        "Time of the next attempt."
        self._scheduled = asyncio.Event()
        "Set when an attempt is scheduled."
        self._failures: dict[Key, _Failure] = {}
        self._confirmed = -1
        "Generation in which the group confirmed this worker's partitions after the newest failure."
        self.due = due

    def failed(self, part: Partition, error: BaseException) -> None:
        """Mark a partition as failed: requests do not read it, its chunks are dropped, and it will be reopened."""
        state = part.state
        key = _key(part)
        last = self._failures.get(key)
        self._failures[key] = _Failure(state.applied, state.spoiled)
        past = not state.probe_reason and (last is None or last.is_past(part))
        self._schedule(key, PAST_MOST_S if past else MOST_S)
        log.warning("%s-%d is being reopened: %s", state.changelog, part.partition, why(error), exc_info=error)
        self._metrics.partitions_failed.add(table=state.changelog, code=code_of(error))
        self._confirmed = -1
        state.fail(error)
        self.due.set()

    async def look(self) -> None:
        """Schedule the reopening of partitions and copies whose rows were found damaged."""
        for part in self._ownership.parts():
            if part.state.store.damaged and part.state.trouble is None:
                message = f"a damaged block was found in {part.state.store.folder}: it is rebuilt from the changelog"
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
            await self._until_due()
            async with self._taking:
                self.due.clear()
                failed = self._failed_keys()
                if self._ownership.standby.damaged():
                    unread = True  # rejoining recreates copies
                elif failed and not unread:
                    tried = {key for key in failed if self._due_at.get(key, 0.0) <= self._clock()}
                    unread = self._confirmed != self._generation() or await self._reopened(tried)
                    if not unread:
                        self.due.set()
            if unread:
                self._due_at.clear()  # rejoining tries all
            if unread:
                joined = await self._rejoin()
                self._confirmed, unread = joined, joined < 0
                if unread:
                    self.due.set()

    def _failed_keys(self) -> list[Key]:
        return [_key(part) for part in self._ownership.troubled()]

    def _schedule(self, key: Key, most_s: float) -> None:
        if key not in self._back_offs:
            self._back_offs[key] = BackOff(FIRST_S, MOST_S, self._clock)
        self._due_at[key] = self._clock() + min(self._back_offs[key].failed(), most_s)
        self._scheduled.set()

    async def _until_due(self) -> None:
        """Wait for the first attempt that is due. A failure during the wait may be due earlier."""
        while True:
            await asyncio.sleep(0)  # also when it is due at once
            keys = self._failed_keys() or [None]
            for key in keys:
                if key not in self._due_at:
                    self._schedule(key, MOST_S)
            left = min(self._due_at[key] for key in keys) - self._clock()
            if left <= 0:
                return
            self._scheduled.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._scheduled.wait()

    async def _reopened(self, keys: Collection[Key]) -> bool:
        for key in keys:
            self._due_at.pop(key, None)
        try:
            return await self._ownership.reopen(self._generation(), keys)
        except KafkaError as error:
            log.warning("partitions cannot be opened now: %s", why(error))
            return False


def _key(part: Partition) -> Key:
    return part.state.changelog, part.partition
