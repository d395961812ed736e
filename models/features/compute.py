"""Computes the features of candidates, by the same code in serving and in training's replay.

Features depend only on event time and on data that the batch already holds, never on the wall clock. They are declared in
`context`, `user`, `item` and `cross`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.features import kernels
from models.features.context import CONTEXT, context_of
from models.features.cross import CROSS, Crossed
from models.features.item import ITEM, OfItems
from models.features.spec import layout, specification
from models.features.user import USER, OfUsers
from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Model, Queries
from models.pipeline.sources import RETRIEVING

__all__ = ["FEATURES", "LAYOUT", "SPEC", "WIDTHS", "compute", "spec_of"]

LAYOUT, (OF_USER, OF_CONTEXT, OF_ITEM, OF_CROSS) = layout((USER, CONTEXT, ITEM, CROSS))
"All features with their versions, in the order of the columns."
FEATURES = tuple(feature.name for feature in LAYOUT)
"Names of the features, in the order of the columns."
SPEC = specification(LAYOUT)
"Name of the specification of all features, derived from LAYOUT."
WIDTHS: Mapping[str, int] = {specification(LAYOUT[:n]): n for n in (FEATURES.index("by_transitions"), len(FEATURES))}
"""Number of features by specification: the leading ones, which releases without transitions read, or all. Releases of another
specification are refused."""
SPECS = {width: name for name, width in WIDTHS.items()}
POPULARITY = FEATURES.index("item_popularity")


def spec_of(width: int) -> str:
    """Return the name of the specification with so many features; SPEC if there is none."""
    return SPECS.get(width, SPEC)


def compute(
    queries: Queries, candidates: Candidates, items: ItemStore, sources: Sequence[str], model: Model
) -> NDArray[np.float32]:
    """Compute all candidates' features: float32 `(n, model.feature_count)`, all finite.

    `sources` names the source-score columns.
    """
    out = np.zeros((len(candidates), model.feature_count), np.float32)
    query_row, spans = candidates.query_row, candidates.spans(len(queries))
    of_users = np.zeros((len(queries), len(USER.features)), np.float32)
    USER.fill(of_users, OfUsers(queries, items.stream_time_ms, model))
    # users without history have zeros
    of_users[queries.users.size == 0] = 0.0
    out[:, OF_USER] = of_users[query_row]
    out[:, OF_CONTEXT] = context_of(queries.requests, items.stream_time_ms)[query_row]
    ITEM.fill(out[:, OF_ITEM], OfItems(candidates.item_row, items, model))
    of = Crossed(
        candidates, spans, np.ascontiguousarray(out[:, POPULARITY]), _brought(candidates, sources), queries, items, model
    )
    CROSS.fill(out[:, OF_CROSS], of)
    kernels.finite(out)
    return out


def _brought(candidates: Candidates, sources: Sequence[str]) -> NDArray[np.float32]:
    """Mark candidates per retrieving source: 1 where it retrieved the candidate. Sources that the pipeline lacks have zeros."""
    out = np.zeros((len(candidates), len(RETRIEVING)), np.float32)
    there, places = ~np.isnan(candidates.source_scores), {name: n for n, name in enumerate(sources)}
    for n, source in enumerate(RETRIEVING):
        if source.name in places:
            out[:, n] = there[:, places[source.name]]
    return out
