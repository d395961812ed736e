"""The worker's producers beside those of partitions: replies must leave at once, events must not be lost."""

from __future__ import annotations

from collections.abc import Callable

from agents.health.findings import NOTED_S, Health
from agents.metrics import Metrics
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.healing_producer import HealingProducer

__all__ = ["events_producer", "note_replaced", "replies_producer"]


def replies_producer(settings: Settings, replaced: Callable[[str], None]) -> HealingProducer:
    """Sends replies and impressions without a wait for others."""
    return HealingProducer(lambda: connect.producer(settings.kafka, connect.REPLIES), replaced)


def events_producer(settings: Settings, replaced: Callable[[str], None]) -> HealingProducer:
    """Sends what came over HTTP, acknowledged by all replicas."""
    return HealingProducer(lambda: connect.producer(settings.kafka, connect.OUTPUTS), replaced)


def note_replaced(metrics: Metrics, health: Health) -> Callable[[str], None]:
    """A callback that counts and reports that a producer was replaced, with the reason."""

    def replaced(reason: str) -> None:
        metrics.producers_replaced.add()
        health.warn("producer", f"a producer was replaced: {reason}", for_s=NOTED_S)

    return replaced
