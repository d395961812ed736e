"""The serving pipeline, asked what becomes of one item: where it is lost, who brought it, and what was shown instead."""

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


class _Watch(Observer):
    """What happens to one item on its way through the pipeline."""

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, row: int) -> None:
        """Watch another item; -1 is one that the catalogue does not hold."""
        self.row = row
        self.stage = "not_retrieved"
        self.sources: list[str] = []
        self.candidate_rank, self.candidates = BEYOND, 0
        self.rows, self.heads = np.zeros(0, np.int32), np.zeros((0, 0), np.float32)
        "Items that the ranker scored, and their probabilities."

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:  # noqa: ARG002
        """Note a source that brought the item."""
        if self.row >= 0 and bool((brought.item_row == self.row).any()):
            self.sources.append(source)
            self.stage = "light_cut"

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:  # noqa: ARG002
        """Note the filter that dropped the item."""
        if bool((candidates.item_row == self.row).any()):
            self.stage = f"filtered:{stage}"

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """Note the item's rank among all candidates."""
        self.candidates = len(candidates)
        place = np.flatnonzero(candidates.item_row == self.row)
        if len(place):
            at, scores = int(place[0]), candidates.score
            # the pipeline's order: best first, equals by the asker's keys
            keys = queries.order_keys(candidates.query_row, candidates.item_row)
            self.candidate_rank = int((scores > scores[at]).sum() + ((scores == scores[at]) & (keys < keys[at])).sum())

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep the ranker's probabilities."""
        self.rows, self.heads = candidates.item_row, candidates.heads


class Prober:
    """Asks for one item after the other. Only watches: the slates are those that a worker would give."""

    def __init__(self, items: ItemStore, slot: ModelSlot | None = None, settings: PipelineSettings = STANDARD) -> None:
        self._items = items
        self._depth = settings.light_top
        self._watch = _Watch()
        self._pipeline = CandidatePipeline(items, settings, slot=slot, clock=after_all, observers=[self._watch])

    def probe(self, user_id: str, user: UserRecord | None, item_id: str) -> Probed:
        """What becomes of the item in an answer to this person, of everything that the light cut leaves.

        Raises:
            RuntimeError: a part of the pipeline failed; figures of a degraded pipeline would mislead.
        """
        watch = self._watch
        watch.begin(self._items.row_of(item_id))
        slate = self._pipeline.run([Request("evaluate", user_id, k=self._depth)], [user], [None])[0]
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
