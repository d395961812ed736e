"""The path of a batch of requests, once through."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.clock import Clock, wall_ms
from models.pipeline.exact import exact_top
from models.pipeline.filters import CategoryFilter, ExcludedFilter, SeenFilter, UnavailableFilter, UnpublishedFilter
from models.pipeline.hydrators import CovisitationHydrator, ReleaseHydrator
from models.pipeline.scoring import LightScorer, OnnxRanker
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import (
    LEAST_ALIKE,
    ContentSource,
    FreshSource,
    LearnedSource,
    PopularSource,
    RequestedSource,
    SignalSource,
)
from models.pipeline.stages import Filter, QueryHydrator, Scorer, Source
from models.pipeline.ties import Ties
from models.state.rows import UserRecord
from schemas.errors import BadItem
from schemas.records import AsOf, Request, Slate, SlateItem

__all__ = ["CandidatePipeline", "PipelineSettings"]

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How the pipeline selects."""

    light_top: int = 300
    "Candidates per request that are left after light scoring; as many as it asks for when that is more."
    diversity: float = 0.003
    "Taken from a candidate's score, per item already in the slate with the same first category, times the best score."


@dataclass(slots=True)
class _Run:
    """What a run notes on its way."""

    timings: dict[str, float] = field(default_factory=dict)
    degraded: list[str] = field(default_factory=list)
    dropped: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    "Per filter: the query of each candidate it dropped."


class CandidatePipeline:
    """Sources, filters and scorers over one item store. Not thread-safe: one event loop calls it."""

    def __init__(
        self,
        items: ItemStore,
        settings: PipelineSettings = PipelineSettings(),
        sources: Sequence[Source] | None = None,
        filters: Sequence[Filter] | None = None,
        scorer: Scorer | None = None,
        slot: ModelSlot | None = None,
        clock: Clock = wall_ms,
    ) -> None:
        self.items = items
        self._clock = clock
        self.slot = slot or ModelSlot()
        self._settings = settings
        self.sources = sources or (
            SignalSource("covisitation"),
            SignalSource("ease"),
            LearnedSource(),
            ContentSource(),
            PopularSource(),
            FreshSource(),
            RequestedSource(),
        )
        self.filters = filters or (
            UnavailableFilter(),
            UnpublishedFilter(),
            SeenFilter(),
            ExcludedFilter(),
            CategoryFilter(),
        )
        self.hydrators: Sequence[QueryHydrator] = (CovisitationHydrator(), ReleaseHydrator())
        self.scorer = scorer or LightScorer([source.name for source in self.sources])
        self.ranker = OnnxRanker([source.name for source in self.sources])
        self.counters: Counter[tuple[str, str]] = Counter()
        """Candidates dropped (`filter`, name of the filter, `unknown` or `repeated`), parts that failed (`failed`, name)."""

    def run(self, requests: Sequence[Request], users: Sequence[UserRecord | None], as_of: Sequence[AsOf | None]) -> list[Slate]:
        """Answer a batch. One request is a batch of one; its answer does not depend on who it is batched with.

        Raises:
            Exception: whatever a filter raises: a slate that might hold what must not be shown is never returned.
        """
        run = _Run()
        queries = self._timed(run, "hydrate", lambda: self._hydrate(run, requests, users))
        retrieved = self._timed(run, "retrieve", lambda: self._retrieve(run, queries))
        candidates = self._timed(run, "merge", lambda: self._merge(run, queries, retrieved))
        candidates = self._timed(run, "filter", lambda: self._filter(run, queries, candidates))
        candidates = self._timed(run, "light", lambda: self._light(queries, candidates))
        candidates = self._timed(run, "rank", lambda: self._rank(run, queries, candidates))
        chosen = self._timed(run, "select", lambda: self._select(queries, candidates))
        return self._slates(run, queries, candidates, chosen, as_of)

    @staticmethod
    def _timed(run: _Run, stage: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        done = work()
        run.timings[stage] = (time.perf_counter() - started) * 1e3
        return done

    def _hydrate(self, run: _Run, requests: Sequence[Request], users: Sequence[UserRecord | None]) -> Queries:
        queries = Queries.hydrate(requests, users, self.items, self.slot.current, self._clock())
        for hydrator in self.hydrators:
            try:
                hydrator.hydrate(queries, self.items)
            except Exception:
                log.exception("hydrator %s failed", hydrator.name)
                self.counters["failed", hydrator.name] += 1
                run.degraded.append(f"hydrator:{hydrator.name}")
        return queries

    def _retrieve(self, run: _Run, queries: Queries) -> list[Retrieved]:
        brought = []
        for source in self.sources:
            try:
                brought.append(source.retrieve(queries, self.items))
            except Exception:
                log.exception("source %s failed", source.name)
                self.counters["failed", source.name] += 1
                run.degraded.append(f"source:{source.name}")
                brought.append(Retrieved.none())
        return brought

    def _merge(self, run: _Run, queries: Queries, retrieved: Sequence[Retrieved]) -> Candidates:
        """Join what the sources brought; requested candidates that are no items, or the same again, are dropped before."""
        unknown = [0 if requested is None else requested.unknown for requested in queries.requested]
        repeated = [0 if requested is None else requested.repeated for requested in queries.requested]
        for name, counts in (("unknown", unknown), ("repeated", repeated)):
            self._drop(run, name, np.repeat(np.arange(len(queries), dtype=np.int32), counts))
        return Candidates.merge(retrieved, len(self.items))

    def _drop(self, run: _Run, name: str, query_row: NDArray[np.int32]) -> None:
        run.dropped[name] = query_row
        self.counters["filter", name] += len(query_row)

    def _filter(self, run: _Run, queries: Queries, candidates: Candidates) -> Candidates:
        for stage in self.filters:
            keep = stage.keep(queries, candidates, self.items)
            self._drop(run, stage.name, candidates.query_row[~keep])
            candidates = candidates.take(keep)
        return candidates

    def _light(self, queries: Queries, candidates: Candidates) -> Candidates:
        """Score, put each query's candidates in order (equals by the asker's keys), and keep its best."""
        scores = self.scorer.score(queries, candidates, self.items)
        candidates.score = candidates.light = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
        most = np.asarray(
            [
                max(self._settings.light_top, request.k) if request.candidates is None else len(candidates)
                for request in queries.requests
            ],
            np.int64,
        )
        places = self._contending(candidates, most)
        query_row = candidates.query_row[places]
        keys = queries.order_keys(query_row, candidates.item_row[places])
        order = np.lexsort((keys, -candidates.score[places], query_row))
        places, query_row = places[order], query_row[order]
        first = np.searchsorted(query_row, query_row, side="left")
        return candidates.take(places[np.arange(len(places)) - first < most[query_row]])

    @staticmethod
    def _contending(candidates: Candidates, most: NDArray[np.int64]) -> NDArray[np.intp]:
        """Places of each query's best candidates by score, and of those that equal the last of them: no others need sorting."""
        keep = np.ones(len(candidates), np.bool_)
        spans = candidates.spans(len(most))
        for n, kept in enumerate(most.tolist()):
            scores = candidates.score[spans[n] : spans[n + 1]]
            if len(scores) > kept:
                keep[spans[n] : spans[n + 1]] = scores >= np.partition(scores, -kept)[-kept]
        return np.flatnonzero(keep)

    def _rank(self, run: _Run, queries: Queries, candidates: Candidates) -> Candidates:
        """Rank by the serving release; equals stay in the light order. When it fails that stands, and the slate says so."""
        if queries.model is None or not len(candidates):
            return candidates
        try:
            self.ranker.rank(queries, candidates, self.items)
        except Exception:
            log.exception("the ranker of release %s failed", queries.model.name)
            self.counters["failed", "ranker"] += 1
            run.degraded.append("ranker")
            return candidates
        if not candidates.heads.size:
            run.degraded.append("ranker")
            return candidates
        candidates.score = np.where(np.isfinite(candidates.score), candidates.score, -np.inf).astype(np.float32)
        return candidates.take(np.lexsort((-candidates.score, candidates.query_row)))

    def _select(self, queries: Queries, candidates: Candidates) -> list[NDArray[np.intp]]:
        """Per query: places of its slate, best first. Each item lowers those that share its first category a little."""
        spans = candidates.spans(len(queries))
        chosen = []
        for n, request in enumerate(queries.requests):
            places = np.arange(spans[n], spans[n + 1])
            if request.candidates is None and self._settings.diversity and len(places) > 1:
                places = self._diverse(candidates, places, request.k)
            chosen.append(places[: request.k])
        return chosen

    def _diverse(self, candidates: Candidates, places: NDArray[np.intp], k: int) -> NDArray[np.intp]:
        category = self.items.category_ids[candidates.item_row[places], 0]
        score = candidates.score[places].astype(np.float64)
        step = self._settings.diversity * max(float(score[0]), 0.0)
        if not np.isfinite(step):
            return places
        picked = []
        for _ in range(min(k, int(np.isfinite(score).sum()))):
            best = int(np.argmax(score))
            picked.append(best)
            score[best] = -np.inf
            if category[best] >= 0:
                score[category == category[best]] -= step
        rest = np.setdiff1d(np.arange(len(places)), picked, assume_unique=True)
        ordered: NDArray[np.intp] = places[np.concatenate([np.asarray(picked, np.intp), rest])]
        return ordered

    def _slates(
        self,
        run: _Run,
        queries: Queries,
        candidates: Candidates,
        chosen: Sequence[NDArray[np.intp]],
        as_of: Sequence[AsOf | None],
    ) -> list[Slate]:
        there = ~np.isnan(candidates.source_scores)
        names, model = [source.name for source in self.sources], queries.model
        slates = []
        for n, request in enumerate(queries.requests):
            items = []
            dropped = {name: int((rows == n).sum()) for name, rows in run.dropped.items()} if request.explain else {}
            for place in chosen[n].tolist():
                by = np.flatnonzero(there[place]).tolist()
                explanation: dict[str, object] | None = None
                if request.explain:
                    explanation = {
                        "sources": {names[s]: round(float(candidates.source_scores[place, s]), 6) for s in by},
                        "light": round(float(candidates.light[place]), 6),
                        "dropped": dropped,
                    }
                    if model is not None and candidates.heads.size:
                        heads = candidates.heads[place].tolist()
                        explanation["heads"] = {name: round(p, 6) for name, p in zip(model.heads, heads, strict=True)}
                score = float(candidates.score[place])
                items.append(
                    SlateItem(
                        self.items.ids[int(candidates.item_row[place])],
                        score if np.isfinite(score) else -1e30,
                        tuple(names[s] for s in by),
                        explanation,
                        candidates.features[place],
                    )
                )
            timings = {stage: round(ms, 3) for stage, ms in run.timings.items()}
            slates.append(
                Slate(
                    request.request_id,
                    request.user_id,
                    tuple(items),
                    "none" if model is None else model.name,
                    "default",
                    tuple(run.degraded),
                    as_of[n],
                    timings,
                )
            )
        return slates

    def similar(self, item_id: str, k: int) -> list[SlateItem]:
        """At most `k` items that people meet together with this one, then items of like content; none without either.

        Raises:
            BadItem: code `not_found`: the catalogue does not hold the item, or no longer.
        """
        row = self.items.row_of(item_id)
        if row < 0 or self.items.items[row] is None:
            raise BadItem("not_found", f"no item {item_id!r}", "item_id")
        n = len(self.items)
        near, weight = self.items.neighbour_rows[row], self.items.neighbour_weights[row]
        there = near >= 0
        together = np.zeros(n, np.float32)
        if there.any():
            together[near[there]] = weight[there] / max(float(weight.max()), 1e-9)
        eligible = self.items.eligible(self._clock())
        eligible[row] = False
        ties = Ties(self.items.hashes, int(self.items.hashes[row]))
        # what is met together with it, and of the rest as much by its content alone as may come to stand beside that
        text, own = self.items.text[:n], self.items.text[row]
        ((alike, _),) = exact_top(own[None], text, eligible, k + len(near), [ties.keys], LEAST_ALIKE)
        rows = np.union1d(near[there][eligible[near[there]]], alike)
        total = together[rows] + np.float32(0.5) * np.einsum("nd,d->n", text[rows], own)
        order = np.lexsort((ties.keys(rows), -total))[:k]
        found = []
        for place in order[total[order] > 0.5 * LEAST_ALIKE].tolist():
            by = ("covisitation",) if together[rows[place]] else ("content",)
            found.append(SlateItem(self.items.ids[rows[place]], float(total[place]), by))
        return found
