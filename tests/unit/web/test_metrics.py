from __future__ import annotations

import math
import re

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agents.metrics import BUCKETS_S, MAX_SERIES, Metrics

PUBLISHED = {
    "riffle_answer_seconds": ("histogram", {"interface", "outcome"}),
    "riffle_applied_offset": ("gauge", {"partition"}),
    "riffle_archive_failures_total": ("counter", set()),
    "riffle_archived": ("gauge", {"what"}),
    "riffle_batch_requests": ("histogram", set()),
    "riffle_batch_seconds": ("histogram", set()),
    "riffle_build_info": ("gauge", {"version"}),
    "riffle_candidates_total": ("counter", {"stage"}),
    "riffle_commit_seconds": ("histogram", {"what"}),
    "riffle_flush_duration_seconds": ("histogram", {"table"}),
    "riffle_ready": ("gauge", set()),
    "riffle_release_trained_until_seconds": ("gauge", set()),
    "riffle_request_seconds": ("histogram", {"outcome"}),
    "riffle_requests_waiting": ("gauge", set()),
    "riffle_retrieved_total": ("counter", {"source"}),
    "riffle_shelves_total": ("counter", {"kind", "outcome"}),
    "riffle_stage_seconds": ("histogram", {"stage"}),
    "riffle_warnings": ("gauge", {"name"}),
    "riffle_broadcast_rejected_total": ("counter", {"schema", "code"}),
    "riffle_chunks_dropped_total": ("counter", {"reason"}),
    "riffle_commits_failed_total": ("counter", {"code"}),
    "riffle_covisits_total": ("counter", {"outcome"}),
    "riffle_durable_offset": ("gauge", {"partition"}),
    "riffle_erasures_total": ("counter", set()),
    "riffle_event_visible_seconds": ("histogram", set()),
    "riffle_events_missing_total": ("counter", {"topic", "partition"}),
    "riffle_events_total": ("counter", {"outcome", "code"}),
    "riffle_flush_seconds": ("gauge", {"table", "partition"}),
    "riffle_http_events_total": ("counter", {"outcome"}),
    "riffle_http_list_requests_total": ("counter", {"outcome"}),
    "riffle_http_request_seconds": ("histogram", {"route"}),
    "riffle_http_requests_total": ("counter", {"route", "method", "status"}),
    "riffle_index_recall": ("gauge", set()),
    "riffle_item_vectors_total": ("counter", {"outcome"}),
    "riffle_items": ("gauge", set()),
    "riffle_items_total": ("counter", {"outcome", "code"}),
    "riffle_items_under_another_key_total": ("counter", set()),
    "riffle_items_waiting": ("gauge", set()),
    "riffle_lag": ("gauge", {"topic", "partition"}),
    "riffle_mirror_dropped_total": ("counter", set()),
    "riffle_mirrored_users": ("gauge", {"outcome"}),
    "riffle_neighbours_not_kept_waiting_total": ("counter", set()),
    "riffle_partitions_failed_total": ("counter", {"table", "code"}),
    "riffle_pipeline_failed": ("gauge", {"name"}),
    "riffle_pipeline_filter": ("gauge", {"name"}),
    "riffle_producers_replaced_total": ("counter", set()),
    "riffle_rank_batch_seconds": ("histogram", set()),
    "riffle_rank_partitions": ("gauge", {"state"}),
    "riffle_rank_provider": ("gauge", {"provider"}),
    "riffle_rank_seconds": ("histogram", set()),
    "riffle_rank_tasks_total": ("counter", {"outcome", "code"}),
    "riffle_ranked_total": ("counter", {"outcome", "code"}),
    "riffle_reads_failed_total": ("counter", {"code"}),
    "riffle_release_trained_until_ms": ("gauge", set()),
    "riffle_releases_total": ("counter", {"outcome", "code"}),
    "riffle_request_chunks_failed_total": ("counter", set()),
    "riffle_records_damaged_total": ("counter", set()),
    "riffle_requests_forwarded_total": ("counter", set()),
    "riffle_requests_without_owner_total": ("counter", {"rows"}),
    "riffle_peers_failed_total": ("counter", {"reason"}),
    "riffle_requests_total": ("counter", {"outcome", "code"}),
    "riffle_rule_sets_total": ("counter", {"outcome", "code"}),
    "riffle_training_reports_total": ("counter", {"outcome", "code"}),
    "riffle_rules": ("gauge", {"state"}),
    "riffle_rules_pins_skipped": ("gauge", {"reason"}),
    "riffle_rules_version": ("gauge", set()),
    "riffle_slate_items_total": ("counter", {"source"}),
    "riffle_sends_failed_total": ("counter", {"what", "reason"}),
    "riffle_work_seconds_total": ("counter", {"part"}),
    "riffle_wrong_partition_total": ("counter", {"topic"}),
}
"Names, types and labels that external dashboards and alerts may use: none may be renamed or removed."


def all_touched() -> str:
    """Format the metrics of a worker in which every metric has a series with all its labels."""
    metrics = Metrics()
    for series in vars(metrics).values():
        if hasattr(series, "of"):
            touched = series.of(dict.fromkeys(series._labels, "x"))
            getattr(touched, "inc", getattr(touched, "observe", None))(1)  # type: ignore[misc]
    return metrics.render()


def test_published_names_types_and_labels_stay() -> None:
    text = all_touched()
    found = {}
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE):
        series = re.search(rf"^{name}(?:_bucket)?(?:{{(.*)}})? \S+$", text, re.MULTILINE)
        assert series is not None, name
        found[name] = kind, set(re.findall(r'(\w+)="', series.group(1) or "")) - {"le"}
    assert found.items() >= PUBLISHED.items()
    assert not any(name.endswith("_created") for name in found)


def test_every_metric_has_a_help_line_that_is_a_sentence() -> None:
    helps = re.findall(r"^# HELP (\w+) (.*)$", all_touched(), re.MULTILINE)
    assert len(helps) >= len(PUBLISHED)
    assert all(re.fullmatch(r"[A-Z].*\.", text) for _, text in helps)


def test_prometheus_reads_what_is_printed() -> None:
    families = {family.name: family.type for family in text_string_to_metric_families(all_touched())}
    assert families["riffle_events"] == "counter"
    assert families["riffle_http_request_seconds"] == "histogram"


def test_workers_of_one_process_have_metrics_of_their_own() -> None:
    one, other = Metrics(), Metrics()
    one.erasures.add(3)
    assert (one.erasures.value(), other.erasures.value()) == (3, 0)
    assert not any(family.name.startswith("riffle") for family in prometheus_client.REGISTRY.collect())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_buckets_are_cumulative_and_end_at_the_count(seconds: list[float]) -> None:
    metrics = Metrics()
    for value in seconds:
        metrics.http_request_seconds.observe(value, route="/")
    lines = dict(line.rsplit(" ", 1) for line in metrics.render().splitlines() if not line.startswith("#"))
    for bound in BUCKETS_S:
        text = str(int(bound)) if bound == int(bound) else repr(bound)
        expected = sum(value <= bound for value in seconds)
        assert float(lines[f'riffle_http_request_seconds_bucket{{le="{text}",route="/"}}']) == expected
    assert float(lines['riffle_http_request_seconds_count{route="/"}']) == len(seconds)
    assert math.isclose(float(lines['riffle_http_request_seconds_sum{route="/"}']), sum(seconds), abs_tol=1e-9)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9))))
def test_a_counter_is_the_sum_of_what_was_counted(steps: list[tuple[str, int]]) -> None:
    metrics = Metrics()
    for label, n in steps:
        metrics.events.add(n, outcome=label)
    for label in "ab":
        assert metrics.events.value(outcome=label) == sum(n for other, n in steps if other == label)


@given(st.text(min_size=1))
def test_a_label_value_stays_on_its_line(value: str) -> None:
    metrics = Metrics()
    metrics.events.add(outcome=value)
    lines = [line for line in metrics.render().split("\n") if line.startswith("riffle_events_total")]
    assert len(lines) == 1
    assert lines[0].endswith('"} 1.0')


def test_a_label_that_is_left_out_is_absent() -> None:
    metrics = Metrics()
    metrics.events.add(2, outcome="applied")
    metrics.events.add(code="not_json", outcome="dead_letter")
    text = metrics.render()
    assert 'riffle_events_total{outcome="applied"} 2.0\n' in text
    assert 'riffle_events_total{code="not_json",outcome="dead_letter"} 1.0\n' in text


def test_an_unknown_label_is_an_error() -> None:
    with pytest.raises(ValueError, match="no label"):
        Metrics().events.add(action="view")


def test_a_counter_never_goes_down() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        Metrics().events.add(-1)


def test_series_are_bounded_and_what_is_beyond_is_still_counted() -> None:
    metrics = Metrics()
    for n in range(MAX_SERIES + 10):
        metrics.events.add(outcome=n)
    assert metrics.events.value(overflow="true") == 10
