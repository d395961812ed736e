"""A reader of librdkafka, and what it read."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from aiokafka.errors import KafkaError
from faust.types import TP

from schemas.settings import Settings
from streams.kafka.native.reader import NativeReader, Read

__all__ = ["Reading", "reading", "until"]

PATIENCE_S = 20.0


class Reading:
    """A reader, and what it read."""

    def __init__(self, settings: Settings) -> None:
        self.taken: dict[TP, list[Read]] = defaultdict(list)
        self.errors: list[KafkaError] = []
        self.topic = settings.topic("requests")
        self.reader = NativeReader(settings.kafka, settings.app_id, self._take, self.errors.append)

    def _take(self, tp: TP, records: Sequence[Read]) -> None:
        self.taken[tp] += records

    def offsets(self) -> dict[int, list[int]]:
        return {tp.partition: [record.offset for record in records] for tp, records in self.taken.items()}


async def until(holds: Callable[[], bool]) -> None:
    """Wait until it holds; fail after `PATIENCE_S`."""
    left = PATIENCE_S
    while not holds():
        assert left > 0, "it does not hold in time"
        await asyncio.sleep(0.02)
        left -= 0.02


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Reading]:
    made = Reading(settings)
    try:
        yield made
    finally:
        await asyncio.to_thread(made.reader.close)
        assert not made.reader.over
