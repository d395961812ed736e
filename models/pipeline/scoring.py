"""Scorers: the light score from source scores, and the ranker's score from features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import candidates as kernels
from models.pipeline.sources import SOURCES
from models.pipeline.stages import Source

__all__ = ["DEFAULT_WEIGHTS", "LightScorer", "OnnxRanker"]

DEFAULT_WEIGHTS: Mapping[str, float] = {source.name: source.default_weight for source in SOURCES}
"Weight of each source of the pipeline in the light score where no release serves."


class LightScorer:
    """Weighted sum of the source scores, each divided by its maximum within the query so that scales do not matter.

    The weights are those fitted for the serving release; a source that is newer than the release has weight 0. Without a
    release, and for a source that only answers what a request asks for (`retrieves` is False), it is the default weight.
    """

    name = "light"

    def __init__(self, sources: Sequence[Source]) -> None:
        """`sources`: in the order of the source-score columns."""
        self._sources = tuple(source.name for source in sources)
        self._weights = np.asarray([source.default_weight for source in sources], np.float32)
        self._unfitted = tuple(0.0 if source.retrieves else source.default_weight for source in sources)

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """Return the light scores. Candidates of a re-ranking request are scored by their content and popularity."""
        weights = self._weights
        if queries.model is not None:
            learned = queries.model.light
            known = zip(self._sources, self._unfitted, strict=True)
            weights = np.asarray([learned.get(name, weight) for name, weight in known], np.float32)
        scores: NDArray[np.float32] = kernels.light_scores(candidates.source_scores, candidates.spans(len(queries)), weights)
        if not queries.retrieving.all():
            mine = np.flatnonzero(~queries.retrieving[candidates.query_row])
            scores[mine] = self._of_requested(queries, candidates.take(mine), items)
        return scores

    @staticmethod
    def _of_requested(queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        recent = np.maximum(queries.recent_rows, 0)
        known = (queries.recent_rows >= 0)[:, :, None]
        profile = np.where(known, items.text[recent], np.float32(0)).sum(axis=1)
        length = np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
        content = ((profile / length)[candidates.query_row] * items.text[candidates.item_row]).sum(axis=1)
        popularity = np.log1p(items.popularity_now(candidates.item_row))
        scores: NDArray[np.float32] = content + 0.1 * popularity
        return scores


class OnnxRanker:
    """The serving release's ranker: one inference over the whole batch's features gives a probability per head."""

    name = "ranker"

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:  # noqa: ARG002
        """Set `candidates.heads` and return their weighted sum. Without a release or features the score stays."""
        if queries.model is None or not candidates.features.size:
            return candidates.score
        candidates.heads = queries.model.rank(candidates.features)
        return queries.model.score(candidates.heads)
