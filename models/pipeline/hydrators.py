"""Hydrators: they load data for a batch before retrieval, and for its candidates before ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import signals
from models.pipeline.ragged import Scored
from models.pipeline.scratch import SCRATCH
from models.pipeline.sources import RECENCY
from models.pipeline.stages import QueryHydrator

__all__ = ["HYDRATORS", "CovisitationHydrator", "FeatureHydrator", "ReleaseHydrator"]


class CovisitationHydrator:
    """Cosine-normalised co-visitation with the user's newest items; the newest item weighs most."""

    name = "covisitation"

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Set the batch's signal `covisitation`."""
        near, weights, totals = items.neighbours, items.neighbour_weights, items.neighbour_total
        n = len(items)
        work = SCRATCH.sums(n), *SCRATCH.marks(n, len(queries))
        found = signals.covisits(queries.recent_rows, RECENCY, near, weights, totals, n, *work)
        queries.signals["covisitation"] = Scored(*found)


class ReleaseHydrator:
    """User vectors, liked histories and item-to-item scores by the serving release; nothing without a release."""

    name = "release"

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None] | None:
        """Set `liked` and the signal `ease` of the batch; the returned call runs the user tower."""
        return None if queries.model is None else queries.model.hydrate(queries, items)


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
