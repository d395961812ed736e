"""Lanes of chunks: each partition applies its chunks in order, several partitions concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from agents.findings import heals
from agents.metrics import Metrics
from agents.partitions.assignment import Assignment
from agents.partitions.ownership import Partition
from agents.partitions.recovery import Recovery
from agents.partitions.users import UserPartition
from agents.tasks import Crash, crash_on_error
from schemas.errors import RiffleError
from streams.kafka.chunks import Chunk

__all__ = ["Lanes"]

APPLIED_AT_ONCE = 2
"Maximum number of chunks applied concurrently, of different partitions: compiled loops in threads then use two cores."
BUSY_CHUNK = 100
"Number of records in a chunk that indicates a replay or a backlog. Summaries then wait, so that each is written less often."


class Lanes:
    """Applies chunks to owned partitions."""

    def __init__(self, assignment: Assignment, recovery: Recovery, metrics: Metrics, crash: Crash) -> None:
        self._assignment = assignment
        self._recovery = recovery
        self._metrics = metrics
        self._ended = crash_on_error(crash)
        self._applying: dict[tuple[str, int], asyncio.Task[None]] = {}
        "Chunks being applied, by topic and partition."
        self._stopping = False
        self.taken_in = 0
        "Number of records handed to partitions so far, including replayed ones."
        self.busy_chunks = 0
        "Number of chunks of many events that were applied so far."
        self.broken = False
        "Whether applying a chunk failed because of a bug of this program, so that the state in memory may be wrong."

    async def apply(self, parts: Mapping[int, Partition], chunk: Chunk) -> None:
        """Start applying a chunk, after the earlier ones of its partition; returns once it has started.

        It starts when fewer than APPLIED_AT_ONCE chunks are being applied. Cancelling the caller does not interrupt it, because
        a chunk must not be applied in part. A chunk of an earlier generation is dropped, because it is read again.
        """
        lane = chunk.topic, chunk.partition
        while lane in self._applying or len(self._applying) >= APPLIED_AT_ONCE:
            await asyncio.wait(self._applying.values(), return_when=asyncio.FIRST_COMPLETED)
        task = self._applying[lane] = asyncio.create_task(self._apply(parts, chunk))

        def done(task: asyncio.Task[None]) -> None:
            del self._applying[lane]
            self._ended(task)

        task.add_done_callback(done)

    async def stop(self) -> None:
        """Finish the chunks that are being applied; waiting chunks are left to the next owner."""
        self._stopping = True
        self._assignment.settled.set()
        if self._applying:
            await asyncio.wait(self._applying.values())

    async def _apply(self, parts: Mapping[int, Partition], chunk: Chunk) -> None:
        while True:
            await self._assignment.settled.wait()
            if self._over():
                return
            part = parts.get(chunk.partition)
            if part is None or self._is_old(part, chunk):
                self._metrics.chunks_dropped.add(reason="earlier generation")
                return
            if not part.state.ready.is_set():
                self._metrics.chunks_dropped.add(reason="partition in trouble")
                return  # it is read again once the partition is open
            if part.full and not await self._made_room(part):
                continue
            if isinstance(part, UserPartition):
                await part.fetch_schemas(chunk)
            if await self._applied(parts, part, chunk):
                return

    def _over(self) -> bool:
        return self.broken or self._stopping

    def _is_old(self, part: Partition, chunk: Chunk) -> bool:
        """Return whether the chunk was fetched before the partition was opened. Earlier records may then be missing."""
        return chunk.generation < max(self._assignment.generation, part.state.from_generation)

    async def _made_room(self, part: Partition) -> bool:
        """Flush a full partition, so that its dirty rows stay bounded even if events arrive faster than flushes."""
        try:
            await part.flush()
        except Exception as error:
            if not heals(error):
                raise
            self._recovery.failed(part, error)
            return False
        return True

    async def _applied(self, parts: Mapping[int, Partition], part: Partition, chunk: Chunk) -> bool:
        """Apply the chunk; returns whether it is finished, False if a rebalance or the shutdown began while it waited."""
        begun = False
        try:
            async with part.state.changing():
                still_mine = parts.get(chunk.partition) is part and not self._is_old(part, chunk)
                usable = still_mine and part.state.ready.is_set()
                if not usable or self._over() or not self._assignment.settled.is_set():
                    return False
                self.busy_chunks += len(chunk) >= BUSY_CHUNK
                self.taken_in += len(chunk)
                begun = True
                await part.apply(chunk)
        except BaseException as error:
            # partly applied: it must not become durable, and no later chunk may be applied after it
            if isinstance(error, RiffleError) and heals(error):
                self._recovery.failed(part, error)
                return True
            self.broken = self.broken or begun
            raise
        return True
