"""Metrics of batches: how many requests share one, and how long it and each of its stages take."""

from __future__ import annotations

from collections.abc import Sequence

from agents.metrics import Metrics
from schemas.records import Slate

__all__ = ["note_batch", "note_stages"]


def note_batch(metrics: Metrics, requests: int, seconds: float) -> None:
    """Note a batch of `requests`, from its first stage to its answers or to its being handed over."""
    metrics.batch_requests.observe(requests)
    metrics.batch_seconds.observe(seconds)


def note_stages(metrics: Metrics, slates: Sequence[Slate | None]) -> None:
    """Note the durations of the stages of a batch once, which all of its slates report. None: a request was handed over."""
    slate = next((slate for slate in slates if slate is not None), None)
    if slate is not None:
        for stage, ms in slate.timings_ms.items():
            metrics.stage_seconds.observe(ms / 1000, stage=stage)
