"""Trainings as a worker knows them: the newest progress that each reported on its topic, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agents.metrics import Metrics
from models.pipeline.clock import wall_ms
from schemas.errors import BadEvent
from schemas.trainings import KEPT, RUNNING, SILENT, TrainingProgress, decode_progress
from streams.kafka.chunks import Chunk

__all__ = ["KEPT_MS", "SILENT_MS", "Trainings"]

KEPT_MS = 7 * 86_400_000
"Milliseconds after its last report for which a training is known."
SILENT_MS = 60_000
"Milliseconds without a report after which a running training counts as silent: it reports every few seconds."


class Trainings:
    """Reads the topic of trainings. A bad record is counted and skipped. `clock`: epoch ms."""

    def __init__(self, metrics: Metrics, clock: Callable[[], int] = wall_ms) -> None:
        self._metrics = metrics
        self._clock = clock
        self._known: dict[str, tuple[int, TrainingProgress]] = {}
        "By training, the newest report with the broker's timestamp in epoch ms."

    def on_trainings(self, chunk: Chunk) -> None:
        """Take the newest report of each training."""
        for at, key, value in zip(chunk.timestamps, chunk.keys, chunk.values, strict=True):
            try:
                found = decode_progress(value or b"")
                if key != found.training.encode():
                    raise BadEvent("key_mismatch", "the key is not the training")
            except BadEvent as exc:
                self._metrics.training_reports.add(outcome="refused", code=exc.code)
                continue
            self._metrics.training_reports.add(outcome="read")
            self._known[found.training] = (int(at), found)
            if len(self._known) > 2 * KEPT:
                self._forget()
        self._forget()

    def _forget(self) -> None:
        oldest = self._clock() - KEPT_MS
        newest = sorted(self._known.items(), key=lambda one: one[1][0], reverse=True)[:KEPT]
        self._known = {name: (at, found) for name, (at, found) in newest if at >= oldest}

    def listed(self) -> list[dict[str, Any]]:
        """Return the trainings as JSON values, the newest report first."""
        self._forget()
        now = self._clock()
        return [_listed(found, at, now) for at, found in self._known.values()]


def _listed(found: TrainingProgress, at: int, now: int) -> dict[str, Any]:
    silent = found.state == RUNNING and now - at > SILENT_MS
    return {
        "training": found.training,
        "kind": found.kind,
        "host": found.host,
        "state": SILENT if silent else found.state,
        "started_at": found.started_at,
        "reported_at": at,
        "elapsed_s": found.elapsed_s,
        "part": found.part,
        "part_share": found.part_share,
        "share": found.share,
        "left_s": found.left_s,
        "parts": [{"name": name, "expected_s": expected} for name, expected in found.parts],
        "release": found.release,
        "reasons": list(found.reasons),
    }
