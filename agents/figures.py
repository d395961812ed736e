"""Figures that are read from a worker's parts when its metrics are asked for, instead of being counted as things happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agents.findings import Health
from agents.health.readiness import Readiness
from agents.metrics import Metrics
from agents.partitions.users import UserPartition
from models.items.store import ItemStore
from models.pipeline.clock import wall_ms
from models.pipeline.pipeline import CandidatePipeline
from schemas.rules import Rule

__all__ = ["STATES", "Figures", "state_of"]

STATES = ("live", "waiting", "expired")
"A rule applies now, applies from a later time on, or will never apply again."


def state_of(rule: Rule, now_ms: int) -> str:
    """Return which of `STATES` a rule is in."""
    return "expired" if rule.expired(now_ms) else "live" if rule.live(now_ms) else "waiting"


@dataclass(slots=True)
class Figures:
    """Writes the parts' figures into `metrics`. `waiting`: returns the number of requests that wait for a batch."""

    metrics: Metrics
    users: Mapping[int, UserPartition]
    items: ItemStore
    pipeline: CandidatePipeline
    readiness: Readiness
    health: Health
    waiting: Callable[[], int]
    _written: Counter[tuple[str, str]] = field(default_factory=Counter)
    "What of the pipeline's counters is in `metrics` already."

    def write(self) -> None:
        """Bring the metrics up to date."""
        self._write_pipeline()
        self._write_rules()
        self._write_state()

    def _write_pipeline(self) -> None:
        metrics, pipeline = self.metrics, self.pipeline
        gauges = {"filter": metrics.pipeline_filter, "failed": metrics.pipeline_failed}
        counters = {"source": (metrics.retrieved, "source"), "passed": (metrics.candidates, "stage")}
        for (kind, name), n in list(pipeline.counters.items()):
            if kind == "pin":
                metrics.rules_pins_skipped.set(n, reason=name)
            elif kind in gauges:
                gauges[kind].set(n, name=name)
            elif kind in counters:
                counter, label = counters[kind]
                counter.add(n - self._written[kind, name], **{label: name})
                self._written[kind, name] = n
        metrics.requests_waiting.set(self.waiting())
        model = pipeline.slot.current
        metrics.release_trained_until_ms.set(model.trained_until_ms if model else 0)
        metrics.release_trained_until_seconds.set(model.trained_until_ms / 1000 if model else 0)
        metrics.index_recall.set(model.index_recall if model else 1.0)

    def _write_rules(self) -> None:
        book, now_ms = self.pipeline.rules.current, wall_ms()
        rules = () if book is None else book.rules.rules
        self.metrics.rules_version.set(self.pipeline.rules.version)
        states = [state_of(rule, now_ms) for rule in rules]
        for state in STATES:
            self.metrics.rules.set(states.count(state), state=state)

    def _write_state(self) -> None:
        metrics = self.metrics
        metrics.ready.set(self.readiness.ready()[0])
        metrics.warnings.replace({(name,): 1.0 for name in self.health.current()})
        metrics.items_known.set(len(self.items))
        metrics.applied_offset.replace({(str(number),): part.state.applied for number, part in self.users.items()})
        metrics.durable_offset.replace({(str(number),): part.state.durable for number, part in self.users.items()})
