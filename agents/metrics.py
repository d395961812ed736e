"""The worker's metrics. Every name is defined here; `prometheus_client` stores and prints them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import prometheus_client
from prometheus_client import Metric, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["ANSWER_BUCKETS_S", "BUCKETS_S", "MAX_SERIES", "Counter", "Gauge", "Histogram", "Metrics", "cumulated"]

BUCKETS_S: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"Upper bounds of histogram buckets, in seconds."
ANSWER_BUCKETS_S: tuple[float, ...] = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0),
)
"The same for what is measured from 1 ms to 2 s: answers, and the time until an event is reflected."
MAX_SERIES = 1_000
'Maximum number of label combinations per name. Further ones are summed up under `overflow="true"`.'
PREFIX, OVERFLOW = "riffle_", "overflow"

M = TypeVar("M", bound=MetricWrapperBase)


class _Series(Generic[M]):
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
        samples = [sample for family in self.metric.collect() for sample in _kept(family)]
        return next((sample.value for sample in samples if sample.labels == wanted), 0.0)

    def values(self) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of every series."""
        return [(sample.labels, sample.value) for family in self.metric.collect() for sample in _kept(family)]


class Counter(_Series[prometheus_client.Counter]):
    """A sum, such as of events by outcome."""

    def add(self, n: float = 1, /, **labels: object) -> None:
        """Add `n`.

        Raises:
            ValueError: `n` is negative.
        """
        self.of(labels).inc(n)

    @contextmanager
    def timed(self, **labels: object) -> Iterator[None]:
        """Add the elapsed seconds of a block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - started, **labels)


class Gauge(_Series[prometheus_client.Gauge]):
    """A value that may rise and fall."""

    def set(self, value: float, /, **labels: object) -> None:
        """Set the value."""
        self.of(labels).set(value)


class Histogram(_Series[prometheus_client.Histogram]):
    """Durations in seconds, counted in buckets up to `bounds`, the last of which is infinite."""

    def __init__(self, metric: prometheus_client.Histogram, labels: tuple[str, ...], buckets: tuple[float, ...]) -> None:
        super().__init__(metric, labels)
        self.bounds = (*buckets, math.inf)

    def observe(self, seconds: float, /, **labels: object) -> None:
        """Add one duration."""
        self.of(labels).observe(seconds)


class Metrics(Collector):
    """All metrics of one worker. Thread-safe. Each instance has separate metrics, outside of the global registry.

    A counter's name omits the suffix `_total`. Update metrics once per chunk, batch or request, never per event.
    """

    def __init__(self) -> None:
        self._all: list[MetricWrapperBase] = []
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        # events and items
        self.events = counter("events", "Events read from the interactions topic, by outcome.", "outcome", "code")
        self.events_missing = counter(
            "events_missing", "Records deleted from a source topic before they were applied.", "topic", "partition"
        )
        self.event_visible_seconds = self._histogram(
            "event_visible_seconds",
            "Seconds from the timestamp of a chunk's oldest new record until slates reflect the chunk.",
            buckets=ANSWER_BUCKETS_S,
        )
        self.erasures, self.records_damaged = (
            counter("erasures", "Users erased."),
            counter("records_damaged", "Stored user records that could not be read, and were begun anew."),
        )
        self.covisits = counter("covisits", "Co-visit records that could not be applied.", "outcome")
        self.neighbours_not_kept_waiting = counter(
            "neighbours_not_kept_waiting", "Items whose neighbours are published only when they next change."
        )
        self.wrong_partition = counter("wrong_partition", "Records on another partition than that of their key.", "topic")
        self.items = counter("items", "Entries of the catalogue topic, by outcome.", "outcome", "code")
        self.items_under_another_key = counter("items_under_another_key", "Entries whose key is not their item_id.")
        self.items_waiting = gauge("items_waiting", "Entries that wait for their schema.")
        self.item_vectors = counter("item_vectors", "Records of item vectors, by outcome.", "outcome")
        self.items_known = gauge("items", "Items in the catalogue.")
        self.shelves = counter(
            "shelves",
            "Folders of the decoded catalogue that workers share, by kind (items, model) and outcome.",
            "kind",
            "outcome",
        )
        self.broadcast_rejected = counter(
            "broadcast_rejected", "Records of Riffle's own broadcast topics that were skipped.", "schema", "code"
        )

        # partitions and flushes
        self.work_seconds = counter("work_seconds", "Seconds of work, by part.", "part")
        self.flush_seconds = gauge("flush_seconds", "Seconds that the newest flush took.", "table", "partition")
        self.flush_duration_seconds = histogram("flush_duration_seconds", "Seconds that flushes took.", "table")
        self.applied_offset = gauge("applied_offset", "Newest source offset in memory.", "partition")
        self.durable_offset = gauge("durable_offset", "Newest source offset that is committed.", "partition")
        self.lag = gauge("lag", "Records between the consumer's position and the end.", "topic", "partition")
        self.partitions_failed = counter("partitions_failed", "Partitions that had to be reopened.", "table", "code")
        self.chunks_dropped = counter("chunks_dropped", "Chunks that were dropped, to be read again.", "reason")
        self.reads_failed = counter("reads_failed", "Failures of the consumer, which retries.", "code")
        self.commits_failed = counter("commits_failed", "Failed commits of answered requests.", "code")
        self.producers_replaced = counter("producers_replaced", "Producers replaced because they were broken.")
        self.mirrored_users = gauge("mirrored_users", "Users mirrored to Redis since the start.", "outcome")
        self.mirror_dropped = counter("mirror_dropped", "Users not mirrored because too many waited.")
        self.archived = gauge("archived", "Counters of this process's archivers.", "what")
        self.archive_failures = counter("archive_failures", "Failures of the archive, which is retried.")

        # requests
        self.requests = counter("requests", "Requests, by outcome.", "outcome", "code")
        self.request_seconds = histogram("request_seconds", "Seconds from a request's arrival to its answer.", "outcome")
        self.answer_seconds = self._histogram(
            "answer_seconds",
            "Seconds from a request's arrival to its answer, by interface (http, kafka) and outcome.",
            "interface",
            "outcome",
            buckets=ANSWER_BUCKETS_S,
        )
        self.degraded = counter("degraded", "Degraded slates, by what they lack.", "by")
        self.slate_items = counter("slate_items", "Items of slates, by source. An item of several counts for each.", "source")
        self.requests_forwarded = counter("requests_forwarded", "HTTP requests answered by another worker.")
        self.requests_without_owner = counter(
            "requests_without_owner",
            "HTTP requests that the user's ready owner did not answer, by what did.",
            "rows",
        )
        self.peers_failed = counter("peers_failed", "Requests to another worker that brought no slate.", "reason")
        self.request_chunks_failed = counter("request_chunks_failed", "Chunks of requests that could not be read.")
        self.sends_failed = counter("sends_failed", "Replies and other records that could not be sent.", "what", "reason")
        self.pipeline_filter = gauge("pipeline_filter", "Candidates removed since the start, by filter.", "name")
        self.pipeline_failed = gauge("pipeline_failed", "Failures since the start, by part of the pipeline.", "name")
        self._of_http()
        self._of_releases()
        self._of_rules()

    def _of_rules(self) -> None:
        counter, gauge = self._counter, self._gauge
        self.rule_sets = counter("rule_sets", "Rule sets read from their topic, by outcome.", "outcome", "code")
        self.rules_version = gauge("rules_version", "Version of the serving rule set, 0 without one.")
        self.rules = gauge("rules", "Serving rules, by state.", "state")
        self.rules_pins_skipped = gauge("rules_pins_skipped", "Pins skipped since the start, by reason.", "reason")

    def _of_http(self) -> None:
        """Define the metrics of the HTTP interface."""
        counter, histogram = self._counter, self._histogram
        self.http_events = counter("http_events", "Events received over HTTP.", "outcome")
        self.http_requests = counter("http_requests", "HTTP requests.", "route", "method", "status")
        self.http_refused = counter(
            "http_refused", "HTTP requests refused by their token, by reason and the token's name.", "reason", "token"
        )
        self.http_reloads_failed = counter(
            "http_reloads_failed", "Changed files of tokens or of the certificate that cannot be used.", "what"
        )
        self.http_list_requests = counter(
            "http_list_requests", "Requests that came over HTTP in lists, by `slate` or the code of their error.", "outcome"
        )
        self.http_request_seconds = histogram("http_request_seconds", "Seconds that HTTP requests took.", "route")

    def _of_releases(self) -> None:
        """Define the metrics of releases, and of ranking by processes of their own."""
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.releases = counter("releases", "Announced releases, by outcome.", "outcome", "code")
        self.release_trained_until_ms = gauge("release_trained_until_ms", "Newest event time that the release was trained on.")
        self.index_recall = gauge("index_recall", "Recall of the vector index against exact search.")
        self.rank_tasks = counter("rank_tasks", "Tasks of this worker for ranking processes, by outcome.", "outcome", "code")
        self.rank_seconds = histogram("rank_seconds", "Seconds from a task to its result.")
        self.rank_partitions = gauge("rank_partitions", "Partitions of tasks, by whether ranking processes answer.", "state")
        self.ranked = counter("ranked", "Tasks that a ranking process has read, by outcome.", "outcome", "code")
        self.rank_batch_seconds = histogram("rank_batch_seconds", "Seconds that a ranking process takes for a batch of tasks.")
        self.rank_provider = gauge("rank_provider", "Execution provider that runs the ranker, with value 1.", "provider")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        made = prometheus_client.Counter(PREFIX + name, text, _names(labels), registry=None)
        self._all.append(made)
        return Counter(made, labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        made = prometheus_client.Gauge(PREFIX + name, text, _names(labels), registry=None)
        self._all.append(made)
        return Gauge(made, labels)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = BUCKETS_S) -> Histogram:
        made = prometheus_client.Histogram(PREFIX + name, text, _names(labels), buckets=buckets, registry=None)
        self._all.append(made)
        return Histogram(made, labels, buckets)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that have a series."""
        for metric in self._all:
            for family in metric.collect():
                family.samples = list(_kept(family))
                if family.samples:
                    yield family

    def render(self) -> str:
        """Format all series in Prometheus' text exposition format 0.0.4."""
        return generate_latest(self).decode()


def cumulated(histogram: Histogram) -> list[float]:
    """Return a histogram's cumulated counts up to each of its `bounds`, summed over all series."""
    sums = dict.fromkeys(histogram.bounds, 0.0)
    for family in histogram.metric.collect():
        for sample in family.samples:
            if (bound := sample.labels.get("le")) is not None:
                sums[float(bound)] += sample.value
    return list(sums.values())


def _names(labels: tuple[str, ...]) -> tuple[str, ...]:
    return (*labels, OVERFLOW) if labels else ()


def _kept(family: Metric) -> Iterator[Sample]:
    """Yield samples without their empty labels, which Prometheus treats as absent, and without creation times."""
    for sample in family.samples:
        if not sample.name.endswith("_created"):
            labels = {name: _bound(value) if name == "le" else value for name, value in sample.labels.items() if value}
            yield sample._replace(labels=labels)


def _bound(text: str) -> str:
    """Format a bucket's bound. Whole seconds have no fraction, so that the names of existing series do not change."""
    return text.removesuffix(".0")
