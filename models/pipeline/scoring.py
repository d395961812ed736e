"""Light scoring: one number per candidate from what the sources say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.items import ItemStore
from models.pipeline.batch import Candidates, Queries

__all__ = ["DEFAULT_WEIGHTS", "LightScorer"]

DEFAULT_WEIGHTS: Mapping[str, float] = {
    "covisitation": 1.0,
    "content": 0.25,
    "popular": 0.35,
    "fresh": 0.15,
    "requested": 0.0,
}


class LightScorer:
    """Weighted sum of the sources' scores, each divided by its largest within the query so that scales do not matter."""

    name = "light"

    def __init__(self, sources: Sequence[str], weights: Mapping[str, float] = DEFAULT_WEIGHTS) -> None:
        self._weights = np.asarray([weights.get(name, 0.0) for name in sources], np.float32)

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """Light scores; a re-ranking request is scored by content and popularity of what it brings."""
        brought = np.nan_to_num(candidates.source_scores, nan=0.0, posinf=0.0, neginf=0.0)
        scores = np.zeros(len(candidates), np.float32)
        spans = np.searchsorted(candidates.query_row, np.arange(len(queries) + 1))
        for n in range(len(queries)):
            part = brought[spans[n] : spans[n + 1]]
            if len(part):
                largest = np.maximum(part.max(axis=0), 1e-9)
                scores[spans[n] : spans[n + 1]] = (part / largest) @ self._weights
        requested = np.asarray([r.candidates is not None for r in queries.requests], np.bool_)
        if requested.any():
            mine = requested[candidates.query_row]
            scores[mine] = self._of_requested(queries, candidates, items)[mine]
        return scores

    @staticmethod
    def _of_requested(queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        recent = np.maximum(queries.recent_rows, 0)
        known = (queries.recent_rows >= 0)[:, :, None]
        profile = np.where(known, items.text[recent], np.float32(0)).sum(axis=1)
        length = np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
        content = ((profile / length)[candidates.query_row] * items.text[candidates.item_row]).sum(axis=1)
        popularity = np.log1p(items.popularity_now()[candidates.item_row])
        scores: NDArray[np.float32] = content + 0.1 * popularity
        return scores
