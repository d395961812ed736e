"""A mirror that never delays the stream: summaries wait in a bounded queue, and one task writes them in batches."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import orjson

from schemas.errors import TransientError
from streams.mirror.contract import MirrorStore

__all__ = ["WriteBehind"]

log = logging.getLogger(__name__)

BATCH_USERS = 500
"Users per write to a store."
CLOSE_S = 3.0
"Seconds that a store may take for each step of the end."


class WriteBehind:
    """A `Mirror` in front of a store.

    At most `capacity` entries wait. When the queue is full, new summaries are dropped; removals still enter. A user's newest
    entry replaces the waiting one. A summary whose write fails is dropped, because the user's next change writes it again. A
    removal is repeated until it succeeds, also when a later summary of the user fails; only the end of the process loses it.
    Failures and drops are counted, never raised.
    """

    def __init__(self, store: MirrorStore, *, capacity: int = 20_000, interval_s: float = 0.2) -> None:
        self._store = store
        self._capacity = capacity
        self._interval_s = interval_s
        self._waiting: dict[str, bytes | None] = {}
        self._erased: set[str] = set()
        "Users whose removal the store has not confirmed, even if a later summary replaced it in the queue."
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
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
        """Write the queue once, and disconnect. A write that is under way is waited for, for `CLOSE_S` seconds."""
        if self._task is not None:
            self._stopping.set()
            await asyncio.wait([self._task], timeout=CLOSE_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._store.close()

    async def flush(self) -> None:
        """Write the queue now. Failures are counted. A failed removal, or summary after one, is a removal in the next flush."""
        while self._waiting:
            batch = dict(list(self._waiting.items())[:BATCH_USERS])
            erased = batch.keys() & self._erased
            self._erased -= erased  # a user may be erased again while the batch is being written
            for user_id in batch:
                del self._waiting[user_id]
            try:
                await self._store.write(batch)
            except BaseException as error:
                self.counters["failed"] += len(batch)
                self._erased |= erased
                for user_id in erased:
                    self._waiting.setdefault(user_id, None)
                if isinstance(error, TransientError):
                    return
                raise
            self.counters["written"] += len(batch)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._stopping.wait()
                    return
            try:
                await self.flush()
            except Exception:
                log.exception("the mirror's store failed in an unexpected way; waiting summaries are written later")
