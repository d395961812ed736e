"""Captures candidates in the pipeline during replay, and computes features of any item beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.stages import CandidateHydrator, Observer

__all__ = ["Tap"]


class Tap(Observer):
    """Keeps candidates of one request at a time, as merged and as ranked."""

    def __init__(self, hydrators: Sequence[CandidateHydrator]) -> None:
        """`hydrators` compute candidate features, as in the observed pipeline."""
        self._hydrators = tuple(hydrators)
        self.merged: Candidates | None = None
        self.ranked: Candidates | None = None
        "Candidates as ranked; None if the request has no candidates or no ranker scored them."
        self.queries: Queries | None = None

    @classmethod
    def into(cls, pipeline: CandidatePipeline) -> Tap:
        """Make a tap that observes `pipeline`."""
        tap = cls(pipeline.candidate_hydrators)
        pipeline.observe(tap)
        return tap

    def clear(self) -> None:
        """Discard the last request."""
        self.merged = self.ranked = self.queries = None

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """Keep the batch and the candidates as merged and filtered."""
        self.merged, self.queries = candidates, queries

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:  # noqa: ARG002
        """Keep the candidates as ranked."""
        self.ranked = candidates

    def features(self, rows: NDArray[np.int32], items: ItemStore) -> NDArray[np.float32] | None:
        """Features of these items for the last request's user, `(len(rows), features)`; None without a release.

        Ranked items keep their features. Those of items outside the filters or the light cut are computed beside them.
        """
        if self.queries is None or self.merged is None or self.queries.user_vectors is None:
            return None
        nobody = self.merged.take(np.zeros(0, np.intp))
        ranked = nobody if self.ranked is None else self.ranked
        more = np.setdiff1d(rows, ranked.item_row)
        features = [ranked.features] if len(ranked) else []
        if len(more):
            every = _joined(ranked, self._brought(more.astype(np.int32)))
            for hydrator in self._hydrators:
                hydrator.hydrate(self.queries, every, items)
            # some features compare a candidate with the others, so ranked ones keep their features from serving
            features.append(every.features[len(ranked) :])
        place = np.zeros(len(items), np.int64)
        place[np.concatenate([ranked.item_row, more])] = np.arange(len(ranked) + len(more))
        return np.concatenate(features)[place[rows]] if features else None

    def _brought(self, rows: NDArray[np.int32]) -> Candidates:
        """Candidates of these rows, with the scores of the sources that returned them."""
        assert self.merged is not None
        scores = np.full((len(rows), self.merged.source_scores.shape[1]), np.nan, np.float32)
        _, mine, theirs = np.intersect1d(rows, self.merged.item_row, return_indices=True)
        scores[mine] = self.merged.source_scores[theirs]
        zero, none = np.zeros(len(rows), np.float32), np.zeros((len(rows), 0), np.float32)
        return Candidates(np.zeros(len(rows), np.int32), rows, scores, zero, zero, none, none)


def _joined(one: Candidates, other: Candidates) -> Candidates:
    """Join candidates of one query, without features and heads."""
    rows, queries = np.concatenate([one.item_row, other.item_row]), np.concatenate([one.query_row, other.query_row])
    scores = np.concatenate([one.source_scores, other.source_scores])
    zero, none = np.zeros(len(rows), np.float32), np.zeros((len(rows), 0), np.float32)
    return Candidates(queries, rows, scores, zero, zero, none, none)
