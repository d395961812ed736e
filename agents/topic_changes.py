"""Changes of topics under a running worker: recreated topics, and deleted records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiokafka.errors import KafkaError

from agents.findings import Health, why
from agents.partitions.ownership import Ownership
from agents.partitions.recovery import Recovery
from agents.requests.commits import Commits
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.chunks import ChunkedApp

__all__ = ["TopicChanges"]

log = logging.getLogger(__name__)


class TopicChanges:
    """Applies the findings of `streams.kafka.topic_watch` to partitions, the catalogue and requests."""

    def __init__(
        self,
        settings: Settings,
        app: ChunkedApp,
        ownership: Ownership,
        recovery: Recovery,
        reader: BroadcastReader,
        commits: Commits,
        health: Health,
    ) -> None:
        self._requests = settings.topic("requests")
        self._app = app
        self._ownership = ownership
        self._recovery = recovery
        self._reader = reader
        self._commits = commits
        self._health = health
        self._looking: set[asyncio.Task[None]] = set()

    def made_anew(self, topics: frozenset[str]) -> None:
        """Discard all that was read from these topics, because they were recreated with other contents."""
        for part in self._ownership.parts():
            if topics & {part.state.source, part.state.changelog} and part.state.ready.is_set():
                which = " and ".join(sorted(topics & {part.state.source, part.state.changelog}))
                message = f"{which} was recreated: the partition is reopened, with all that the other topic holds"
                self._recovery.failed(part, NotReady("not_ready", message))
        self._reader.read_again(topics)
        task = asyncio.create_task(self._look_again(anew=self._requests in topics))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    def begun(self, begins: Mapping[tuple[str, int], int]) -> None:
        """Check, by the first offsets of source partitions, whether records were deleted before they were applied."""
        for part in self._ownership.parts():
            state, before = part.state, part.state.missing
            begin = begins.get((state.source, part.partition))
            if begin is not None and state.ready.is_set():
                state.check_gaps(begin)
            if state.missing and state.missing != before:
                known = before[1] if before else state.missing[0]
                self._ownership.count_missing(part, state.missing[1] - known)
        missing = [
            f"{part.state.source}-{part.partition}: records {part.state.missing[0]} to {part.state.missing[1] - 1}"
            for part in self._ownership.parts()
            if part.state.missing
        ]
        text = "deleted before they were applied, so the tables lack their changes: "
        self._health.set("events_missing", text + "; ".join(missing) if missing else "")

    async def stop(self) -> None:
        """Cancel the running task."""
        looking = list(self._looking)
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _look_again(self, *, anew: bool) -> None:
        try:
            await self._app.consumer.look_again()
            if anew:
                await self._commits.begin_anew()
        except KafkaError as error:
            log.info("metadata cannot be requested now: %s", why(error))
