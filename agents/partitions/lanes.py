"""Lanes of chunks: each partition applies its chunks one after the other, several partitions at once."""

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
"Chunks being applied at once, of different partitions: what compiled loops do in threads is shared out over two cores."
BUSY_CHUNK = 100
"Records of a chunk that indicate a replay or a backlog: summaries then wait, and change less often before they are written."


class Lanes:
    """Applies chunks to the partitions that are owned."""

    def __init__(self, assignment: Assignment, recovery: Recovery, metrics: Metrics, crash: Crash) -> None:
        self._assignment = assignment
        self._recovery = recovery
        self._metrics = metrics
        self._ended = crash_on_error(crash)
        self._applying: dict[tuple[str, int], asyncio.Task[None]] = {}
        "Chunks being applied, by topic and partition."
        self._stopping = False
        self.taken_in = 0
        "Events handed to partitions so far, replayed ones too."
        self.busy_chunks = 0
        "Chunks of many events applied so far."
        self.broken = False
        "A chunk could not be applied, by a fault of this program: memory is not to be trusted any more."

    async def apply(self, parts: Mapping[int, Partition], chunk: Chunk) -> None:
        """Have a chunk applied after those of its partition that came before; returns when another one may be.

        It is applied to its end, whoever is cancelled meanwhile: half a chunk must not be left behind. One of an earlier
        generation is dropped, because it is read again.
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
        """End the chunks in work, and leave those that wait to the next owner."""
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
                await part.look_up(chunk)
            if await self._applied(parts, part, chunk):
                return

    def _over(self) -> bool:
        return self.broken or self._stopping

    def _is_old(self, part: Partition, chunk: Chunk) -> bool:
        """Whether the chunk was fetched before the partition was opened, and so may begin behind records it lacks."""
        return chunk.generation < max(self._assignment.generation, part.state.from_generation)

    async def _made_room(self, part: Partition) -> bool:
        """Flush a full partition: what is not durable stays bounded, also when events come faster than flushes."""
        try:
            await part.flush()
        except Exception as error:
            if not heals(error):
                raise
            self._recovery.failed(part, error)
            return False
        return True

    async def _applied(self, parts: Mapping[int, Partition], part: Partition, chunk: Chunk) -> bool:
        """Apply the chunk; returns whether it is done with, False when a rebalance or the end began while it waited."""
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
            # half applied: nothing of it may become durable, and no later chunk may be applied over it
            if isinstance(error, RiffleError) and heals(error):
                self._recovery.failed(part, error)
                return True
            self.broken = self.broken or begun
            raise
        return True
