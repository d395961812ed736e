"""The metrics of a worker and of a ranking process. Every name is defined here; `prometheus_client` stores and prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import prometheus_client
from prometheus_client import Metric, ProcessCollector, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from agents.series import MAX_SERIES, OVERFLOW, Counter, Gauge, Histogram, cumulated, kept_samples

__all__ = [
    "ANSWER_BUCKETS_S",
    "BUCKETS_S",
    "MAX_SERIES",
    "Counter",
    "Defined",
    "Gauge",
    "Histogram",
    "Metrics",
    "cumulated",
]

BUCKETS_S: tuple[float, ...] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"Upper bounds of histogram buckets, in seconds."
ANSWER_BUCKETS_S: tuple[float, ...] = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0),
)
"The same for answers: from 1 ms to 2 s in small steps."
VISIBLE_BUCKETS_S: tuple[float, ...] = (*ANSWER_BUCKETS_S, 30.0, 60.0, 300.0, 1_800.0)
"The same for the time until an event is reflected, which is as long as a backlog of events."
STAGE_BUCKETS_S: tuple[float, ...] = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005),
    *(0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0),
)
"The same for a stage of the pipeline, which takes from some 50 µs to 50 ms."
BATCH_BUCKETS: tuple[float, ...] = (1, 2, 4, 8, 16, 24, 32)
"Upper bounds of the numbers of requests in a batch."
PREFIX = "riffle_"


@dataclass(frozen=True, slots=True)
class Defined:
    """One metric as the page of metrics lists it. `name` is the one that Prometheus shows."""

    section: str
    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


class Metrics(Collector):
    """All metrics of one worker. Thread-safe. Each instance has separate metrics, outside of the global registry.

    A counter's name omits the suffix `_total`. Update metrics once per chunk, batch or request, never per event.
    """

    def __init__(self) -> None:
        self._all: list[MetricWrapperBase] = []
        self.defined: list[Defined] = []
        "Every metric, in the order of definition."
        self._section = ""
        self._process = ProcessCollector(registry=None)
        self._of_events()
        self._of_partitions()
        self._of_requests()
        self._of_http()
        self._of_pipeline()
        self._of_releases()
        self._of_rules()
        self._of_trainings()
        self._of_process()

    def _of_events(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._section = "Events and items"
        self.events = counter(
            "events",
            "Events read, by outcome: `applied`, `duplicate`, `shown` (impressions), `dead_letter`, `replayed`.",
            "outcome",
            "code",
        )
        self.events_missing = counter(
            "events_missing", "Records deleted from a source topic before they were applied.", "topic", "partition"
        )
        self.event_visible_seconds = self._histogram(
            "event_visible_seconds",
            "Seconds from the timestamp of a chunk's oldest new record until slates reflect the chunk.",
            buckets=VISIBLE_BUCKETS_S,
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

    def _of_partitions(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self._section = "Partitions, flushes and Kafka"
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
        self.commit_seconds = histogram(
            "commit_seconds", "Seconds that commits of positions took, of answered requests or of tasks.", "what"
        )
        self.mirrored_users = gauge("mirrored_users", "Users mirrored to Redis since the start.", "outcome")
        self.mirror_dropped = counter("mirror_dropped", "Users not mirrored because too many waited.")
        self.archived = gauge("archived", "Counters of this process's archivers.", "what")
        self.archive_failures = counter("archive_failures", "Failures of the archive, which is retried.")

    def _of_requests(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._section = "Requests"
        self.requests = counter(
            "requests",
            "Requests, by outcome: `slate`, `degraded`, `malformed`, `lost`, or the code of their error.",
            "outcome",
            "code",
        )
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

    def _of_pipeline(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._section = "Pipeline"
        self.stage_seconds = self._histogram(
            "stage_seconds", "Seconds that a batch of requests took in a stage.", "stage", buckets=STAGE_BUCKETS_S
        )
        self.batch_seconds = self._histogram(
            "batch_seconds",
            "Seconds that a batch of requests took, from its first stage to its answers.",
            buckets=STAGE_BUCKETS_S,
        )
        self.batch_requests = self._histogram("batch_requests", "Requests in a batch.", buckets=BATCH_BUCKETS)
        self.requests_waiting = gauge("requests_waiting", "Requests that wait for a batch.")
        self.retrieved = counter("retrieved", "Candidates that sources retrieved, before they are merged.", "source")
        self.candidates = counter(
            "candidates", "Candidates that passed a stage: `merge`, `filter`, `light` (the light cut), `select`.", "stage"
        )
        self.pipeline_filter = gauge("pipeline_filter", "Candidates removed since the start, by filter.", "name")
        self.pipeline_failed = gauge("pipeline_failed", "Failures since the start, by part of the pipeline.", "name")

    def _of_process(self) -> None:
        gauge = self._gauge
        self._section = "The process"
        self.ready = gauge("ready", "Whether requests are answered, as `/readyz` reports: 1 or 0.")
        self.warnings = gauge("warnings", "Warnings of `/readyz`, with value 1 while one is shown.", "name")
        self.build_info = gauge("build_info", "Version of Riffle, with value 1.", "version")
        self.build_info.set(1, version=_version())

    def _of_rules(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._section = "Rules"
        self.rule_sets = counter("rule_sets", "Rule sets read from their topic, by outcome.", "outcome", "code")
        self.rules_version = gauge("rules_version", "Version of the serving rule set, 0 without one.")
        self.rules = gauge("rules", "Serving rules, by state.", "state")
        self.rules_pins_skipped = gauge("rules_pins_skipped", "Pins skipped since the start, by reason.", "reason")

    def _of_trainings(self) -> None:
        self._section = "Trainings"
        self.training_reports = self._counter(
            "training_reports", "Reports of trainings read from their topic, by outcome.", "outcome", "code"
        )

    def _of_http(self) -> None:
        counter, histogram = self._counter, self._histogram
        self._section = "HTTP"
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
        self._section = "Releases"
        self.releases = counter("releases", "Announced releases, by outcome.", "outcome", "code")
        self.release_trained_until_ms = gauge(
            "release_trained_until_ms",
            "The same as `riffle_release_trained_until_seconds`, in milliseconds; kept for old dashboards.",
        )
        self.release_trained_until_seconds = gauge(
            "release_trained_until_seconds",
            "Newest event time that the serving release was trained on, epoch seconds; 0 without one.",
        )
        self.index_recall = gauge("index_recall", "Recall of the vector index against exact search.")
        self._section = "Ranking processes, seen by workers"
        self.rank_tasks = counter("rank_tasks", "Tasks of this worker for ranking processes, by outcome.", "outcome", "code")
        self.rank_seconds = histogram("rank_seconds", "Seconds from a task to its result.")
        self.rank_partitions = gauge("rank_partitions", "Partitions of tasks, by whether ranking processes answer.", "state")
        self._section = "Ranking processes"
        self.ranked = counter("ranked", "Tasks that a ranking process has read, by outcome.", "outcome", "code")
        self.rank_batch_seconds = histogram("rank_batch_seconds", "Seconds that a ranking process takes for a batch of tasks.")
        self.rank_provider = gauge("rank_provider", "Execution provider that runs the ranker, with value 1.", "provider")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        made = prometheus_client.Counter(PREFIX + name, text, _names(labels), registry=None)
        self._define(made, name + "_total", "counter", text, labels)
        return Counter(made, labels)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        made = prometheus_client.Gauge(PREFIX + name, text, _names(labels), registry=None)
        self._define(made, name, "gauge", text, labels)
        return Gauge(made, labels)

    def _histogram(self, name: str, text: str, *labels: str, buckets: tuple[float, ...] = BUCKETS_S) -> Histogram:
        made = prometheus_client.Histogram(PREFIX + name, text, _names(labels), buckets=buckets, registry=None)
        self._define(made, name, "histogram", text, labels, buckets)
        return Histogram(made, labels, buckets)

    def _define(
        self,
        made: MetricWrapperBase,
        name: str,
        kind: str,
        text: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...] = (),
    ) -> None:
        self._all.append(made)
        self.defined.append(Defined(self._section, PREFIX + name, kind, text, labels, buckets))

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics that have a series, and those of the operating system's process (`process_`)."""
        for metric in self._all:
            for family in metric.collect():
                family.samples = list(kept_samples(family))
                if family.samples:
                    yield family
        yield from self._process.collect()

    def render(self) -> str:
        """Format all series in Prometheus' text exposition format 0.0.4."""
        return generate_latest(self).decode()


def _names(labels: tuple[str, ...]) -> tuple[str, ...]:
    return (*labels, OVERFLOW) if labels else ()


def _version() -> str:
    try:
        return version("riffle")
    except PackageNotFoundError:
        return "unknown"
