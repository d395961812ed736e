"""Series of a metric: values by labels, stored by `prometheus_client`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Generic, TypeVar

import prometheus_client
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.samples import Sample

__all__ = ["MAX_SERIES", "OVERFLOW", "Counter", "Gauge", "Histogram", "cumulated", "kept_samples"]

MAX_SERIES = 1_000
'Maximum number of label combinations per name. Further ones are summed up under `overflow="true"`.'
OVERFLOW = "overflow"

M = TypeVar("M", bound=MetricWrapperBase)


class Series(Generic[M]):
    """One metric, with its series by label values. An omitted label is absent from the output.

    Label values must come from code, not from users, so that the number of series is bounded.
    """

    def __init__(self, metric: M, labels: tuple[str, ...]) -> None:
        self.metric = metric
        self._labels = labels
        self._known: dict[tuple[str, ...], M] = {}

    def of(self, labels: dict[str, object]) -> M:
        """Return the series of these labels; `labels` is emptied."""
        key = tuple([str(labels.pop(name, "")) for name in self._labels])
        if labels:
            raise ValueError(f"{self.metric} has no label {', '.join(labels)}")
        found = self._known.get(key)
        if found is None:
            if not self._labels:
                return self.metric
            if len(self._known) >= MAX_SERIES:
                return self.metric.labels(*[""] * len(self._labels), "true")
            found = self._known[key] = self.metric.labels(*key, "")
        return found

    def value(self, **labels: object) -> float:
        """Return the current value; 0.0 if the series was never used."""
        wanted = {name: str(value) for name, value in labels.items()}
        samples = [sample for family in self.metric.collect() for sample in kept_samples(family)]
        return next((sample.value for sample in samples if sample.labels == wanted), 0.0)

    def values(self) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of every series."""
        return [(sample.labels, sample.value) for family in self.metric.collect() for sample in kept_samples(family)]


class Counter(Series[prometheus_client.Counter]):
    """A sum, such as of events by outcome."""

    def add(self, n: float = 1, /, **labels: object) -> None:
        """Add `n`.

        Raises:
            ValueError: `n` is negative.
        """
        self.of(labels).inc(n)

    def timed(self, **labels: object) -> AbstractContextManager[None]:
        """Add the elapsed seconds of a block, also of one that fails."""
        return _timed(partial(self.add, **labels))


class Gauge(Series[prometheus_client.Gauge]):
    """A value that may rise and fall."""

    def set(self, value: float, /, **labels: object) -> None:
        """Set the value."""
        self.of(labels).set(value)

    def replace(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Set the values by label values, in the order of the labels, and remove all other series."""
        for key in set(self._known) - set(values):
            del self._known[key]
            self.metric.remove(*key, "")
        for key, value in values.items():
            self.of(dict(zip(self._labels, key, strict=True))).set(value)


class Histogram(Series[prometheus_client.Histogram]):
    """Values, mostly durations in seconds, counted in buckets up to `bounds`, the last of which is infinite."""

    def __init__(self, metric: prometheus_client.Histogram, labels: tuple[str, ...], buckets: tuple[float, ...]) -> None:
        super().__init__(metric, labels)
        self.bounds = (*buckets, math.inf)

    def observe(self, value: float, /, **labels: object) -> None:
        """Add one value."""
        self.of(labels).observe(value)

    def timed(self, **labels: object) -> AbstractContextManager[None]:
        """Add the elapsed seconds of a block, also of one that fails."""
        return _timed(partial(self.observe, **labels))


@contextmanager
def _timed(note: Callable[[float], None]) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        note(time.perf_counter() - started)


def cumulated(histogram: Histogram) -> list[float]:
    """Return a histogram's cumulated counts up to each of its `bounds`, summed over all series."""
    sums = dict.fromkeys(histogram.bounds, 0.0)
    for family in histogram.metric.collect():
        for sample in family.samples:
            if (bound := sample.labels.get("le")) is not None:
                sums[float(bound)] += sample.value
    return list(sums.values())


def kept_samples(family: Metric) -> Iterator[Sample]:
    """Yield samples without their empty labels, which Prometheus treats as absent, and without creation times."""
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            labels = {name: _bound(value) if name == "le" else value for name, value in sample.labels.items() if value}
            yield sample._replace(labels=labels)


def _bound(text: str) -> str:
    """Format a bucket's bound. Whole seconds have no fraction, so that the names of existing series do not change."""
    return text.removesuffix(".0")
