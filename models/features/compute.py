"""Computes the features of candidates, by the same code in serving and in training's replay.

Features depend only on event time and on data that the batch already holds, never on the wall clock. They are declared in
`context`, `user`, `item` and `cross`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.features.context import CONTEXT, context_of
from models.features.cross import CROSS, Crossed
from models.features.item import ITEM, OfItems
from models.features.kernels import columns, values
from models.features.spec import generations, layout, specification
from models.features.user import USER, OfUsers
from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Model, Queries
from models.pipeline.sources import RETRIEVING
from schemas.errors import ReleaseRejected

__all__ = ["FEATURES", "GENERATIONS", "LAYOUT", "SPEC", "columns_of", "compute"]

LAYOUT, (OF_USER, OF_CONTEXT, OF_ITEM, OF_CROSS) = layout((USER, CONTEXT, ITEM, CROSS))
"All features with their versions, in the order of the columns."
FEATURES = tuple(feature.name for feature in LAYOUT)
"Names of the features, in the order of the columns."
SPEC = specification(LAYOUT)
"Name of this specification, derived from LAYOUT. Training uses it."
GENERATIONS = generations(LAYOUT)
"Columns of each specification that releases may have, by its name: this one and those that it extends. Others are refused."
POPULARITY = FEATURES.index("item_popularity")


def columns_of(release: str, spec: str) -> NDArray[np.intp] | None:
    """Columns of the features that a release of this specification reads; None for all of them.

    Raises:
        ReleaseRejected: they cannot be computed.
    """
    if spec not in GENERATIONS:
        raise ReleaseRejected(
            "feature_spec", f"release {release} needs features {spec}, this Riffle has {', '.join(GENERATIONS)}"
        )
    return None if spec == SPEC else GENERATIONS[spec]


def compute(
    queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str], model: Model
) -> NDArray[np.float32]:
    """Compute all candidates' features: float32 `(n, len(FEATURES))`, all finite. `sources` names the source-score columns."""
    out = np.zeros((len(candidates), len(FEATURES)), np.float32)
    query_row, spans = candidates.query_row, candidates.spans(len(queries))
    of_queries = np.zeros((len(queries), OF_CONTEXT.stop), np.float32)
    USER.fill(of_queries[:, OF_USER], OfUsers(queries, items.stream_time_ms, model))
    of_queries[:, OF_CONTEXT] = context_of(queries.requests, items.stream_time_ms)
    out[:, : OF_CONTEXT.stop] = of_queries[query_row]
    ITEM.fill(out[:, OF_ITEM], OfItems(candidates.item_row, items, model))
    of = Crossed(
        candidates, spans, np.ascontiguousarray(out[:, POPULARITY]), _brought(candidates, sources), queries, items, model
    )
    CROSS.fill(out[:, OF_CROSS], of)
    values.finite(out)
    return out


def _brought(candidates: Candidates, sources: Sequence[str]) -> NDArray[np.float32]:
    """Mark candidates per retrieving source: 1 where it retrieved the candidate. Sources that the pipeline lacks have zeros."""
    there = {name: n for n, name in enumerate(sources)}
    places = np.asarray([there.get(source.name, -1) for source in RETRIEVING], np.int64)
    found: NDArray[np.float32] = columns.brought(candidates.source_scores, places)
    return found
