"""The last minutes of a worker in figures: one sample a second, taken from its metrics."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.metrics import Metrics, cumulated

__all__ = ["INTERVAL_S", "KEPT", "WINDOW", "Samples", "quantile"]

INTERVAL_S = 1.0
"Seconds between two samples."
KEPT = 300
"Number of samples that `since` can return: five minutes."
WINDOW = 10
"Number of samples over which a quantile is computed, because one second may hold few requests."
SUMS = ("events", "requests", "degraded", "refused")
"Columns of sums. `refused` counts answers that are an error."


class Samples:
    """Samples of one worker's metrics. `clock`: returns epoch seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics = metrics
        self._clock = clock
        # one more than the window before the oldest, so that its quantiles have a whole window
        self._rows: deque[tuple[int, NDArray[np.float64]]] = deque(maxlen=KEPT + WINDOW)
        self._taken = 0
        self._bounds = np.asarray(metrics.answer_seconds.bounds)
        self._visible = np.asarray(metrics.event_visible_seconds.bounds)

    async def run(self) -> None:
        """Take a sample every `INTERVAL_S`, until cancelled."""
        while True:
            self.take()
            await asyncio.sleep(INTERVAL_S)

    def take(self) -> None:
        """Take one sample."""
        metrics = self._metrics
        events = sum(n for labels, n in metrics.events.values() if labels.get("outcome") != "replayed")
        answers = {"slate": 0.0, "degraded": 0.0, "refused": 0.0}
        for labels, n in metrics.requests.values():
            outcome = labels.get("outcome", "")
            answers[outcome if outcome in answers else "refused"] += n
        lag = sum(n for _, n in metrics.lag.values())
        answered, visible = cumulated(metrics.answer_seconds), cumulated(metrics.event_visible_seconds)
        sums = [events, sum(answers.values()), answers["degraded"], answers["refused"]]
        row = np.concatenate([sums, [lag], answered, visible])
        self._rows.append((round(self._clock() * 1000), row))
        self._taken += 1

    def since(self, seen: int) -> dict[str, Any]:
        """Return the samples after the `seen` first ones as columns, oldest first; at most `KEPT`.

        `next`: the value of `seen` for the next call. `at`: epoch ms. `events`, `requests`, `degraded`, `refused`: per second.
        `p50_ms`, `p99_ms` (of answers) and `freshness_ms` (median time from a record to the slates that reflect it): over the
        last `WINDOW` samples, null without any. `lag`: records.
        """
        rows = list(self._rows)
        fresh = max(0, min(self._taken - seen, KEPT, len(rows) - 1)) if 0 <= seen <= self._taken else len(rows) - 1
        first = len(rows) - min(max(fresh, 0), KEPT)
        columns: dict[str, list[Any]] = {name: [] for name in ("at", *SUMS, "lag", "p50_ms", "p99_ms", "freshness_ms")}
        for n in range(first, len(rows)):
            self._add(columns, rows[max(0, n - WINDOW)][1], rows[n - 1], rows[n])
        return {"next": self._taken, "interval_s": INTERVAL_S, **columns}

    def _add(
        self,
        columns: Mapping[str, list[Any]],
        before: NDArray[np.float64],
        last: tuple[int, NDArray[np.float64]],
        row: tuple[int, NDArray[np.float64]],
    ) -> None:
        columns["at"].append(row[0])
        seconds = max((row[0] - last[0]) / 1000, 1e-3)
        for n, name in enumerate(SUMS):
            columns[name].append(round(float(row[1][n] - last[1][n]) / seconds, 2))
        columns["lag"].append(float(row[1][len(SUMS)]))
        counts = (row[1] - before)[len(SUMS) + 1 :]
        answered, visible = counts[: len(self._bounds)], counts[len(self._bounds) :]
        columns["p50_ms"].append(_milliseconds(quantile(self._bounds, answered, 0.5)))
        columns["p99_ms"].append(_milliseconds(quantile(self._bounds, answered, 0.99)))
        columns["freshness_ms"].append(_milliseconds(quantile(self._visible, visible, 0.5)))


def quantile(bounds: Sequence[float] | NDArray[np.float64], counts: NDArray[np.float64], q: float) -> float | None:
    """Estimate a quantile from a histogram, linear within a bucket; None if it is empty.

    `bounds`: ascending upper bounds `(n,)`, the last may be infinite. `counts`: cumulated `(n,)`. A quantile in an infinite
    bucket is its lower bound.
    """
    if not len(counts) or counts[-1] <= 0:
        return None
    rank = max(q * float(counts[-1]), 1e-9)
    place = int(np.searchsorted(counts, rank, side="left"))
    low = float(bounds[place - 1]) if place else 0.0
    high = float(bounds[place])
    if not np.isfinite(high):
        return low
    below = float(counts[place - 1]) if place else 0.0
    inside = float(counts[place]) - below
    return low + (high - low) * ((rank - below) / inside if inside > 0 else 1.0)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
