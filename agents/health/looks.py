"""Checks of the watch, beside that of progress. Each is a small object whose `look` reports to `Health`."""

from __future__ import annotations

import time
from collections.abc import Callable

from aiokafka.errors import KafkaError

from agents.findings import NOTED_S, Health, code_of, why
from agents.metrics import Metrics
from agents.partitions.ownership import Ownership
from schemas.codec import Registry
from schemas.settings import Settings
from streams.kafka.chunks import ChunkedApp

__all__ = ["CovisitTroubles", "Misplaced", "Reading", "RegistryProbe", "note_replaced"]

READING_S = 5.0
"Seconds without another failure after which reading counts as recovered."
NO_SCHEMA = 0
"A schema id that no registry assigns."


class Reading:
    """Checks whether events and requests can be read."""

    def __init__(self, app: ChunkedApp, metrics: Metrics, health: Health, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._failed_s, self._failure = -READING_S, ""

    def failed(self, error: KafkaError) -> None:
        """Record an error of the consumer, which retries by itself."""
        self._metrics.reads_failed.add(code=code_of(error))
        self._failed_s, self._failure = self._clock(), why(error)

    async def look(self) -> None:
        """Report the reason if events and requests cannot be read."""
        self._health.set("reading", self._text())

    def _text(self) -> str:
        trouble = self._app.consumer.trouble
        if trouble is not None:
            return f"group membership cannot be kept: {why(trouble)}"
        if self._clock() - self._failed_s < READING_S:
            return f"events and requests cannot be read: {self._failure}"
        return ""


class CovisitTroubles:
    """Checks for failed partitions of neighbours. Requests are still answered without them."""

    def __init__(self, ownership: Ownership, health: Health) -> None:
        self._ownership = ownership
        self._health = health

    async def look(self) -> None:
        """Report the partitions that are being reopened."""
        found = [(number, part.state.trouble) for number, part in self._ownership.covisits.items()]
        texts = [f"partition {number} is being reopened: {why(trouble)}" for number, trouble in found if trouble is not None]
        self._health.set("covisits", "; ".join(texts))


class RegistryProbe:
    """Checks whether the schema registry answers, even while no record needs it.

    `probe` is a separate client from `registry`, so that it does not affect the waits of records.
    """

    def __init__(self, registry: Registry, probe: Registry, health: Health) -> None:
        self._registry = registry
        self._probe = probe
        self._health = health

    async def look(self) -> None:
        """Send a probe without waiting for it, and report the registry's current problem."""
        await self._probe.ready({NO_SCHEMA}, 0.0)
        self._health.set("registry", self._registry.trouble() or self._probe.trouble())


class Misplaced:
    """Checks for records on wrong partitions, which means that a producer does not use the default partitioner."""

    def __init__(self, settings: Settings, metrics: Metrics, health: Health) -> None:
        self._topics = {name: settings.topic(name) for name in ("interactions", "requests")}
        self._metrics = metrics
        self._health = health
        self._counted: dict[str, float] = {}
        "Number of such records at the last check, by the topic's short name."

    async def look(self) -> None:
        """Report topics with more such records than at the last check."""
        for topic, full in self._topics.items():
            misplaced = self._metrics.wrong_partition.value(topic=topic)
            if misplaced > self._counted.get(topic, 0):
                self._counted[topic] = misplaced
                text = (
                    f"{misplaced:.0f} records of {full} arrived on another partition than that of their key: "
                    "set the producer's partitioner to murmur2 (librdkafka: partitioner=murmur2_random); see `riffle dlq list`"
                )
                self._health.warn(f"wrong partitions of {topic}", text, for_s=NOTED_S)


def note_replaced(metrics: Metrics, health: Health) -> Callable[[str], None]:
    """Return a callback that counts and reports the replacement of a producer, with the reason."""

    def replaced(reason: str) -> None:
        metrics.producers_replaced.add()
        health.warn("producer", f"a producer was replaced: {reason}", for_s=NOTED_S)

    return replaced
