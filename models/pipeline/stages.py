"""The kinds of stages. Each is a vectorised function over a batch; none makes a Python object per candidate."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved

__all__ = ["Filter", "QueryHydrator", "Scorer", "Source"]


class QueryHydrator(Protocol):
    """Looks up what later stages need of the batch. One that raises costs its part of the slate, never the request."""

    name: str

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Add to `queries`."""


class Source(Protocol):
    """Brings candidates. One that raises costs its part of the slate, never the request."""

    name: str

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Candidates for every query, with a score whose scale is the source's own."""


class Filter(Protocol):
    """Drops candidates. What it drops is counted under its name. One that raises fails the request: never a wrong slate."""

    name: str

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Per candidate, in order: whether it stays. bool `(n,)`."""


class Scorer(Protocol):
    """Scores candidates."""

    name: str

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """One score per candidate, in order, larger is better: float32 `(n,)`. One that is not finite ranks last."""
