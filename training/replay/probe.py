"""Traces one item through the serving pipeline: which source retrieves it, where it is lost, and which slate is shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.slot import ModelSlot
from models.pipeline.stages import Observer
from models.state.rows import UserRecord
from schemas.records import Request

__all__ = ["BEYOND", "Probed", "Prober"]

BEYOND = -1
STANDARD = PipelineSettings()


@dataclass(frozen=True, slots=True)
class Probed:
    """Trace of one item in one request."""

    rank: int
    "Rank in the slate, 0 is first; BEYOND when it is not in it."
    stage: str
    "Last stage reached: `ranked`, `not_retrieved`, `light_cut` or `filtered:…`."
    sources: list[str]
    "Names of the sources that retrieved it."
    candidate_rank: int
    "Rank by light score among the merged and filtered candidates; BEYOND when it is not among them."
    candidates: int
    "Number of these candidates."
    slate: NDArray[np.int32]
    "Item rows of the whole slate, best first."
    ranked: NDArray[np.int32]
    "Item rows that the ranker scored; none without a release."
    heads: NDArray[np.float32]
    "The ranker's probabilities for them: `(ranked, heads)`."


class _Watch(Observer):
    """Observes one item in the pipeline."""

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, row: int) -> None:
        """Start on another item; -1 stands for an item outside the catalogue."""
        self.row = row
        self.stage = "not_retrieved"
        self.sources: list[str] = []
        self.candidate_rank, self.candidates = BEYOND, 0
        self.rows, self.heads = np.zeros(0, np.int32), np.zeros((0, 0), np.float32)
        "Item rows that the ranker scored; `heads` holds their probabilities."

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:  # noqa: ARG002
        """Record a source that retrieved the item."""
        if self.row >= 0 and bool((brought.item_row == self.row).any()):
            self.sources.append(source)
            self.stage = "light_cut"

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:  # noqa: ARG002
        """Record the filter that removed the item."""
        if bool((candidates.item_row == self.row).any()):
            self.stage = f"filtered:{stage}"

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """Record the item's rank among all candidates."""
        self.candidates = len(candidates)
        place = np.flatnonzero(candidates.item_row == self.row)
        if len(place):
            at, scores = int(place[0]), candidates.score
            # same order as the pipeline: best first, ties by the query's order keys
            keys = queries.ties.keys(candidates.query_row, candidates.item_row)
            self.candidate_rank = int((scores > scores[at]).sum() + ((scores == scores[at]) & (keys < keys[at])).sum())

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep the ranker's probabilities."""
        self.rows, self.heads = candidates.item_row, candidates.heads


class Prober:
    """Runs a request per item and observes it. Slates equal those of a worker."""

    def __init__(
        self, items: ItemStore, slot: ModelSlot | None = None, settings: PipelineSettings = STANDARD, *, repeats: bool = False
    ) -> None:
        """`repeats`: whether slates may hold items that the user has interacted with."""
        self._items, self._repeats = items, repeats
        self._depth = settings.light_top
        self._watch = _Watch()
        self._pipeline = CandidatePipeline(items, settings, slot=slot, clock=after_all, observers=[self._watch])

    def probe(self, user_id: str, user: UserRecord | None, item_id: str) -> Probed:
        """Trace the item in a request of this user, with a slate of all candidates that pass the light cut.

        Raises:
            RuntimeError: a part of the pipeline failed; figures of a degraded pipeline would mislead.
        """
        watch = self._watch
        watch.begin(self._items.row_of(item_id))
        slate = self._pipeline.run([Request("evaluate", user_id, k=self._depth, repeats=self._repeats)], [user], [None])[0]
        if slate.degraded:
            raise RuntimeError(f"the pipeline is degraded: {', '.join(slate.degraded)}")
        rows = self._items.rows_of([item.item_id for item in slate.items])
        place = np.flatnonzero(rows == watch.row)
        slated = len(place) > 0 and watch.row >= 0
        return Probed(
            rank=int(place[0]) if slated else BEYOND,
            stage="ranked" if slated else watch.stage,
            sources=watch.sources,
            candidate_rank=watch.candidate_rank,
            candidates=watch.candidates,
            slate=rows,
            ranked=watch.rows,
            heads=watch.heads,
        )
