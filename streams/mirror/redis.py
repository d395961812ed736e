"""Summaries of user records in Redis, for services beside the stream. Nothing here is needed to answer a request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

__all__ = ["UserMirror"]

PER_PIPELINE = 500


class UserMirror:
    """Write-behind to `<prefix>user:<user_id>` (JSON, with a time to live).

    At most `capacity` users wait, beside those to be removed, who are never dropped; the newest summary of a user replaces
    a waiting one. Failures and drops are counted, never raised: the next change of that user writes it again.
    """

    def __init__(
        self, url: str, *, prefix: str = "riffle:", ttl_s: int = 7 * 86_400, capacity: int = 20_000, interval_s: float = 0.2
    ) -> None:
        self._redis = Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self._prefix = prefix
        self._ttl_s = ttl_s
        self._capacity = capacity
        self._interval_s = interval_s
        self._waiting: dict[str, bytes | None] = {}
        self._task: asyncio.Task[None] | None = None
        self.counters: Counter[str] = Counter()
        "`written`, `dropped`, `failed`, `failed_reads`: users, not calls."

    def put(self, user_id: str, summary: Mapping[str, object]) -> None:
        """Queue a summary. Never waits."""
        self._queue(user_id, orjson.dumps(summary, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY))

    def remove(self, user_id: str) -> None:
        """Queue a removal: the user was erased. Never waits."""
        self._queue(user_id, None)

    def _queue(self, user_id: str, value: bytes | None) -> None:
        if value is not None and user_id not in self._waiting and len(self._waiting) >= self._capacity:
            self.counters["dropped"] += 1
            return
        self._waiting[user_id] = value

    async def get(self, user_id: str) -> dict[str, object] | None:
        """A person's summary as it was mirrored last; None when there is none, or Redis does not answer."""
        try:
            found = await self._redis.get(f"{self._prefix}user:{user_id}")
        except (RedisError, OSError, TimeoutError):
            self.counters["failed_reads"] += 1
            return None
        return None if found is None else dict(orjson.loads(found))

    async def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what waits, once, and disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self.flush()
        await self._redis.aclose()

    async def flush(self) -> None:
        """Write what waits now; what fails is counted and forgotten, but a removal waits for the next flush."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:PER_PIPELINE])
            for user_id in batch:
                del self._waiting[user_id]
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for user_id, value in batch.items():
                        name = f"{self._prefix}user:{user_id}"
                        if value is None:
                            pipe.delete(name)
                        else:
                            pipe.set(name, value, ex=self._ttl_s)
                    await pipe.execute()
            except (RedisError, OSError, TimeoutError):
                self.counters["failed"] += len(batch)
                for user_id in (u for u, value in batch.items() if value is None):
                    self._waiting.setdefault(user_id, None)
                return
            self.counters["written"] += len(batch)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            await self.flush()
