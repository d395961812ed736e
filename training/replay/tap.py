"""What passes through the pipeline in replay, kept: candidates as merged, as ranked, and any other item beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.scoring import OnnxRanker
from models.pipeline.stages import Scorer

__all__ = ["Tap"]


@dataclass(slots=True)
class Tap:
    """Stands for a pipeline's light scorer and its ranker, one request at a time."""

    scorer: Scorer
    ranker: OnnxRanker
    name: str = "tap"
    merged: Candidates | None = None
    ranked: Candidates | None = None
    "None where the request has no candidates, and where nothing ranked them."
    queries: Queries | None = None

    @classmethod
    def into(cls, pipeline: CandidatePipeline) -> Tap:
        """Put one into `pipeline`."""
        tap = cls(pipeline.scorer, pipeline.ranker)
        pipeline.scorer, pipeline.ranker = tap, tap  # type: ignore[assignment]
        return tap

    def clear(self) -> None:
        """Forget the last request."""
        self.merged = self.ranked = self.queries = None

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """The scorer's."""
        self.merged, self.queries = candidates, queries
        return self.scorer.score(queries, candidates, items)

    def rank(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
        """The ranker's."""
        self.ranker.rank(queries, candidates, items)
        self.ranked = candidates

    def features(self, rows: NDArray[np.int32], items: ItemStore) -> NDArray[np.float32] | None:
        """Features of these items for the last request's person, `(len(rows), features)`; None without a release.

        Those that were ranked have theirs. Others, which the filters or the light scorer had left out, are ranked beside them.
        """
        if self.queries is None or self.merged is None or self.queries.user_vectors is None:
            return None
        nobody = self.merged.take(np.zeros(0, np.intp))
        ranked = nobody if self.ranked is None else self.ranked
        more = np.setdiff1d(rows, ranked.item_row)
        features = [ranked.features] if len(ranked) else []
        if len(more):
            every = _joined(ranked, self._brought(more.astype(np.int32)))
            self.ranker.rank(self.queries, every, items)
            # some features tell a candidate among the others: those that serving ranks keep what they are there
            features.append(every.features[len(ranked) :])
        place = np.zeros(len(items), np.int64)
        place[np.concatenate([ranked.item_row, more])] = np.arange(len(ranked) + len(more))
        return np.concatenate(features)[place[rows]] if features else None

    def _brought(self, rows: NDArray[np.int32]) -> Candidates:
        """Candidates of these rows, with the scores of the sources that brought them."""
        assert self.merged is not None
        scores = np.full((len(rows), self.merged.source_scores.shape[1]), np.nan, np.float32)
        _, mine, theirs = np.intersect1d(rows, self.merged.item_row, return_indices=True)
        scores[mine] = self.merged.source_scores[theirs]
        zero, none = np.zeros(len(rows), np.float32), np.zeros((len(rows), 0), np.float32)
        return Candidates(np.zeros(len(rows), np.int32), rows, scores, zero, zero, none, none)


def _joined(one: Candidates, other: Candidates) -> Candidates:
    """Candidates of the same query, without features and heads."""
    rows, queries = np.concatenate([one.item_row, other.item_row]), np.concatenate([one.query_row, other.query_row])
    scores = np.concatenate([one.source_scores, other.source_scores])
    zero, none = np.zeros(len(rows), np.float32), np.zeros((len(rows), 0), np.float32)
    return Candidates(queries, rows, scores, zero, zero, none, none)
