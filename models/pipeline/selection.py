"""Selection: the light cut picks the candidates for the ranker, and the selector picks the slate from ranked candidates."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import candidates as kernels
from models.pipeline.kernels import order
from models.pipeline.ragged import Ragged

__all__ = ["DiverseSelector", "light_cut"]


def light_cut(queries: Queries, candidates: Candidates, light_top: int) -> Candidates:
    """Keep each query's best candidates by score, sorted best first: `light_top`, or `k` where that is more.

    The query's tie-break keys order equal scores. A re-ranking request keeps all of its candidates.
    """
    spans = candidates.spans(len(queries))
    most = np.where(queries.retrieving, np.maximum(light_top, queries.k), np.diff(spans))
    ties = queries.ties
    return candidates.take(order.sorted_best(candidates.score, spans, most, candidates.item_row, ties.hashes, ties.salts))


class DiverseSelector:
    """Selects by score, where each selected item lowers the scores of candidates with the same first category."""

    name = "diverse"

    def __init__(self, diversity: float) -> None:
        """`diversity`: penalty per such item, as a fraction of the best score; 0 selects by score alone."""
        self._diversity = diversity

    def select(self, queries: Queries, candidates: Candidates, items: ItemStore) -> Ragged:
        """Return the candidate indices of each query's slate, best first. A re-ranking request keeps its score order."""
        category, spans = items.category_ids[candidates.item_row, 0], candidates.spans(len(queries))
        picked = kernels.diverse(candidates.score, spans, category, queries.k, queries.retrieving, self._diversity)
        return Ragged(picked[1], picked[0])
