"""Flushes: makes applied events durable, and commits the offsets of answered requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from agents.findings import heals
from agents.partitions.assignment import Assignment
from agents.partitions.lanes import Lanes
from agents.partitions.ownership import Ownership, Partition
from agents.partitions.recovery import Recovery
from agents.partitions.users import UserPartition
from agents.tasks import Crash
from streams.kafka.chunks import ChunkedApp

__all__ = ["Flushing"]

BACKLOG_PER_S, BACKLOG_INTERVALS = 5_000, 2.0
"""Events per second that indicate a backlog, and the number of commit intervals between flushes during one. Rows that change
often are then written less often; reads from memory are not affected."""
SPREAD = 0.75
"Share of the commit interval over which the starts of partitions' flushes are spread."


class Flushing:
    """Flushes all partitions, at intervals and before partitions are closed. `afterwards` are awaited after each flush."""

    def __init__(
        self,
        app: ChunkedApp,
        ownership: Ownership,
        assignment: Assignment,
        lanes: Lanes,
        recovery: Recovery,
        crash: Crash,
        interval_s: float,
        afterwards: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._app = app
        self._ownership = ownership
        self._assignment = assignment
        self._lanes = lanes
        self._recovery = recovery
        self._crash = crash
        self._interval_s = interval_s
        self._afterwards = afterwards
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Make `run` end after the current flush."""
        self._stopping.set()

    async def run(self) -> None:
        """Flush at intervals, until `stop`. Never cancel it within a transaction, because the records queued in it could then
        neither be sent nor dropped, and would block the shutdown."""
        seconds = (1 - SPREAD) * self._interval_s
        while not self._stopping.is_set():
            before = self._lanes.taken_in
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stopping.wait()
            backlog = self._lanes.taken_in - before > BACKLOG_PER_S * seconds
            seconds = (BACKLOG_INTERVALS - SPREAD if backlog else 1 - SPREAD) * self._interval_s
            if self._app.rebalancing or self._stopping.is_set():
                continue
            try:
                await self.flush(now=False)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                self._crash(error)
                return

    async def flush(self, *, now: bool = True) -> None:
        """Make all applied events durable, and commit the offsets of answered requests.

        Without `now`, neighbours may wait, and the starts of partitions are spread over the commit interval. Listing a
        partition's rows blocks the event loop for some milliseconds; all at once would delay requests by a tenth of a second.
        """
        if self._lanes.broken:
            return
        parts = [part for part in self._ownership.parts() if part.state.ready.is_set()]
        step = 0.0 if now else SPREAD * self._interval_s / max(len(parts), 1)
        ends = await asyncio.gather(
            *(self._flush_part(part, n * step, now=now) for n, part in enumerate(parts)), return_exceptions=True
        )
        for part, end in zip(parts, ends, strict=True):
            if isinstance(end, BaseException):
                if not isinstance(end, Exception) or not heals(end):
                    raise end
                if self._ownership.parts().count(part):
                    self._recovery.failed(part, end)
        for then in self._afterwards:
            await then()

    async def _flush_part(self, part: Partition, wait_s: float, *, now: bool) -> None:
        if not now:
            await asyncio.sleep(wait_s)
            if self._app.rebalancing or not self._assignment.settled.is_set() or not part.state.ready.is_set():
                return  # while partitions are opened or closed, the code that does so flushes them
        if isinstance(part, UserPartition):
            await part.flush()
        else:
            await part.flush(now=now)
