"""MLflow record of a release: its settings, its figures, and the gate's decision with its reasons."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from models.release.tracking import RELEASE, Run, Tracker, Tracking
from schemas.errors import NotReady
from training.recipe import LearnSettings

__all__ = ["forewarn", "record", "run_of"]

log = logging.getLogger(__name__)

MEASURED = (
    "before",
    "after",
    "gate",
    "training_seconds",
    "images_by_url",
    "images_unused",
    "parity",
    "logged_slates",
    "calibration",
    "events",
    "items",
    "seconds",
)


def run_of(facts: Mapping[str, Any], dataset: str, settings: LearnSettings, artifacts: Mapping[str, bytes], now_ms: int) -> Run:
    """Make the run for the results of `riffle train`."""
    gate = facts["gate"]
    return Run(
        name=facts["release"],
        started_ms=now_ms - round(facts["seconds"] * 1000),
        ended_ms=now_ms,
        params={name: _text(value) for name, value in _leaves(asdict(settings))},
        metrics={
            name: float(value)
            for name, value in _leaves({part: facts[part] for part in MEASURED if part in facts})
            if isinstance(value, bool | int | float) and math.isfinite(value)
        },
        tags={
            RELEASE: facts["release"],
            "riffle.parent": facts["against"],
            "riffle.dataset": dataset,
            "riffle.decision": "passed" if gate["passed"] else "refused",
            "riffle.reasons": "; ".join(gate["reasons"]),
        },
        artifacts=artifacts,
    )


def forewarn(tracking: Tracking | None) -> None:
    """Warn before a training, not only after it, that its release could not be recorded now."""
    if tracking is not None:
        try:
            Tracker(tracking).check()
        except NotReady as exc:
            log.warning("the release could not be recorded now: %s", exc.message)


def record(
    tracking: Tracking, facts: Mapping[str, Any], dataset: str, settings: LearnSettings, artifacts: Mapping[str, bytes]
) -> dict[str, str]:
    """Record a written release; returns `{"run": address}`, or `{"not_recorded": reason}`. Never fails the training."""
    run = run_of(facts, dataset, settings, artifacts, round(time.time() * 1000))
    try:
        return {"run": Tracker(tracking).record(run)}
    except NotReady as exc:
        log.warning("the release is written, but not recorded: %s", exc.message)
        return {"not_recorded": exc.message}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
