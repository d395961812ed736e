"""Runs and monitors the archiver beside the worker."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

from agents.findings import Health, heals, why
from agents.metrics import Metrics
from schemas.codec import Registry
from schemas.errors import RiffleError
from schemas.settings import Settings

if TYPE_CHECKING:
    from streams.archive.archiver import Archiver

__all__ = ["Archiving"]

log = logging.getLogger(__name__)

RETRY_S, STOP_S = 10.0, 10.0
SHOWN_S = 4.0
"Seconds for which the finding of a stalled archiver is shown after the last check."


class Archiving:
    """Runs the archiver. A failure is counted, and archiving restarts after the last durable file; serving is not affected."""

    def __init__(self, settings: Settings, registry: Registry | None, metrics: Metrics, health: Health) -> None:
        self._settings = settings
        self._registry = registry
        self._metrics = metrics
        self._health = health
        self._archiver: Archiver | None = None
        self._task: asyncio.Task[None] | None = None
        self._counted = Counter[str]()
        "Counters of the archivers of this process."

    def start(self) -> None:
        """Start the archiver, unless the settings turn the archive off."""
        if self._settings.archive != "off":
            self._task = asyncio.create_task(self._run(), name="archive")

    async def stop(self) -> None:
        """Write the records in memory, within `STOP_S` seconds, and stop."""
        if self._archiver is not None:
            self._archiver.stop()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Update the metrics and report a stalled archiver; must be called more often than every `SHOWN_S` seconds."""
        for what, n in self._counted.items():
            self._metrics.archived.set(n, what=what)
        if self._archiver is not None and (text := self._archiver.stalled()):
            self._health.warn("archive", f"the archive stands still: {text}", for_s=SHOWN_S)

    async def _run(self) -> None:
        while True:
            try:
                self._archiver = await asyncio.to_thread(_archiver, self._settings, self._registry)
                self._archiver.counters = self._counted
                await self._archiver.run()
            except Exception as error:
                log.exception("the archive failed; it is tried again in %.0f s", RETRY_S)
                self._metrics.archive_failures.add()
                text = why(error) if heals(error) or isinstance(error, RiffleError) else f"{type(error).__name__}: {error}"
                self._health.warn("archive", f"the archive stands still: {text}", for_s=RETRY_S * 3)
                self._archiver = None
                await asyncio.sleep(RETRY_S)
            else:
                return


def _archiver(settings: Settings, registry: Registry | None) -> Archiver:
    # imported here, because importing the Parquet writer takes half a second and requests do not need it
    from streams.archive.archiver import Archiver

    return Archiver(settings, registry)
