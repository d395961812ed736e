"""The page of metrics in the documentation: `python -m agents.metrics_page > docs/metrics.md` writes it from the code."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping

from agents.metrics import Defined, Metrics

__all__ = ["LABELS", "page"]

LABELS: Mapping[str, str] = {
    "by": "what degraded slates lack, as in `degraded` of a slate",
    "code": "code of the error, or Kafka's name of it",
    "interface": "`http` or `kafka`",
    "kind": "`items` or `model`",
    "method": "method of HTTP in upper case, `other` for unknown ones",
    "name": "a filter, a stage of the pipeline, or a warning of `/readyz`",
    "outcome": "how it ended",
    "part": "part of the work on events",
    "partition": "number of a partition",
    "provider": "execution provider of ONNX Runtime",
    "reason": "why",
    "route": "pattern of the path, such as `/v1/recommend/{user_id}`",
    "rows": "`standby`, `mirror` or `no_state`",
    "schema": "name of an Avro schema",
    "source": "source of candidates",
    "stage": "stage of the pipeline, as in `timings_ms` of a slate; of `riffle_candidates_total` what passed it",
    "state": "state, named in the description",
    "status": "status of HTTP",
    "table": "`users`, `covisits`, or the name of a changelog",
    "token": "name of a token in `RIFFLE_HTTP_TOKENS_FILE`; empty for one that is not there",
    "topic": "name of a topic, or the part of it after the prefix",
    "version": "version of Riffle",
    "what": "what it is about",
}
"Meaning of each label. Values come from code or settings, never from users, items or events."
INTRODUCTION = """# Metrics

<!-- Written by `python -m agents.metrics_page > docs/metrics.md`; a test fails when it is not current. -->

`GET /metrics` of each worker, and of each ranking process on `RIFFLE_RANK_PORT`, returns these metrics in Prometheus' text
format. Names, types and labels stay; new ones may be added. Times are in seconds, sizes in bytes. A series appears when it is
first used, and a label that does not apply is absent. A name has at most 1,000 label combinations; further ones are summed up
under `overflow="true"`. No label holds an id of a user, an item or a request.

Gauges that are described as "since the start" only rise, and `rate()` applies to them. `process_…` are those of the operating
system's process (CPU seconds, resident memory, open files, start time), as Prometheus' clients name them.

Dashboards for Grafana are in [`deploy/grafana`](../deploy/grafana), alert rules in [`deploy/prometheus`](../deploy/prometheus),
and what to do about each alert in [`runbooks`](runbooks/README.md). The [chart](../deploy/README.md#watch) installs both.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for section, metrics in itertools.groupby(Metrics().defined, key=lambda metric: metric.section):
        parts.append(f"\n## {section}\n\n| metric | type | labels | |\n|---|---|---|---|\n" + "".join(map(_row, metrics)))
    labels = "".join(f"| `{name}` | {text} |\n" for name, text in sorted(LABELS.items()))
    parts.append(f"\n## Labels\n\n| label | value |\n|---|---|\n{labels}")
    return "".join(parts)


def _row(metric: Defined) -> str:
    buckets = f" Buckets up to {', '.join(map(_short, metric.buckets))}." if metric.buckets else ""
    return f"| `{metric.name}` | {metric.kind} | {_named(metric.labels)} | {metric.text}{buckets} |\n"


def _named(labels: Iterable[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels)


def _short(bound: float) -> str:
    return f"{bound:,.6f}".rstrip("0").rstrip(".")


if __name__ == "__main__":
    sys.stdout.write(page())
