"""The life cycle of a worker: the order in which its parts start and stop."""

from __future__ import annotations

import asyncio
import logging

from faust.types import TP
from faust.web.base import Web

from agents.ending import end_within
from agents.item_history import keep_history
from agents.memory import GIVE_BACK_S, give_back
from agents.parts import Parts
from agents.web.access import Gate
from agents.web.address import advertised
from agents.web.routes import attach
from agents.web.server import Runner
from streams.kafka.chunks import ChunkedApp
from streams.kafka.topics import ensure_topics

__all__ = ["RiffleApp"]

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"Seconds within which requests that were accepted before the port was closed are answered."

# removed, because Faust's index page returns OK without any check
Web.production_blueprints = ()


class RiffleApp(ChunkedApp):
    """The Faust app with Riffle's parts in its life cycle. `create_app` sets `parts` and `gate`."""

    parts: Parts
    gate: Gate
    runner: Runner | None = None
    "Serves the HTTP interface, once it is started."

    def stop_for(self, error: BaseException) -> None:
        """Stop the worker because of an error from which it cannot recover."""
        log.critical("the worker stops: %s: %s", type(error).__name__, error, exc_info=error)
        asyncio.ensure_future(self.crash(error))  # noqa: RUF006 - the app keeps it

    async def on_start(self) -> None:
        """Start the parts before Faust's consumer joins the group."""
        await super().on_start()
        await start(self.parts)
        attach(self.web.web_app, self.parts.service, gate=self.gate)
        # replaces Faust's runner, which has aiohttp's limits and answers errors as plain text
        self.runner = Runner(self.web.web_app, self.parts.metrics, shutdown_timeout=CLOSE_S)
        self.web._runner = self.runner
        self.holding.address = await asyncio.to_thread(advertised, self.parts.settings)

    async def on_stop(self) -> None:
        """Answer until the port is closed, then flush while the consumer still owns its partitions.

        The exit is forced if that takes too long, which loses no data.
        """
        end_within(self.parts.settings.stop_timeout_s)
        await self._leave()
        # take no more chunks; the next owner reads them again
        self.consumer.stop_flow()
        self.flow_control.suspend()
        self.flow_control.clear()
        try:
            if not self.crashed:
                await self.parts.flushing.flush()
        finally:
            await stop(self.parts)
            await super().on_stop()

    async def _leave(self) -> None:
        """Close the HTTP interface while users' rows can still be read, after load balancers had time to notice."""
        self.parts.readiness.leave()
        if self.runner is None:
            return
        self.runner.leave()
        if not self.crashed:
            await asyncio.sleep(self.parts.settings.drain_s)
        await self.runner.cleanup()


async def start(parts: Parts) -> None:
    """Check topics, start producers and read the broadcast topics, before the consumer joins its group."""
    parts.ownership.lock()
    await ensure_topics(parts.settings)
    await parts.replies.start()
    await parts.events.start()
    await asyncio.to_thread(parts.shelves.find)
    if parts.settings.ranking == "remote":
        await parts.rank_tasks.start()
        parts.tasks.start("acknowledgements", parts.remote.acks.run())
    await parts.reader.start(parts.crash)
    await parts.reader.wait()
    # before the worker is ready, so that it then serves the announced release, or reports why not
    await parts.releases.take_up()
    await parts.rules.settle()
    parts.readiness.caught_up()
    await parts.mirror.start()
    parts.tasks.start("flushing", parts.flushing.run())
    parts.tasks.start("ranking", parts.recommend.run())
    parts.tasks.start("recovery", parts.recovery.run())
    parts.tasks.start("topics", parts.topic_watch.run())
    parts.tasks.start("mirroring", parts.mirroring.run())
    parts.tasks.start("releases", parts.releases.follow())
    parts.tasks.start("shelves", parts.shelves.run())
    parts.tasks.start("watch", parts.watch.run())
    parts.tasks.start("samples", parts.samples.run())
    parts.tasks.start("history", keep_history(parts.history, lambda: parts.readiness.ready()[0]))
    parts.tasks.start("broker", parts.broker.run())
    parts.tasks.start("memory", _give_back_forever())
    await parts.trainings.start(_no_progress)
    parts.archiving.start()


async def revoked(parts: Parts, partitions: set[TP]) -> None:
    """Answer requests and flush before another worker may open these partitions; `assigned` closes them."""
    parts.assignment.unsettle()
    await parts.recommend.drain()
    await parts.flushing.flush()
    parts.commits.let_go(partitions)


async def stop(parts: Parts) -> None:
    """Answer pending requests, flush applied events and release everything; also called after `start` failed."""
    await parts.archiving.stop()
    parts.flushing.stop()
    await parts.lanes.stop()
    await parts.assignment.stop()
    await parts.tasks.wait("flushing")  # a transaction must not be cancelled
    await parts.tasks.cancel(but=("ranking", "acknowledgements"))
    await parts.topic_changes.stop()
    await parts.mirror.stop()
    await parts.peers.stop()
    await parts.over_kafka.stop()
    await parts.recommend.drain()
    await parts.tasks.cancel()
    await parts.ownership.close()
    await parts.reader.stop()
    await parts.trainings.stop()
    await parts.replies.stop()
    await parts.events.stop()
    await parts.rank_tasks.stop()
    await parts.recommend.close()


def _no_progress(error: BaseException) -> None:
    """Go on without the progress of trainings, which no answer needs."""
    log.error("the progress of trainings is no longer read: %s: %s", type(error).__name__, error, exc_info=error)


async def _give_back_forever() -> None:
    while True:
        await asyncio.sleep(GIVE_BACK_S)
        await asyncio.to_thread(give_back)
