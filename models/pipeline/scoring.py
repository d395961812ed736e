"""Scorers: the light score from what the sources brought, and the ranker's from features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.sources import SOURCES
from models.pipeline.stages import Source

__all__ = ["DEFAULT_WEIGHTS", "LightScorer", "OnnxRanker"]

DEFAULT_WEIGHTS: Mapping[str, float] = {source.name: source.default_weight for source in SOURCES}
"Weight of each source of the pipeline in the light score where no release serves."


class LightScorer:
    """Weighted sum of the sources' scores, each divided by its largest within the query so that scales do not matter.

    The serving release brings weights that were fitted; one that is older than a source does not name it, and it weighs nothing
    there. Without a release each source has its own default weight.
    """

    name = "light"

    def __init__(self, sources: Sequence[Source]) -> None:
        """`sources` in the order of the columns of source scores."""
        self._sources = tuple(source.name for source in sources)
        self._weights = np.asarray([source.default_weight for source in sources], np.float32)

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """Light scores; a re-ranking request is scored by content and popularity of what it brings."""
        weights = self._weights
        if queries.model is not None:
            learned = queries.model.light
            weights = np.asarray([learned.get(name, 0.0) for name in self._sources], np.float32)
        brought = np.nan_to_num(candidates.source_scores, nan=0.0, posinf=0.0, neginf=0.0)
        scores = np.zeros(len(candidates), np.float32)
        spans = candidates.spans(len(queries))
        for n in range(len(queries)):
            part = brought[spans[n] : spans[n + 1]]
            if len(part):
                largest = np.maximum(part.max(axis=0), 1e-9)
                # not a matrix product, whose roundings depend on where a candidate stands: equals must stay equal
                scores[spans[n] : spans[n + 1]] = np.einsum("cs,s->c", part / largest, weights)
        requested = np.asarray([r.candidates is not None for r in queries.requests], np.bool_)
        if requested.any():
            mine = np.flatnonzero(requested[candidates.query_row])
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
    """The serving release's ranker: one run over the features of the whole batch, a probability per head."""

    name = "ranker"

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:  # noqa: ARG002
        """The heads' weighted sum; sets `candidates.heads`. Without a release or features the score stays."""
        if queries.model is None or not candidates.features.size:
            return candidates.score
        candidates.heads = queries.model.rank(candidates.features)
        return queries.model.score(candidates.heads)
