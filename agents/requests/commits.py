"""Committed offsets of the requests topic."""

from __future__ import annotations

from aiokafka.errors import KafkaError
from faust.types import TP

from agents.findings import NOTED_S, Health, code_of, why
from agents.metrics import Metrics
from agents.requests.recommend import Recommend
from schemas.settings import Settings
from streams.kafka.chunks import ChunkedApp

__all__ = ["Commits"]


class Commits:
    """Commits the offsets of answered requests. After a failed commit a restart answers these requests again."""

    def __init__(self, settings: Settings, app: ChunkedApp, recommend: Recommend, metrics: Metrics, health: Health) -> None:
        self._partitions = settings.partitions
        self._topic = settings.topic("requests")
        self._app = app
        self._recommend = recommend
        self._metrics = metrics
        self._health = health

    async def commit(self) -> None:
        """Commit for each partition the offset below which every request is answered."""
        answered = self._recommend.committable()
        if not answered:
            return
        try:
            with self._metrics.commit_seconds.timed(what="requests"):
                await self._app.consumer.commit_offsets({TP(self._topic, p): offset for p, offset in answered.items()})
        except KafkaError as error:
            # the next flush commits them; until then a restart would answer them again
            self._metrics.commits_failed.add(code=code_of(error))
            self._health.warn("commits", f"answered requests cannot be committed: {why(error)}", for_s=NOTED_S)

    def let_go(self, partitions: set[TP]) -> None:
        """Remove the state of partitions that may go to another worker; partitions of other topics are ignored."""
        for tp in partitions:
            if tp.topic == self._topic:
                self._recommend.forget(tp.partition)

    async def begin_anew(self) -> None:
        """Read the topic from its beginning, because it was recreated and committed offsets refer to the old one.

        Raises:
            KafkaError: the broker refuses the commit.
        """
        for number in range(self._partitions):
            self._recommend.forget(number)
        await self._app.consumer.commit_offsets({TP(self._topic, number): 0 for number in range(self._partitions)})
        await self._app.consumer.rejoin()
