"""Hydrators: they load data for a batch before retrieval, and for its candidates before ranking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.signals import Scratch, Signal
from models.pipeline.sources import RECENCY
from models.pipeline.stages import QueryHydrator

__all__ = ["HYDRATORS", "CovisitationHydrator", "FeatureHydrator", "ReleaseHydrator"]


class CovisitationHydrator:
    """Cosine-normalised co-visitation with the user's newest items; the newest item weighs most."""

    name = "covisitation"

    def __init__(self) -> None:
        self._scratch = Scratch()

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Set the batch's signal `covisitation`."""
        rows, values = [], []
        for recent in queries.recent_rows:
            known = recent >= 0
            mine, weight = recent[known], RECENCY[known]
            near = items.neighbour_rows[mine]
            norm = np.sqrt(np.maximum(items.neighbour_total[mine], 1.0))
            there = near >= 0
            scores = items.neighbour_weights[mine] * (weight / norm)[:, None]
            found, sums = self._scratch.sum(near[there], scores[there], len(items))
            rows.append(found)
            values.append((sums / np.sqrt(np.maximum(items.neighbour_total[found], np.float32(1)))).astype(np.float32))
        queries.signals["covisitation"] = Signal(rows, values)


class ReleaseHydrator:
    """User vectors, liked histories and item-to-item scores by the serving release; nothing without a release."""

    name = "release"

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Set `user_vectors`, `liked` and the signal `ease` of the batch."""
        if queries.model is not None:
            queries.model.hydrate(queries, items)


HYDRATORS: tuple[type[QueryHydrator], ...] = (CovisitationHydrator, ReleaseHydrator)
"The hydrators of a batch, in the order in which they run."


class FeatureHydrator:
    """The ranker's features, by the serving release; none where the release could not hydrate the batch."""

    name = "features"

    def __init__(self, sources: Sequence[str]) -> None:
        """`sources`: names of the source-score columns."""
        self._sources = tuple(sources)

    def hydrate(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
        """Set `candidates.features`."""
        if queries.model is not None and queries.user_vectors is not None and len(candidates):
            candidates.features = queries.model.features(queries, candidates, items, self._sources)
