"""The worker as its web page shows it: implements `agents.web.console.Console`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.broadcast.beside import Beside
from agents.findings import Health
from agents.health.readiness import Readiness
from agents.metrics import Histogram, Metrics
from agents.partitions.users import UserPartition
from agents.requests.preview import traced
from agents.requests.recent import Recent
from agents.requests.routing import Others
from agents.samples import Samples
from agents.web.peers import Peers
from models.items.history import ItemHistory
from models.items.search import found_rows, statistics_of
from models.items.store import ItemStore
from models.pipeline.clock import wall_ms
from models.pipeline.pipeline import CandidatePipeline
from models.release.release import Manifest, list_releases
from schemas.errors import BadItem, NotReady
from schemas.records import Request
from schemas.settings import Settings

__all__ = ["Seen", "WorkerConsole"]

WAIT_S = 2.0
"Seconds that a traced request waits for the event of its token."
MAX_RELEASES = 50


@dataclass(frozen=True, slots=True)
class Seen:
    """The parts of a worker that the page shows."""

    users: Mapping[int, UserPartition]
    standbys: Callable[[], Collection[int]]
    "Returns the partitions of which this worker holds a copy."
    items: ItemStore
    pipeline: CandidatePipeline
    readiness: Readiness
    health: Health
    samples: Samples
    recent: Recent
    partition_of: Callable[[str], int]
    others: Callable[[int], Others]
    "Returns the other workers that hold a partition."
    peers: Peers
    beside: Beside
    champion: Callable[[], str]
    "Returns the name of the announced champion."
    trainings: Callable[[], list[dict[str, Any]]]
    "Returns the trainings that reported on their topic."
    history: ItemHistory


class WorkerConsole:
    """Reads the parts of a worker."""

    def __init__(self, settings: Settings, metrics: Metrics, seen: Seen, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._metrics = metrics
        self._seen = seen
        self._clock = clock
        self._began = clock()
        self._tracing = asyncio.Lock()
        "Held by the one traced request that may be under way, because it passes the queue of requests by."

    def live(self, since: int) -> dict[str, Any]:
        """Return the worker's state now, and its samples after the first `since` ones."""
        seen, metrics = self._seen, self._metrics
        ready, reasons = seen.readiness.ready()
        slot = seen.pipeline.slot
        lags = {(labels["topic"], labels["partition"]): n for labels, n in metrics.lag.values()}
        drops = {name: n for (kind, name), n in seen.pipeline.counters.items() if kind == "filter"}
        return {
            "worker": {
                "address": f"{self._settings.web_host}:{self._settings.web_port}",
                "uptime_s": round(self._clock() - self._began, 1),
                "ready": ready,
                "reasons": dict(reasons),
                "warnings": dict(seen.health.current()),
                "release": slot.name,
                "champion": seen.champion(),
                "refused": dict(slot.refused),
                "items": int(seen.items.listed[: len(seen.items)].sum()),
                "rules": seen.pipeline.rules.version,
            },
            "partitions": [self._partition(number, lags) for number in range(self._settings.partitions)],
            "totals": {
                "events": _by(metrics.events.values(), "outcome"),
                "dead_letters": _by(metrics.events.values(), "code"),
                "requests": _by(metrics.requests.values(), "outcome"),
                "degraded": _by(metrics.degraded.values(), "by"),
                "shown": _by(metrics.slate_items.values(), "source"),
                "dropped": drops,
            },
            "samples": seen.samples.since(since),
        }

    def _partition(self, number: int, lags: Mapping[tuple[str, str], float]) -> dict[str, Any]:
        """Return who holds a partition, and how far its owner is if that is this worker. `lags`: by topic and partition."""
        held, others = self._seen.users.get(number), self._seen.others(number)
        if held is None:
            role = "standby" if number in self._seen.standbys() else "elsewhere"
            return {"partition": number, "role": role, "owner": others.owner, "standbys": list(others.standbys)}
        role = "owner" if held.state.ready.is_set() else "restoring"
        lag = {name: lags.get((self._settings.topic(name), str(number)), 0.0) for name in ("interactions", "requests")}
        offsets = {"applied": held.state.applied, "durable": held.state.durable}
        standbys = list(others.standbys)
        return {"partition": number, "role": role, "owner": None, "standbys": standbys, **offsets, "lag": lag}

    def pipeline(self) -> dict[str, Any]:
        """Return sums since the start: time by stage, candidates by source, filter and stage, and shown items by source."""
        metrics, pipeline = self._metrics, self._seen.pipeline
        by_kind: dict[str, dict[str, int]] = {"filter": {}, "source": {}, "passed": {}, "failed": {}}
        for (kind, name), n in list(pipeline.counters.items()):
            if kind in by_kind:
                by_kind[kind][name] = n
        shown = _by(metrics.slate_items.values(), "source")
        answered = _by(metrics.requests.values(), "outcome")
        named = dict.fromkeys((*pipeline.source_names, *shown))
        failed = by_kind["failed"]
        return {
            "release": pipeline.slot.name,
            "rules": pipeline.rules.version,
            "requests": answered.get("slate", 0.0) + answered.get("degraded", 0.0),
            "batches": _by_part(metrics.batch_requests, "count"),
            "stages": [{"name": name, **sums} for name, sums in _stages(metrics).items()],
            "sources": [
                {"name": name, "retrieved": by_kind["source"].get(name, 0), "shown": shown.get(name, 0.0)} for name in named
            ],
            "filters": [{"name": name, "dropped": n} for name, n in by_kind["filter"].items()],
            "candidates": {name: by_kind["passed"].get(name, 0) for name in ("merge", "filter", "light", "select")},
            "failed": failed,
        }

    def recent(self, most: int) -> list[dict[str, Any]]:
        """Return the newest answered requests of this worker, newest first."""
        return self._seen.recent.listed(most)

    async def explain(self, request: Request, release: str | None = None, *, here: bool = False) -> dict[str, Any]:
        """Answer a request with its trace, from the owner's rows; `waited_ms`: how long its event took to be applied.

        `release` answers instead of the serving one.

        Raises:
            NotReady: the owner cannot be asked, is restoring the partition, or has many such requests under way.
            BadRequest: `release` is not in the owner's folder, or cannot be used.
        """
        number = self._seen.partition_of(request.user_id)
        partition = self._seen.users.get(number)
        if partition is None:
            owner = None if here else self._seen.others(number).owner
            if owner is None:
                message = f"another worker has partition {number}, which holds this user, and cannot be asked from here"
                raise NotReady("not_ready", message)
            return await self._seen.peers.explain(owner, request, release)
        if not partition.state.ready.is_set():
            raise NotReady("not_ready", f"this user's partition {number} is being restored here: try again")
        began, stale = self._clock(), False
        if request.after is not None:
            reached = request.after.partition == number and await partition.wait_for(request.after, WAIT_S)
            stale = not reached
        waited = self._clock() - began
        slot = None if release is None else await self._seen.beside.slot(release)
        try:
            async with asyncio.timeout(WAIT_S):
                await self._tracing.acquire()
        except TimeoutError as exc:
            raise NotReady("busy", "other requests are being traced here: try again") from exc
        try:
            slate, trace = await traced(self._seen.pipeline, partition, replace(request, explain=True), slot)
        finally:
            self._tracing.release()
        if stale:
            slate = replace(slate, degraded=(*slate.degraded, "stale"))
        return {"slate": slate.to_json(), "trace": trace.to_json(), "waited_ms": round(waited * 1000, 2)}

    def search(self, text: str, most: int) -> list[dict[str, Any]]:
        """Return items found by id or words, best first; the most popular ones without `text`."""
        return [self._card(row) for row in found_rows(self._seen.items, text, most)]

    def cards(self, item_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the items of these ids that the catalogue holds, in this order, with their statistics."""
        items = self._seen.items
        rows = [row for row in map(items.row_of, item_ids) if row >= 0 and items.listed[row]]
        return [self._card(row) for row in rows]

    def history(self, item_id: str, per: str) -> dict[str, Any]:
        """Return how often an item was shown here, and its events by action, by `minute` or `hour`.

        Raises:
            BadItem: code `not_found`.
        """
        items = self._seen.items
        row = items.row_of(item_id)
        if row < 0 or not items.listed[row]:
            raise BadItem("not_found", "there is no such item", "item_id")
        found = self._seen.history.of(item_id, per, wall_ms())
        return {
            "item_id": item_id,
            "per": per,
            "slot_ms": found.slot_ms,
            "began": found.began_ms,
            "at": found.at,
            "shown": found.shown,
            "actions": found.actions,
        }

    def _card(self, row: int) -> dict[str, Any]:
        items, item = self._seen.items, self._seen.items.items[row]
        assert item is not None  # it is listed
        return {
            "item_id": item.item_id,
            "title": item.title,
            "text": item.text[:400],
            "categories": list(item.categories),
            "has_image": item.image is not None and item.image.startswith("/"),
            "price": item.price,
            "available": bool(items.available[row]),
            "published": bool(items.published_ms[row] <= wall_ms()),
            "published_at": item.published_at,
            "statistics": statistics_of(items, row),
        }

    def champion(self) -> str:
        """Return the name of the announced champion, `none` without one."""
        return self._seen.champion()

    def trainings(self) -> list[dict[str, Any]]:
        """Return the running and the last trainings that reported their progress, newest report first."""
        return self._seen.trainings()

    async def releases(self) -> list[dict[str, Any]]:
        """Return the releases in this worker's folder, newest training data first."""
        found = await asyncio.to_thread(list_releases, Path(self._settings.releases_dir))
        return [_release(manifest) for manifest in found[::-1][:MAX_RELEASES]]


def _release(manifest: Manifest) -> dict[str, Any]:
    metrics = manifest.metrics
    return {
        "release": manifest.name,
        "parent": manifest.parent,
        "positive": manifest.positive,
        "trained_until": manifest.trained_until_ms,
        "trained_events": manifest.trained_events,
        "heads": [head.action for head in manifest.heads],
        "light": dict(manifest.light),
        "content": dict(manifest.content),
        "encoders": dict(manifest.encoders),
        "before": dict(metrics.get("before", {})),
        "after": dict(metrics.get("after", {})),
        "gate": dict(metrics.get("gate", {})),
        "reliability": dict(metrics.get("reliability", {})),
    }


def _stages(metrics: Metrics) -> dict[str, dict[str, float]]:
    """Return `seconds` and `batches` by stage, in the order of the stages' first use."""
    found: dict[str, dict[str, float]] = {}
    for family in metrics.stage_seconds.metric.collect():
        for sample in family.samples:
            for suffix, name in (("_sum", "seconds"), ("_count", "batches")):
                if sample.name.endswith(suffix):
                    found.setdefault(sample.labels["stage"], {"seconds": 0.0, "batches": 0.0})[name] += sample.value
    return found


def _by_part(histogram: Histogram, part: str) -> float:
    """Sum up one part (`sum` or `count`) of all series of a histogram."""
    families = histogram.metric.collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name.endswith(f"_{part}"))


def _by(series: Iterable[tuple[Mapping[str, str], float]], label: str) -> dict[str, float]:
    """Sum up series by one of their labels; those without it are left out."""
    sums: dict[str, float] = {}
    for labels, value in series:
        if label in labels:
            sums[labels[label]] = sums.get(labels[label], 0.0) + value
    return sums
