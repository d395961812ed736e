"""The candidate pipeline: runs a batch of requests through all stages."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Model, Queries, Retrieved
from models.pipeline.clock import Clock, wall_ms
from models.pipeline.driving import run_here
from models.pipeline.effort import Effort
from models.pipeline.filters import FILTERS
from models.pipeline.hydrators import HYDRATORS, FeatureHydrator
from models.pipeline.kernels import order
from models.pipeline.prepared import Prepared, Timer
from models.pipeline.ragged import Ragged
from models.pipeline.rank_task import RankTask, tasks_of
from models.pipeline.rules import stage as rule_stage
from models.pipeline.rules.book import RuleBook, RuleSlot
from models.pipeline.scoring import LightScorer, OnnxRanker
from models.pipeline.selection import DiverseSelector, light_cut
from models.pipeline.similar import similar_items
from models.pipeline.slates import Notes, slates_of
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import SOURCES, PopularSource, RequestedSource, RulesSource
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
from models.state.users import Users
from schemas.records import AsOf, Request, Slate, SlateItem

__all__ = ["CandidatePipeline", "PipelineSettings", "Preparation", "Steps"]

Steps = Generator[Callable[[], Any], Any, list[Slate]]
"A run that yields work for another thread and gets its result."
Preparation = Generator[Callable[[], Any], Any, Prepared]
"The first half of such a run."
ALWAYS = frozenset({PopularSource.name, RequestedSource.name, RulesSource.name})
"Sources that retrieve at any effort."
PINS = ("unknown", "filtered", "not_a_candidate", "beyond_slate")
"""Why a pin is skipped: the catalogue does not hold its item; a filter dropped it; a re-ranking request does not name it, or a
filter dropped it; the slate is shorter than its position."""

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

    Not thread-safe. `run` blocks; a worker drives `steps` on its event loop, and runs graphs in a thread of their own.
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
        rules: RuleSlot | None = None,
    ) -> None:
        self.items = items
        self._clock = clock
        self.slot = slot or ModelSlot()
        self.rules = rules or RuleSlot()
        self._settings = settings
        self.hydrators = tuple(hydrator() for hydrator in HYDRATORS) if hydrators is None else tuple(hydrators)
        self.sources = tuple(source() for source in SOURCES) if sources is None else tuple(sources)
        self.filters = tuple(stage() for stage in FILTERS) if filters is None else tuple(filters)
        self.scorer = scorer or LightScorer(self.sources)
        self.source_names = tuple(source.name for source in self.sources)
        self.candidate_hydrators = (
            (FeatureHydrator(self.source_names),) if candidate_hydrators is None else tuple(candidate_hydrators)
        )
        self.ranker = ranker or OnnxRanker()
        self.selector = selector or DiverseSelector(settings.diversity)
        self.side_effects = tuple(side_effects)
        self._observers = tuple(observers)
        self.counters: Counter[tuple[str, str]] = Counter()
        """Counts by kind and name. `filter`: dropped candidates, by the filter's name, `unknown` or `repeated`. `failed`:
        failed stages, by the stage's name. `pin`: skipped pins of the serving rules, by reason (`PINS`). `source`: retrieved
        candidates, by source. `passed`: candidates after `merge`, `filter`, `light` and `select`, of slates made here."""

    def run(
        self,
        requests: Sequence[Request],
        users: Users | Sequence[UserRecord | None],
        as_of: Sequence[AsOf | None],
        effort: Effort = Effort.FULL,
    ) -> list[Slate]:
        """Answer a batch. An answer does not depend on the other requests of its batch.

        Raises:
            Exception: any error of a filter, because a slate that might hold forbidden items is never returned.
        """
        return run_here(self.steps(requests, users if isinstance(users, Users) else Users.of(users), as_of, effort))

    def steps(
        self,
        requests: Sequence[Request],
        users: Users,
        as_of: Sequence[AsOf | None],
        effort: Effort = Effort.FULL,
        rules: RuleBook | None = None,
    ) -> Steps:
        """Answer a batch as `run` does, but yield the graphs' work, which any thread may do, instead of doing it.

        The caller calls what is yielded and sends its result, or throws its error, into the generator, which returns the
        slates. All that the generator does itself belongs to the item store's thread. Several batches may be under way.
        `rules` are tried instead of the serving ones.
        """
        prepared = yield from self.prepare(requests, users, as_of, effort, rules)
        return (yield from self.complete(prepared))

    def prepare(
        self,
        requests: Sequence[Request],
        users: Users,
        as_of: Sequence[AsOf | None],
        effort: Effort = Effort.FULL,
        rules: RuleBook | None = None,
    ) -> Preparation:
        """Run a batch up to the features of its candidates, in the way of `steps`."""
        notes = Notes(degraded=list(effort.degraded))
        timer = Timer(notes)
        queries = Queries.hydrate(requests, users, self.items, self.slot.current, self._clock())
        self._rule(notes, queries, rules or self.rules.current)
        if effort is not Effort.POPULAR:
            yield from self._hydrate(notes, queries)
        for observer in self._observers:
            observer.on_hydrated(queries)
        timer.ended("hydrate")
        retrieved = self._retrieve(notes, queries, effort)
        timer.ended("retrieve")
        candidates = self._merge(notes, queries, retrieved)
        timer.ended("merge")
        self.counters["passed", "merge"] += len(candidates)
        candidates = self._filter(notes, queries, candidates)
        timer.ended("filter")
        self.counters["passed", "filter"] += len(candidates)
        candidates = self._light(notes, queries, candidates, effort)
        timer.ended("light")
        self.counters["passed", "light"] += len(candidates)
        ranked = self._featured(notes, queries, candidates) if effort < Effort.LIGHT else None
        return Prepared(queries, candidates, ranked, notes, timer, as_of, self.items.revision, rules is None)

    def complete(self, prepared: Prepared) -> Steps:
        """Rank a prepared batch, select, and return the slates, in the way of `steps`."""
        queries, notes, candidates = prepared.queries, prepared.notes, prepared.candidates
        if prepared.ranked is not None:
            candidates = yield from self._rank(prepared, prepared.ranked)
            if self.items.revision != prepared.revision:
                # items were withdrawn, perhaps, while the graphs ran
                candidates = candidates.take(self.shown(candidates.item_row, queries.now_ms))
        prepared.timer.ended("rank")
        candidates, chosen = self._select(notes, queries, candidates, counted=prepared.counted)
        prepared.timer.ended("select")
        self.counters["passed", "select"] += len(chosen.values)
        slates = slates_of(queries, candidates, chosen, self.items, self.source_names, notes, prepared.as_of)
        self._finish(queries, slates)
        return slates

    def handed_over(self, prepared: Prepared) -> list[RankTask] | None:
        """Return a task for each query, with which a process without the items can rank and select as `complete` does.

        None where it could not: nothing is to be ranked, rules apply, an observer or a side effect follows the run, or the
        ranker or the selector is not the standard one.
        """
        queries = prepared.queries
        follows = self._observers or self.side_effects
        standard = type(self.ranker) is OnnxRanker and type(self.selector) is DiverseSelector
        if prepared.ranked is None or queries.rules is not None or follows or not standard:
            return None
        return tasks_of(prepared, prepared.ranked, self.items, self.source_names, self._settings.diversity)

    def shown(self, item_row: NDArray[np.integer], now_ms: int) -> NDArray[np.bool_]:
        """Return whether each item is available and was published at `now_ms`: bool, same shape."""
        published: NDArray[np.bool_] = self.items.available[item_row] & (self.items.published_ms[item_row] <= now_ms)
        return published

    def without_withdrawn(self, slate: Slate) -> Slate:
        """Return the slate without items that are not shown any more, because it was ranked elsewhere meanwhile."""
        rows = self.items.rows_of([item.item_id for item in slate.items])
        kept = (rows >= 0) & self.shown(rows, self._clock())
        return slate if kept.all() else replace(slate, items=tuple(i for i, k in zip(slate.items, kept, strict=True) if k))

    def similar(self, item_id: str, k: int) -> list[SlateItem]:
        """Find similar items by `models.pipeline.similar`, over the pipeline's items and at its clock's time."""
        return similar_items(self.items, item_id, k, self._clock())

    def observe(self, observer: Observer) -> None:
        """Notify an observer of every run from now on."""
        self._observers = (*self._observers, observer)

    def observed(self, observer: Observer, slot: ModelSlot | None = None) -> CandidatePipeline:
        """Return a pipeline of the same stages and state, with counters of its own, that notifies only this observer.

        `slot` holds the release to answer with; without it, the serving one answers.
        """
        return CandidatePipeline(
            self.items,
            self._settings,
            self.sources,
            self.filters,
            self.scorer,
            slot or self.slot,
            self._clock,
            hydrators=self.hydrators,
            candidate_hydrators=self.candidate_hydrators,
            ranker=self.ranker,
            selector=self.selector,
            observers=(observer,),
            rules=self.rules,
        )

    def _failed(self, what: str, name: str, notes: Notes, degraded: str) -> None:
        log.exception("%s failed", what)
        self.counters["failed", name] += 1
        notes.degraded.append(degraded)

    def _hydrate(self, notes: Notes, queries: Queries) -> Generator[Callable[[], Any], Any, None]:
        for hydrator in self.hydrators:
            try:
                rest = hydrator.hydrate(queries, self.items)
                if rest is not None:
                    yield rest
            except Exception:
                self._failed(f"hydrator {hydrator.name}", hydrator.name, notes, f"hydrator:{hydrator.name}")

    def _retrieve(self, notes: Notes, queries: Queries, effort: Effort) -> list[Retrieved]:
        brought = []
        for source in self.sources:
            found = Retrieved.none()
            try:
                if effort is not Effort.POPULAR or source.name in ALWAYS:
                    found = source.retrieve(queries, self.items).ordered()
            except Exception:
                self._failed(f"source {source.name}", source.name, notes, f"source:{source.name}")
            else:
                for observer in self._observers:
                    observer.on_retrieved(queries, source.name, found)
            self.counters["source", source.name] += len(found.item_row)
            brought.append(found)
        return brought

    def _merge(self, notes: Notes, queries: Queries, retrieved: Sequence[Retrieved]) -> Candidates:
        """Merge the results of the sources and count the requested candidates that are unknown or repeated as dropped."""
        for name in ("unknown", "repeated"):
            counts = [0 if requested is None else getattr(requested, name) for requested in queries.requested]
            self._drop(notes, name, np.asarray(counts, np.int64))
        return Candidates.merge(retrieved, len(queries), queries.size)

    def _drop(self, notes: Notes, name: str, counts: NDArray[np.int64]) -> None:
        notes.dropped[name] = counts
        self.counters["filter", name] += int(counts.sum())

    def _filter(self, notes: Notes, queries: Queries, candidates: Candidates) -> Candidates:
        kept = np.ones(len(candidates), np.bool_)
        for stage in self.filters:
            keep = stage.keep(queries, candidates, self.items)
            # each filter counts only what passed the earlier ones
            dropped = kept & ~keep
            self._drop(notes, stage.name, np.bincount(candidates.query_row[dropped], minlength=len(queries)))
            for observer in self._observers:
                observer.on_dropped(queries, stage.name, candidates.take(dropped))
            kept &= keep
        return candidates if kept.all() else candidates.take(kept)

    def _light(self, notes: Notes, queries: Queries, candidates: Candidates, effort: Effort) -> Candidates:
        """Compute the light scores, sort each query's candidates and keep the best."""
        scores = self.scorer.score(queries, candidates, self.items)
        candidates.score = candidates.light = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
        for observer in self._observers:
            observer.on_scored(queries, candidates)
        light_top = effort.ranked(self._settings.light_top)
        if queries.rules is not None:
            try:
                return rule_stage.kept(queries, candidates, queries.rules, self.items, light_top)
            except Exception:
                self._without_rules(notes, queries)
        return light_cut(queries, candidates, light_top)

    def _featured(self, notes: Notes, queries: Queries, candidates: Candidates) -> Candidates | None:
        """Return the candidates with what the ranker reads; None without a release or candidates, or on failure."""
        if queries.model is None or not len(candidates):
            return None
        ranked = replace(candidates)
        try:
            for hydrator in self.candidate_hydrators:
                hydrator.hydrate(queries, ranked, self.items)
        except Exception:
            self._ranker_failed(queries.model, notes)
            return None
        return ranked

    def _rank(self, prepared: Prepared, ranked: Candidates) -> Generator[Callable[[], Any], Any, Candidates]:
        """Rank by the serving release; ties keep the light order. On failure the light order and a degraded slate remain."""
        queries, notes = prepared.queries, prepared.notes
        assert queries.model is not None
        try:
            scores = yield partial(self.ranker.score, queries, ranked, self.items)
        except Exception:
            self._ranker_failed(queries.model, notes)
            return prepared.candidates
        if not ranked.heads.size:
            notes.degraded.append("ranker")
            return prepared.candidates
        ranked.score = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
        for observer in self._observers:
            observer.on_ranked(queries, ranked)
        return ranked.take(order.descending(ranked.score, ranked.spans(len(queries))))

    def _ranker_failed(self, model: Model, notes: Notes) -> None:
        self._failed(f"the ranker of release {model.name}", "ranker", notes, "ranker")

    def _select(self, notes: Notes, queries: Queries, candidates: Candidates, *, counted: bool) -> tuple[Candidates, Ragged]:
        """Return the candidates in their final order and the slates; with `counted`, count the rules' skipped pins."""
        chosen = None
        if queries.rules is not None:
            try:
                ruled = rule_stage.multiplied(queries, candidates, queries.rules)
                chosen, skipped = rule_stage.arranged(queries, ruled, queries.rules, self.items, self.selector)
                candidates = ruled
            except Exception:
                self._without_rules(notes, queries)
            else:
                if counted:
                    self._count_pins(queries, skipped)
        if chosen is None:
            chosen = self.selector.select(queries, candidates, self.items)
        for observer in self._observers:
            observer.on_selected(queries, candidates, chosen)
        return candidates, chosen

    def _rule(self, notes: Notes, queries: Queries, book: RuleBook | None) -> None:
        """Set the rules that apply to the batch."""
        if book is not None:
            try:
                queries.rules = book.applied(queries)
            except Exception:
                self._without_rules(notes, queries)

    def _without_rules(self, notes: Notes, queries: Queries) -> None:
        """Answer without rules, because they failed: the filters do not depend on them."""
        queries.rules = None
        self._failed("the rules", "rules", notes, "rules")

    def _count_pins(self, queries: Queries, skipped: NDArray[np.int64]) -> None:
        unknown, absent, beyond = skipped.T
        for reason, count in zip(PINS, (unknown, absent[queries.retrieving], absent[~queries.retrieving], beyond), strict=True):
            if count.any():
                self.counters["pin", reason] += int(count.sum())

    def _finish(self, queries: Queries, slates: Sequence[Slate]) -> None:
        for effect in self.side_effects:
            try:
                effect.run(queries, slates)
            except Exception:
                log.exception("side effect %s failed", effect.name)
                self.counters["failed", effect.name] += 1
