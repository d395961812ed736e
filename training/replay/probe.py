"""The serving pipeline, asked what becomes of one item: where it is lost, who brought it, and what was shown instead."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.scoring import OnnxRanker
from models.pipeline.slot import ModelSlot
from models.pipeline.stages import Filter, Scorer, Source
from models.state.rows import UserRecord
from schemas.records import Request

__all__ = ["BEYOND", "Probed", "Prober"]

BEYOND = -1
STANDARD = PipelineSettings()


@dataclass(frozen=True, slots=True)
class Probed:
    """What became of one item in one answer."""

    rank: int
    "Its place in the slate, 0 is first, BEYOND when it is not there."
    stage: str
    "Where it ended: `ranked`, `not_retrieved`, `light_cut` or `filtered:…`."
    sources: list[str]
    "Who brought it."
    candidate_rank: int
    "Its place among all that the sources merged and the filters left, by the light score; BEYOND when it is not among them."
    candidates: int
    "How many those are."
    slate: NDArray[np.int32]
    "Item rows of the whole slate, best first."
    ranked: NDArray[np.int32]
    "Item rows that the ranker scored; none without a release."
    heads: NDArray[np.float32]
    "Its probabilities for them: `(ranked, heads)`."


@dataclass(slots=True)
class _Watched:
    """What happens to one item on its way through the pipeline."""

    row: int = -1
    stage: str = "not_retrieved"
    sources: list[str] = field(default_factory=list)
    candidate_rank: int = BEYOND
    candidates: int = 0
    ranked: Candidates | None = None


class _WatchedSource:
    """A source that notes whether it brought the watched item."""

    def __init__(self, source: Source, watched: _Watched) -> None:
        self.name = source.name
        self._source = source
        self._watched = watched

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """What the source brings."""
        brought = self._source.retrieve(queries, items)
        if self._watched.row >= 0 and bool((brought.item_row == self._watched.row).any()):
            self._watched.sources.append(self.name)
            self._watched.stage = "light_cut"
        return brought


class _WatchedFilter:
    """A filter that notes whether it dropped the watched item."""

    def __init__(self, stage: Filter, watched: _Watched) -> None:
        self.name = stage.name
        self._filter = stage
        self._watched = watched

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """What the filter keeps."""
        keep = self._filter.keep(queries, candidates, items)
        if bool((candidates.item_row[~keep] == self._watched.row).any()):
            self._watched.stage = f"filtered:{self.name}"
        return keep


class _WatchedScorer:
    """The light scorer, noting where it puts the watched item among all candidates."""

    def __init__(self, scorer: Scorer, watched: _Watched) -> None:
        self.name = scorer.name
        self._scorer = scorer
        self._watched = watched

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """The scorer's."""
        scores = self._scorer.score(queries, candidates, items)
        watched = self._watched
        watched.candidates = len(candidates)
        place = np.flatnonzero(candidates.item_row == watched.row)
        if len(place):
            at = int(place[0])
            plain = np.where(np.isfinite(scores), scores, -np.inf)
            # the pipeline's order: best first, equals by the asker's keys
            keys = queries.order_keys(candidates.query_row, candidates.item_row)
            watched.candidate_rank = int((plain > plain[at]).sum() + ((plain == plain[at]) & (keys < keys[at])).sum())
        return scores


class _WatchedRanker(OnnxRanker):
    """The ranker, keeping what it said of every candidate."""

    def __init__(self, sources: list[str], watched: _Watched) -> None:
        super().__init__(sources)
        self._watched = watched

    def rank(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
        """The ranker's."""
        super().rank(queries, candidates, items)
        self._watched.ranked = candidates


class Prober:
    """Asks for one item after the other. Only watches: the slates are those that a worker would give."""

    def __init__(self, items: ItemStore, slot: ModelSlot | None = None, settings: PipelineSettings = STANDARD) -> None:
        self._watched = watched = _Watched()
        plain = CandidatePipeline(items, clock=after_all)
        self._items = items
        self._depth = settings.light_top
        self._pipeline = CandidatePipeline(
            items,
            settings,
            sources=[_WatchedSource(source, watched) for source in plain.sources],
            filters=[_WatchedFilter(stage, watched) for stage in plain.filters],
            scorer=_WatchedScorer(plain.scorer, watched),
            slot=slot,
            clock=after_all,
        )
        self._pipeline.ranker = _WatchedRanker([source.name for source in plain.sources], watched)

    def probe(self, user_id: str, user: UserRecord | None, item_id: str) -> Probed:
        """What becomes of the item in an answer to this person, of everything that the light cut leaves.

        Raises:
            RuntimeError: a part of the pipeline failed; figures of a degraded pipeline would mislead.
        """
        watched = self._watched
        watched.row, watched.stage, watched.sources = self._items.row_of(item_id), "not_retrieved", []
        watched.candidate_rank, watched.candidates, watched.ranked = BEYOND, 0, None
        slate = self._pipeline.run([Request("evaluate", user_id, k=self._depth)], [user], [None])[0]
        if slate.degraded:
            raise RuntimeError(f"the pipeline is degraded: {', '.join(slate.degraded)}")
        rows = self._items.rows_of([item.item_id for item in slate.items])
        place = np.flatnonzero(rows == watched.row)
        ranked = watched.ranked
        return Probed(
            rank=int(place[0]) if len(place) and watched.row >= 0 else BEYOND,
            stage="ranked" if len(place) and watched.row >= 0 else watched.stage,
            sources=watched.sources,
            candidate_rank=watched.candidate_rank,
            candidates=watched.candidates,
            slate=rows,
            ranked=np.zeros(0, np.int32) if ranked is None else ranked.item_row,
            heads=np.zeros((0, 0), np.float32) if ranked is None else ranked.heads,
        )
