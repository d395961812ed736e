"""The worker's producers beside those of partitions: replies must leave at once, events must not be lost."""

from __future__ import annotations

from collections.abc import Callable

from aiokafka import AIOKafkaProducer

from agents.health.findings import NOTED_S, Health
from agents.metrics import Metrics
from schemas.settings import Settings
from streams.kafka.chunks import METADATA_MAX_AGE_MS
from streams.kafka.healing_producer import HealingProducer

__all__ = ["events_producer", "note_replaced", "replies_producer"]


def replies_producer(settings: Settings, replaced: Callable[[str], None]) -> HealingProducer:
    """Sends replies and impressions without a wait for others."""
    return HealingProducer(
        lambda: AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers, linger_ms=0, acks=1, metadata_max_age_ms=METADATA_MAX_AGE_MS
        ),
        replaced,
    )


def events_producer(settings: Settings, replaced: Callable[[str], None]) -> HealingProducer:
    """Sends what came over HTTP, acknowledged by all replicas."""
    return HealingProducer(
        lambda: AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers,
            linger_ms=2,
            acks="all",
            enable_idempotence=True,
            max_request_size=2 << 20,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
        ),
        replaced,
    )


def note_replaced(metrics: Metrics, health: Health) -> Callable[[str], None]:
    """A callback that counts and reports that a producer was replaced, with the reason."""

    def replaced(reason: str) -> None:
        metrics.producers_replaced.add()
        health.warn("producer", f"a producer was replaced: {reason}", for_s=NOTED_S)

    return replaced
