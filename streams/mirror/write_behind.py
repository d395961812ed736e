"""A mirror that never delays the stream: summaries wait in a bounded queue, and one task writes them in batches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import orjson

from schemas.errors import TransientError
from streams.mirror.contract import MirrorStore

__all__ = ["WriteBehind"]

BATCH_USERS = 500
"Users per write to a store."


class WriteBehind:
    """A `Mirror` in front of a store.

    At most `capacity` entries wait. When the queue is full, new summaries are dropped; removals still enter. A user's newest
    entry replaces the waiting one. A summary whose write fails is dropped, because the user's next change writes it again. A
    removal is repeated until it succeeds, also when a later summary of the user fails. Failures and drops are counted, never
    raised.
    """

    def __init__(self, store: MirrorStore, *, capacity: int = 20_000, interval_s: float = 0.2) -> None:
        self._store = store
        self._capacity = capacity
        self._interval_s = interval_s
        self._waiting: dict[str, bytes | None] = {}
        self._erased: set[str] = set()
        "Users whose removal the store has not confirmed, even if a later summary replaced it in the queue."
        self._task: asyncio.Task[None] | None = None
        self.counters: Counter[str] = Counter()
        "The counters of `Mirror`."

    def put(self, user_id: str, summary: Mapping[str, object]) -> None:
        """Queue a summary, as JSON. Never waits."""
        self._queue(user_id, orjson.dumps(summary, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY))

    def remove(self, user_id: str) -> None:
        """Queue a removal. Never waits."""
        self._erased.add(user_id)
        self._queue(user_id, None)

    def _queue(self, user_id: str, value: bytes | None) -> None:
        if value is not None and user_id not in self._waiting and len(self._waiting) >= self._capacity:
            self.counters["dropped"] += 1
            return
        self._waiting[user_id] = value

    async def get(self, user_id: str) -> dict[str, object] | None:
        """A user's last written summary; None when there is none, or the store does not answer."""
        try:
            found = await self._store.read(user_id)
        except TransientError:
            self.counters["failed_reads"] += 1
            return None
        return None if found is None else dict(orjson.loads(found))

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write the queue once, and disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()
        await self._store.close()

    async def flush(self) -> None:
        """Write the queue now. Failures are counted. A failed removal, or summary after one, is a removal in the next flush."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:BATCH_USERS])
            for user_id in batch:
                del self._waiting[user_id]
            try:
                await self._store.write(batch)
            except TransientError:
                self.counters["failed"] += len(batch)
                for user_id in batch.keys() & self._erased:
                    self._waiting.setdefault(user_id, None)
                return
            self._erased -= batch.keys()
            self.counters["written"] += len(batch)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()
