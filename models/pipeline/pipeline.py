"""The candidate pipeline: runs a batch of requests through all stages."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.clock import Clock, wall_ms
from models.pipeline.filters import FILTERS
from models.pipeline.hydrators import HYDRATORS, FeatureHydrator
from models.pipeline.scoring import LightScorer, OnnxRanker
from models.pipeline.selection import DiverseSelector, light_cut
from models.pipeline.similar import similar_items
from models.pipeline.slates import Notes, slates_of
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import SOURCES
from models.pipeline.stages import (
    CandidateHydrator,
    Filter,
    Observer,
    QueryHydrator,
    Scorer,
    Selector,
    SideEffect,
    Source,
)
from models.state.rows import UserRecord
from schemas.records import AsOf, Request, Slate, SlateItem

__all__ = ["CandidatePipeline", "PipelineSettings"]

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """How the pipeline selects."""

    light_top: int = 300
    "Candidates per request that are kept after light scoring; `k` where that is more."
    diversity: float = 0.003
    """Score penalty, as a fraction of the best score, for each item already in the slate with the same first category."""


class CandidatePipeline:
    """The stages over one item store. Stages that are not given are the default ones.

    Not thread-safe. `run` blocks; a worker calls it on its event loop.
    """

    def __init__(  # noqa: PLR0913 - one for each kind of stage
        self,
        items: ItemStore,
        settings: PipelineSettings = PipelineSettings(),
        sources: Sequence[Source] | None = None,
        filters: Sequence[Filter] | None = None,
        scorer: Scorer | None = None,
        slot: ModelSlot | None = None,
        clock: Clock = wall_ms,
        *,
        hydrators: Sequence[QueryHydrator] | None = None,
        candidate_hydrators: Sequence[CandidateHydrator] | None = None,
        ranker: Scorer | None = None,
        selector: Selector | None = None,
        side_effects: Sequence[SideEffect] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        self.items = items
        self._clock = clock
        self.slot = slot or ModelSlot()
        self._settings = settings
        self.hydrators = tuple(hydrator() for hydrator in HYDRATORS) if hydrators is None else tuple(hydrators)
        self.sources = tuple(source() for source in SOURCES) if sources is None else tuple(sources)
        self.filters = tuple(stage() for stage in FILTERS) if filters is None else tuple(filters)
        self.scorer = scorer or LightScorer(self.sources)
        names = [source.name for source in self.sources]
        self.candidate_hydrators = (FeatureHydrator(names),) if candidate_hydrators is None else tuple(candidate_hydrators)
        self.ranker = ranker or OnnxRanker()
        self.selector = selector or DiverseSelector(settings.diversity)
        self.side_effects = tuple(side_effects)
        self._observers = tuple(observers)
        self.counters: Counter[tuple[str, str]] = Counter()
        """Counts by kind and name. `filter`: dropped candidates, by the filter's name, `unknown` or `repeated`. `failed`:
        failed stages, by the stage's name."""

    def run(self, requests: Sequence[Request], users: Sequence[UserRecord | None], as_of: Sequence[AsOf | None]) -> list[Slate]:
        """Answer a batch. An answer does not depend on the other requests of its batch.

        Raises:
            Exception: any error of a filter, because a slate that might hold forbidden items is never returned.
        """
        notes = Notes()
        queries = self._timed(notes, "hydrate", lambda: self._hydrate(notes, requests, users))
        retrieved = self._timed(notes, "retrieve", lambda: self._retrieve(notes, queries))
        candidates = self._timed(notes, "merge", lambda: self._merge(notes, queries, retrieved))
        candidates = self._timed(notes, "filter", lambda: self._filter(notes, queries, candidates))
        candidates = self._timed(notes, "light", lambda: self._light(queries, candidates))
        candidates = self._timed(notes, "rank", lambda: self._rank(notes, queries, candidates))
        chosen = self._timed(notes, "select", lambda: self._select(queries, candidates))
        slates = slates_of(queries, candidates, chosen, self.items, [source.name for source in self.sources], notes, as_of)
        self._finish(queries, slates)
        return slates

    def similar(self, item_id: str, k: int) -> list[SlateItem]:
        """Find similar items by `models.pipeline.similar`, over the pipeline's items and at its clock's time."""
        return similar_items(self.items, item_id, k, self._clock())

    def observe(self, observer: Observer) -> None:
        """Notify an observer of every run from now on."""
        self._observers = (*self._observers, observer)

    @staticmethod
    def _timed(notes: Notes, stage: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        done = work()
        notes.timings[stage] = (time.perf_counter() - started) * 1e3
        return done

    def _hydrate(self, notes: Notes, requests: Sequence[Request], users: Sequence[UserRecord | None]) -> Queries:
        queries = Queries.hydrate(requests, users, self.items, self.slot.current, self._clock())
        for hydrator in self.hydrators:
            try:
                hydrator.hydrate(queries, self.items)
            except Exception:
                log.exception("hydrator %s failed", hydrator.name)
                self.counters["failed", hydrator.name] += 1
                notes.degraded.append(f"hydrator:{hydrator.name}")
        for observer in self._observers:
            observer.on_hydrated(queries)
        return queries

    def _retrieve(self, notes: Notes, queries: Queries) -> list[Retrieved]:
        brought = []
        for source in self.sources:
            try:
                found = source.retrieve(queries, self.items)
            except Exception:
                log.exception("source %s failed", source.name)
                self.counters["failed", source.name] += 1
                notes.degraded.append(f"source:{source.name}")
                brought.append(Retrieved.none())
            else:
                brought.append(found)
                for observer in self._observers:
                    observer.on_retrieved(queries, source.name, found)
        return brought

    def _merge(self, notes: Notes, queries: Queries, retrieved: Sequence[Retrieved]) -> Candidates:
        """Merge the results of the sources and count the requested candidates that are unknown or repeated as dropped."""
        unknown = [0 if requested is None else requested.unknown for requested in queries.requested]
        repeated = [0 if requested is None else requested.repeated for requested in queries.requested]
        for name, counts in (("unknown", unknown), ("repeated", repeated)):
            self._drop(notes, name, np.repeat(np.arange(len(queries), dtype=np.int32), counts))
        return Candidates.merge(retrieved, len(self.items))

    def _drop(self, notes: Notes, name: str, query_row: NDArray[np.int32]) -> None:
        notes.dropped[name] = query_row
        self.counters["filter", name] += len(query_row)

    def _filter(self, notes: Notes, queries: Queries, candidates: Candidates) -> Candidates:
        for stage in self.filters:
            keep = stage.keep(queries, candidates, self.items)
            self._drop(notes, stage.name, candidates.query_row[~keep])
            for observer in self._observers:
                observer.on_dropped(queries, stage.name, candidates.take(~keep))
            candidates = candidates.take(keep)
        return candidates

    def _light(self, queries: Queries, candidates: Candidates) -> Candidates:
        """Compute the light scores, sort each query's candidates and keep the best."""
        scores = self.scorer.score(queries, candidates, self.items)
        candidates.score = candidates.light = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
        for observer in self._observers:
            observer.on_scored(queries, candidates)
        return light_cut(queries, candidates, self._settings.light_top)

    def _rank(self, notes: Notes, queries: Queries, candidates: Candidates) -> Candidates:
        """Rank by the serving release; ties keep the light order. On failure the light order and a degraded slate remain."""
        if queries.model is None or not len(candidates):
            return candidates
        ranked = replace(candidates)
        try:
            for hydrator in self.candidate_hydrators:
                hydrator.hydrate(queries, ranked, self.items)
            scores = self.ranker.score(queries, ranked, self.items)
        except Exception:
            log.exception("the ranker of release %s failed", queries.model.name)
            self.counters["failed", "ranker"] += 1
            notes.degraded.append("ranker")
            return candidates
        if not ranked.heads.size:
            notes.degraded.append("ranker")
            return candidates
        ranked.score = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
        for observer in self._observers:
            observer.on_ranked(queries, ranked)
        return ranked.take(np.lexsort((-ranked.score, ranked.query_row)))

    def _select(self, queries: Queries, candidates: Candidates) -> list[NDArray[np.intp]]:
        chosen = self.selector.select(queries, candidates, self.items)
        for observer in self._observers:
            observer.on_selected(queries, candidates, chosen)
        return chosen

    def _finish(self, queries: Queries, slates: Sequence[Slate]) -> None:
        for effect in self.side_effects:
            try:
                effect.run(queries, slates)
            except Exception:
                log.exception("side effect %s failed", effect.name)
                self.counters["failed", effect.name] += 1
