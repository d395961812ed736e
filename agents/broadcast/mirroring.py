"""Mirroring: writes summaries of users whose records changed to Redis, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import islice

from agents.metrics import Metrics
from agents.partitions.users import UserPartition
from agents.summaries import summary
from models.items.store import ItemStore
from schemas.errors import RiffleError
from streams.mirror.contract import Mirror

__all__ = ["Mirroring"]

MIRRORED_AT_ONCE, MIRRORED_WHEN_BUSY = 25, 2
MIRROR_INTERVAL_S = 0.05
MIRROR_CAPACITY = 100_000


class Mirroring:
    """Writes users' summaries. `busy_chunks`: number of chunks of many events that were applied so far."""

    def __init__(
        self,
        users: Mapping[int, UserPartition],
        items: ItemStore,
        mirror: Mirror,
        metrics: Metrics,
        busy_chunks: Callable[[], int],
    ) -> None:
        self._users = users
        self._items = items
        self._mirror = mirror
        self._metrics = metrics
        self._busy_chunks = busy_chunks
        self._seen_chunks = 0
        self._changed: dict[str, int] = {}
        "Users whose summary is due, with their partitions."

    async def take(self) -> None:
        """Add the users whose records became durable since the last call; erased users are removed from Redis at once."""
        for number, part in self._users.items():
            changed, erased = part.take_flushed()
            for user in erased:
                self._mirror.remove(user)
                self._changed.pop(user, None)
            if len(self._changed) < MIRROR_CAPACITY:
                self._changed.update(dict.fromkeys(changed, number))
            else:
                self._metrics.mirror_dropped.add(len(changed))

    async def run(self) -> None:
        """Queue summaries until cancelled; fewer during a replay, so that requests are not delayed."""
        while True:
            await asyncio.sleep(MIRROR_INTERVAL_S)
            busy_chunks = self._busy_chunks()
            most = MIRRORED_WHEN_BUSY if busy_chunks > self._seen_chunks else MIRRORED_AT_ONCE
            self._seen_chunks = busy_chunks
            for user in list(islice(self._changed, most)):
                if (number := self._changed.pop(user, None)) is not None:  # it may have been erased meanwhile
                    self._put(user, number)
                await asyncio.sleep(0)  # requests go before
            for outcome, n in self._mirror.counters.items():
                self._metrics.mirrored_users.set(n, outcome=outcome)

    def _put(self, user: str, number: int) -> None:
        part = self._users.get(number)
        if part is None or not part.state.ready.is_set():
            return
        try:
            record = part.lookup([user])[0]
        except RiffleError:
            return  # a damaged block, which the watch will detect
        if record is None:
            self._mirror.remove(user)
        else:
            self._mirror.put(user, {"user_id": user, **summary(record, self._items)})
