"""A small registry of counters, gauges and histograms in Prometheus' text format."""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["BUCKETS_S", "MAX_SERIES", "Metrics"]

BUCKETS_S: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"Upper bounds of histogram buckets, in seconds."
MAX_SERIES = 1_000
'Label combinations kept per name; what comes beyond is added up under `overflow="true"`.'

Labels = tuple[tuple[str, str], ...]
OVERFLOW: Labels = (("overflow", "true"),)


class _Histogram:
    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets = [0] * len(BUCKETS_S)
        self.count = 0
        self.total = 0.0


class Metrics:
    """Counters, gauges and histograms by name and labels; safe to use from several threads.

    Names are given without prefix and without the suffix of the kind: `count("events", action="view")` is rendered as
    `riffle_events_total{action="view"}`, `observe("request_seconds", 0.004)` as `riffle_request_seconds_bucket` and
    so on.
    Label values come from code, not from people: an unbounded label would otherwise be an unbounded table.
    """

    def __init__(self, prefix: str = "riffle_") -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, dict[Labels, float]] = {}
        self._histograms: dict[str, dict[Labels, _Histogram]] = {}
        self._help: dict[str, str] = {}

    def describe(self, name: str, text: str, /) -> None:
        """Set the help line of `name`."""
        self._help[name] = text

    def count(self, name: str, /, n: float = 1, **labels: object) -> None:
        """Add `n` (at least 0) to a counter.

        Raises:
            ValueError: `n` is negative.
        """
        if n < 0:
            raise ValueError(f"a counter never goes down: {name} by {n}")
        with self._lock:
            series = self._counters.setdefault(name, {})
            key = _series(series, labels)
            series[key] = series.get(key, 0) + n

    @contextmanager
    def timed(self, name: str, /, **labels: object) -> Iterator[None]:
        """Count the seconds that a block takes, by the wall clock."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.count(name, time.perf_counter() - started, **labels)

    def gauge(self, name: str, value: float, /, **labels: object) -> None:
        """Set a gauge."""
        with self._lock:
            series = self._gauges.setdefault(name, {})
            series[_series(series, labels)] = value

    def observe(self, name: str, seconds: float, /, **labels: object) -> None:
        """Add one duration, in seconds, to a histogram."""
        with self._lock:
            series = self._histograms.setdefault(name, {})
            histogram = series.setdefault(_series(series, labels), _Histogram())
            histogram.count += 1
            histogram.total += seconds
            at = bisect.bisect_left(BUCKETS_S, seconds)
            if at < len(BUCKETS_S):
                histogram.buckets[at] += 1

    def value(self, name: str, /, **labels: object) -> float:
        """Current value of a counter or gauge; 0.0 when it was never touched."""
        key = _labels(labels)
        with self._lock:
            for kind in (self._counters, self._gauges):
                if name in kind and key in kind[name]:
                    return float(kind[name][key])
        return 0.0

    def render(self) -> str:
        """All series in Prometheus' text exposition format 0.0.4, sorted by name."""
        with self._lock:
            return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        for name, series in sorted(self._counters.items()):
            full = self._prefix + (name if name.endswith("_total") else f"{name}_total")
            yield from self._head(name, full, "counter")
            yield from (f"{full}{_text(key)} {_number(value)}" for key, value in sorted(series.items()))
        for name, series in sorted(self._gauges.items()):
            yield from self._head(name, self._prefix + name, "gauge")
            yield from (f"{self._prefix}{name}{_text(key)} {_number(value)}" for key, value in sorted(series.items()))
        for name, histograms in sorted(self._histograms.items()):
            full = self._prefix + name
            yield from self._head(name, full, "histogram")
            for key, histogram in sorted(histograms.items()):
                running = 0
                for bound, count in zip(BUCKETS_S, histogram.buckets, strict=True):
                    running += count
                    yield f"{full}_bucket{_text((*key, ('le', _number(bound))))} {running}"
                yield f"{full}_bucket{_text((*key, ('le', '+Inf')))} {histogram.count}"
                yield f"{full}_sum{_text(key)} {_number(histogram.total)}"
                yield f"{full}_count{_text(key)} {histogram.count}"

    def _head(self, name: str, full: str, kind: str) -> Sequence[str]:
        described = [f"# HELP {full} {_escape(self._help[name])}"] if name in self._help else []
        return [*described, f"# TYPE {full} {kind}"]


def _labels(labels: dict[str, object]) -> Labels:
    return tuple(sorted((key, str(value)) for key, value in labels.items()))


def _series(known: dict[Labels, float] | dict[Labels, _Histogram], labels: dict[str, object]) -> Labels:
    key = _labels(labels)
    return key if key in known or len(known) < MAX_SERIES else OVERFLOW


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = ",".join('{}="{}"'.format(key, _escape(value).replace('"', '\\"')) for key, value in labels)
    return "{" + pairs + "}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))
