"""Selection: the light cut picks the candidates for the ranker, and the selector picks the slate from ranked candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries

__all__ = ["DiverseSelector", "light_cut"]


def light_cut(queries: Queries, candidates: Candidates, light_top: int) -> Candidates:
    """Keep each query's best candidates by score, sorted best first: `light_top`, or `k` where that is more.

    The query's tie-break keys order equal scores. A re-ranking request keeps all of its candidates.
    """
    most = np.asarray(
        [max(light_top, request.k) if request.candidates is None else len(candidates) for request in queries.requests],
        np.int64,
    )
    places = _contending(candidates, most)
    query_row = candidates.query_row[places]
    keys = queries.order_keys(query_row, candidates.item_row[places])
    order = np.lexsort((keys, -candidates.score[places], query_row))
    places, query_row = places[order], query_row[order]
    first = np.searchsorted(query_row, query_row, side="left")
    return candidates.take(places[np.arange(len(places)) - first < most[query_row]])


def _contending(candidates: Candidates, most: NDArray[np.int64]) -> NDArray[np.intp]:
    """Find each query's best candidates and all ties with the last of them: the only indices that need sorting."""
    keep = np.ones(len(candidates), np.bool_)
    spans = candidates.spans(len(most))
    for n, kept in enumerate(most.tolist()):
        scores = candidates.score[spans[n] : spans[n + 1]]
        if len(scores) > kept:
            keep[spans[n] : spans[n + 1]] = scores >= np.partition(scores, -kept)[-kept]
    return np.flatnonzero(keep)


class DiverseSelector:
    """Selects by score, where each selected item lowers the scores of candidates with the same first category."""

    name = "diverse"

    def __init__(self, diversity: float) -> None:
        """`diversity`: penalty per such item, as a fraction of the best score; 0 selects by score alone."""
        self._diversity = diversity

    def select(self, queries: Queries, candidates: Candidates, items: ItemStore) -> list[NDArray[np.intp]]:
        """Return the candidate indices of each query's slate, best first. A re-ranking request keeps its score order."""
        spans = candidates.spans(len(queries))
        chosen = []
        for n, request in enumerate(queries.requests):
            places = np.arange(spans[n], spans[n + 1])
            if request.candidates is None and self._diversity and len(places) > 1:
                places = self._diverse(candidates, places, request.k, items)
            chosen.append(places[: request.k])
        return chosen

    def _diverse(self, candidates: Candidates, places: NDArray[np.intp], k: int, items: ItemStore) -> NDArray[np.intp]:
        category = items.category_ids[candidates.item_row[places], 0]
        score = candidates.score[places].astype(np.float64)
        step = self._diversity * max(float(score[0]), 0.0)
        if not np.isfinite(step):
            return places
        picked = []
        for _ in range(min(k, int(np.isfinite(score).sum()))):
            best = int(np.argmax(score))
            picked.append(best)
            score[best] = -np.inf
            if category[best] >= 0:
                score[category == category[best]] -= step
        rest = np.setdiff1d(np.arange(len(places)), picked, assume_unique=True)
        ordered: NDArray[np.intp] = places[np.concatenate([np.asarray(picked, np.intp), rest])]
        return ordered
