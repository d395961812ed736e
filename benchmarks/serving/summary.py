"""Figures of many requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WINDOW_S = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """A request's outcome."""

    due_s: float
    "When it was due, in seconds from the start."
    ms: float
    "From when it was due until its answer."
    degraded: tuple[str, ...] = ()
    refused: str = ""
    "Code of the error, `unanswered` without an answer."
    items: int = 0
    timings: dict[str, float] = field(default_factory=dict)


def percentiles(ms: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(ms, p)), 2) for p in (50, 99)} if len(ms) else {}


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Percentiles of the answered requests in milliseconds, and the others by reason."""
    slates = [answer for answer in answers if not answer.refused]
    degraded = Counter(reason for answer in slates for reason in answer.degraded)
    refused = Counter(answer.refused for answer in answers if answer.refused)
    counts = {"requests": len(answers), "degraded": dict(degraded), "refused": dict(refused)}
    return {**percentiles([answer.ms for answer in slates]), **counts, "items": min((a.items for a in slates), default=0)}


def stages(answers: Sequence[Answer]) -> dict[str, float]:
    """Median milliseconds of each stage of the pipeline."""
    taken: dict[str, list[float]] = {}
    for answer in answers:
        for name, ms in answer.timings.items():
            taken.setdefault(name, []).append(ms)
    return {name: round(float(np.median(values)), 3) for name, values in taken.items()}


def normal_after_s(answers: Sequence[Answer], usual_ms: float) -> float:
    """Seconds from the first request to the end of the last window with a refusal, or with a p99 above twice `usual_ms`.

    `usual_ms`: the p99 of a quiet time.
    """
    start = answers[0].due_s
    windows: dict[int, list[Answer]] = {}
    for answer in answers:
        windows.setdefault(int((answer.due_s - start) / WINDOW_S), []).append(answer)

    def usual(window: list[Answer]) -> bool:
        return not any(a.refused for a in window) and float(np.percentile([a.ms for a in window], 99)) <= 2 * usual_ms

    return max((n + 1 for n, window in windows.items() if not usual(window)), default=0) * WINDOW_S
