"""Producing a dataset to the topics: every record acknowledged, a user's events in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer

from schemas.codec import encode
from schemas.records import Interaction, Item
from streams.settings import Settings

__all__ = ["produce", "produce_events", "produce_items"]

WINDOW = 5_000
"Records that may be unacknowledged at once."

Progress = Callable[[int], None]


async def produce(
    settings: Settings,
    topic: str,
    records: Iterable[tuple[str, Mapping[str, Any]]],
    schema: str,
    rate: float | None = None,
    progress: Progress | None = None,
) -> dict[int, int]:
    """Send (key, datum) records; returns the last offset per partition when all are acknowledged.

    `rate`: records per second, paced by when each is due, so that a slow broker does not lower it silently; None: as fast
    as acknowledgements allow.

    Raises:
        aiokafka.errors.KafkaError: a record was refused; those before it are in.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        linger_ms=10,
        max_batch_size=1 << 18,
        max_request_size=2 << 20,
    )
    await producer.start()
    last: dict[int, int] = {}
    try:
        started, pending, sent = time.perf_counter(), [], 0
        for key, datum in records:
            if rate is not None:
                due = started + sent / rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
            pending.append(await producer.send(topic, encode(schema, datum), key=key.encode()))
            sent += 1
            if len(pending) >= WINDOW:
                _note(last, [await future for future in pending])
                pending.clear()
            if progress is not None and sent % 500 == 0:
                progress(sent)
        await producer.flush()
        _note(last, [await future for future in pending])
        if progress is not None:
            progress(sent)
    finally:
        await producer.stop()
    return last


def _note(last: dict[int, int], acknowledged: list[Any]) -> None:
    for meta in acknowledged:
        last[meta.partition] = max(last.get(meta.partition, -1), meta.offset)


async def produce_items(settings: Settings, items: Iterable[Item], progress: Progress | None = None) -> None:
    """Send catalogue entries."""
    names = Item.__dataclass_fields__

    def data() -> Iterable[tuple[str, Mapping[str, Any]]]:
        for item in items:
            yield item.item_id, {**{n: getattr(item, n) for n in names}, "categories": list(item.categories)}

    await produce(settings, settings.topic("items"), data(), "item", progress=progress)


async def produce_events(
    settings: Settings, events: Iterable[Interaction], rate: float | None = None, progress: Progress | None = None
) -> dict[int, int]:
    """Send events, keyed by user; returns the last offset per partition: a token for each."""
    names = Interaction.__dataclass_fields__

    def data() -> Iterable[tuple[str, Mapping[str, Any]]]:
        for event in events:
            yield event.user_id, {n: getattr(event, n) for n in names}

    return await produce(settings, settings.topic("interactions"), data(), "interaction", rate, progress)
