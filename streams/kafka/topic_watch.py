"""Detect topics that change under a running worker: deleted, recreated, truncated, or given more partitions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.errors import RiffleError
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.aiokafka_patches import AIOKafkaConsumer
from streams.kafka.error_codes import advice_of
from streams.kafka.metadata import describe_topics, differ
from streams.kafka.topics import TOPICS, ensure_topics, partitions_of

__all__ = ["TopicWatch"]

log = logging.getLogger(__name__)

LOOK_S = 10.0
"Seconds between two checks."
MISSING_LOOKS = 2
"Consecutive checks that miss a topic before it is created, because whoever deleted it may be about to recreate it."
ANSWER_S = 30.0


class TopicWatch:
    """Checks the topics every `LOOK_S` seconds.

    `warn` is called with a name and a text, which is empty when all is right. `changed` is called with the full names of topics
    that were recreated since the last check. `sources` names the partitions whose first offset is requested; `begun` is called
    with these offsets.
    """

    def __init__(
        self,
        settings: Settings,
        warn: Callable[[str, str], None],
        changed: Callable[[frozenset[str]], None],
        sources: Callable[[], Sequence[tuple[str, int]]],
        begun: Callable[[dict[tuple[str, int], int]], None],
    ) -> None:
        self._settings = settings
        self._warn = warn
        self._changed = changed
        self._sources = sources
        self._begun = begun
        self._ids: dict[str, bytes] = {}
        self._missed: dict[str, int] = {}

    async def run(self) -> None:
        """Check until cancelled. A broker that does not answer yields no finding about topics."""
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError) as error:
                log.info("the topics cannot be checked: %s", advice_of(error))
            await asyncio.sleep(LOOK_S)

    async def _follow(self) -> None:
        consumer = connect.consumer(self._settings.kafka, connect.LOOK)
        try:
            await consumer.start()
            while True:
                async with asyncio.timeout(ANSWER_S):
                    await self._look(consumer)
                    sources = [TopicPartition(*source) for source in self._sources()]
                    begins = await consumer.beginning_offsets(sources) if sources else {}
                self._begun({(tp.topic, tp.partition): offset for tp, offset in begins.items()})
                await asyncio.sleep(LOOK_S)
        finally:
            await consumer.stop()

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        full = {self._settings.topic(name): name for name in TOPICS}
        facts = await describe_topics(consumer._client, list(full))
        anew = set[str]()
        for topic, name in full.items():
            found, wanted = facts[topic], partitions_of(name, self._settings)
            self._missed[topic] = 0 if found.partitions else self._missed.get(topic, 0) + 1
            if not found.partitions:
                self._warn(f"topic {topic}", "it does not exist; it will be created unless another client creates it first")
                continue
            if differ(self._ids.get(topic, found.topic_id), found.topic_id):
                log.warning("topic %s was recreated", topic)
                anew.add(topic)
            self._ids[topic] = found.topic_id
            text = ""
            if found.partitions != wanted:
                text = (
                    f"it has {found.partitions} partitions, these settings require {wanted}: records in partitions after the "
                    f"first {wanted} are not read. Copy the topics with `riffle topics copy --partitions {found.partitions} "
                    "--to PREFIX`, and start the workers with RIFFLE_TOPIC_PREFIX and RIFFLE_PARTITIONS as it says"
                )
            self._warn(f"topic {topic}", text)
        if anew:
            self._changed(frozenset(anew))
        if any(looks >= MISSING_LOOKS for looks in self._missed.values()):
            try:
                await ensure_topics(self._settings)
            except RiffleError as error:
                log.warning("missing topics cannot be created: %s", error.message)
