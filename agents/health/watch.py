"""The watch of a worker, which checks for problems every few seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from faust.types import TP

from agents.metrics import Metrics
from agents.partitions.ownership import Ownership, Partition
from agents.tasks import Crash
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.kafka.chunks import ChunkedApp, Progress
from streams.watchdog import Watchdog

__all__ = ["Watch"]

log = logging.getLogger(__name__)

WATCH_INTERVAL_S, WATCH_TIMEOUT_S = 2.0, 60.0


class Watch:
    """Runs `looks` in turn, and detects partitions that have waiting work and make no progress.

    A partition does not count as stuck while the broker is unreachable.
    """

    def __init__(
        self,
        settings: Settings,
        app: ChunkedApp,
        ownership: Ownership,
        watchdog: Watchdog,
        metrics: Metrics,
        crash: Crash,
        looks: Sequence[Callable[[], Awaitable[None]]],
    ) -> None:
        self._app = app
        self._watchdog = watchdog
        self._metrics = metrics
        self._crash = crash
        self._looks = looks
        self._tables: Mapping[str, Mapping[int, Partition]] = {
            settings.topic("interactions"): ownership.users,
            settings.topic("covisits"): ownership.covisits,
        }

    async def run(self) -> None:
        """Watch until cancelled, or until the consumer has ended, which stops the worker."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            for look in self._looks:
                await look()
            if self._app.consumer.over:
                self._crash(NotReady("not_ready", "the consumer's tasks have ended"))
                return
            await self._look_at_progress()

    async def _look_at_progress(self) -> None:
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_S):
                progress = await self._app.consumer.progress()
        except TimeoutError:
            self._watchdog.observe("the consumer's thread", None, waiting=True)
            return
        except Exception as error:
            log.warning("the consumer's position is not known: %s", error)
            return
        for tp, at in progress.items():
            self._observe(tp, at)
        lags: dict[tuple[str, ...], float] = {
            (tp.topic, str(tp.partition)): at.end - at.position for tp, at in progress.items()
        }
        self._metrics.lag.replace(lags)  # partitions that went to another worker have no lag here
        self._watchdog.keep({f"{tp.topic}-{tp.partition}" for tp in progress})

    def _observe(self, tp: TP, at: Progress) -> None:
        part = self._tables.get(tp.topic, {}).get(tp.partition)
        waiting, mark = at.end > at.position, (at.position, at.delivered, -1, -1)
        if part is not None and not part.state.ready.is_set():
            waiting = False  # being restored, which may take long
        elif part is not None:
            state = part.state
            waiting |= (at.delivered or 0) > state.applied + 1 or state.applied > state.durable
            mark = (at.position, at.delivered, state.applied, state.durable)
        self._watchdog.observe(f"{tp.topic}-{tp.partition}", mark, waiting=waiting)
