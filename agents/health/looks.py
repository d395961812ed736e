"""What the watch looks at, beside progress: each a small object with `look`, which reports to `Health`."""

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
"Seconds without another failure after which reading counts as right again."
NO_SCHEMA = 0
"An id that no registry gives."


class Reading:
    """Whether events and requests can be read."""

    def __init__(self, app: ChunkedApp, metrics: Metrics, health: Health, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._failed_s, self._failure = -READING_S, ""

    def failed(self, error: KafkaError) -> None:
        """Note that the consumer could not do something; it tries again."""
        self._metrics.reads_failed.add(code=code_of(error))
        self._failed_s, self._failure = self._clock(), why(error)

    async def look(self) -> None:
        """Report why events and requests cannot be read."""
        self._health.set("reading", self._text())

    def _text(self) -> str:
        trouble = self._app.consumer.trouble
        if trouble is not None:
            return f"the group cannot be followed: {why(trouble)}"
        if self._clock() - self._failed_s < READING_S:
            return f"events and requests cannot be read: {self._failure}"
        return ""


class CovisitTroubles:
    """Whether partitions of neighbours are in trouble: requests are answered all the same."""

    def __init__(self, ownership: Ownership, health: Health) -> None:
        self._ownership = ownership
        self._health = health

    async def look(self) -> None:
        """Report the partitions that are opened anew."""
        found = [(number, part.state.trouble) for number, part in self._ownership.covisits.items()]
        texts = [f"partition {number} is opened anew: {why(trouble)}" for number, trouble in found if trouble is not None]
        self._health.set("covisits", "; ".join(texts))


class RegistryProbe:
    """Whether the schema registry answers, also while no record needs it.

    `probe` is another client than `registry`, so that records wait as long as ever.
    """

    def __init__(self, registry: Registry, probe: Registry, health: Health) -> None:
        self._registry = registry
        self._probe = probe
        self._health = health

    async def look(self) -> None:
        """Ask, without waiting, and report what is not right."""
        await self._probe.ready({NO_SCHEMA}, 0.0)
        self._health.set("registry", self._registry.trouble() or self._probe.trouble())


class Misplaced:
    """Records on partitions that are not their keys': a producer has another partitioner than the default."""

    def __init__(self, settings: Settings, metrics: Metrics, health: Health) -> None:
        self._topics = {name: settings.topic(name) for name in ("interactions", "requests")}
        self._metrics = metrics
        self._health = health
        self._counted: dict[str, float] = {}
        "Such records, per short name of a topic, as of the last look."

    async def look(self) -> None:
        """Report topics with more such records than at the last look."""
        for topic, full in self._topics.items():
            misplaced = self._metrics.wrong_partition.value(topic=topic)
            if misplaced > self._counted.get(topic, 0):
                self._counted[topic] = misplaced
                text = (
                    f"{misplaced:.0f} records of {full} came on another partition than their key's: "
                    "set the producer's partitioner to murmur2 (librdkafka: partitioner=murmur2_random); see `riffle dlq list`"
                )
                self._health.warn(f"wrong partitions of {topic}", text, for_s=NOTED_S)


def note_replaced(metrics: Metrics, health: Health) -> Callable[[str], None]:
    """A callback that counts and reports that a producer was replaced, with the reason."""

    def replaced(reason: str) -> None:
        metrics.producers_replaced.add()
        health.warn("producer", f"a producer was replaced: {reason}", for_s=NOTED_S)

    return replaced
