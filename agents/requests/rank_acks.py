"""Reading of the acknowledgements of ranking processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from schemas.codec import Headers
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.error_codes import advice_of

__all__ = ["RankAcks"]

log = logging.getLogger(__name__)

RETRY_S = 0.5
"Seconds before a consumer that failed is replaced."
WAIT_MS = 1_000


class RankAcks:
    """Reads a partition of the acknowledgements from its end, without a group, and passes on those of one worker.

    After an error those that came meanwhile are missed: their tasks run out of time.
    """

    def __init__(
        self, settings: Settings, partition: int, worker: bytes, take: Callable[[Headers, bytes | None], None]
    ) -> None:
        self._kafka = settings.kafka
        self._tp = TopicPartition(settings.topic("rank-acks"), partition)
        self._worker = worker
        self._take = take
        self.reading = False
        "Whether acknowledgements are read. Without them no task should be sent."

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._follow()
            except KafkaError as error:
                log.warning("acknowledgements of ranking processes cannot be read: %s; trying again", advice_of(error))
            finally:
                self.reading = False
            await asyncio.sleep(RETRY_S)

    async def _follow(self) -> None:
        consumer: Any = connect.consumer(self._kafka, connect.RANK_ACKS)
        try:
            await consumer.start()
            consumer.assign([self._tp])
            await consumer.seek_to_end(self._tp)
            await consumer.position(self._tp)
            self.reading = True
            while True:
                for records in (await consumer.getmany(timeout_ms=WAIT_MS)).values():
                    for record in records:
                        if record.key == self._worker:
                            self._pass_on(record.headers, record.value)
        finally:
            await consumer.stop()

    def _pass_on(self, headers: Headers, value: bytes | None) -> None:
        """Pass on one acknowledgement. Whatever is wrong with it must not end the reading of others."""
        try:
            self._take(headers, value)
        except Exception:
            log.exception("an acknowledgement of a ranking process is skipped")
