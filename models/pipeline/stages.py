"""The kinds of stages. Each is a vectorised function over a batch; none makes a Python object per candidate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from schemas.records import Slate

__all__ = ["CandidateHydrator", "Filter", "Observer", "QueryHydrator", "Scorer", "Selector", "SideEffect", "Source"]


class QueryHydrator(Protocol):
    """Looks up what later stages need of the batch. One that raises costs its part of the slate, never the request."""

    name: str

    def hydrate(self, queries: Queries, items: ItemStore) -> None:
        """Add to `queries`."""


class Source(Protocol):
    """Brings candidates. One that raises costs its part of the slate, never the request."""

    name: str
    default_weight: float
    "Weight of its normalised score in the light score where no release serves. Finite."
    retrieves: bool
    "Whether it finds candidates itself: then a feature marks those that it brought. False for what requests bring."

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Candidates for every query, with a score whose scale is the source's own."""


class Filter(Protocol):
    """Drops candidates. What it drops is counted under its name. One that raises fails the request: never a wrong slate."""

    name: str

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Per candidate, in order: whether it stays. bool `(n,)`."""


class Scorer(Protocol):
    """Scores candidates: the light scorer all that the filters left, the ranker those that the light cut left.

    A light scorer that raises fails the request. A ranker that raises leaves the light order, and the slate is degraded.
    """

    name: str

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """One score per candidate, in order, larger is better: float32 `(n,)`. One that is not finite ranks last.

        A ranker sets `candidates.heads`; where it leaves them empty, it did not rank, and the light order stands.
        """


class CandidateHydrator(Protocol):
    """Looks up what the ranker needs of the candidates. Runs only under a release; one that raises costs the ranking."""

    name: str

    def hydrate(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
        """Add to `candidates`."""


class Selector(Protocol):
    """Picks the slates from scored candidates. One that raises fails the request."""

    name: str

    def select(self, queries: Queries, candidates: Candidates, items: ItemStore) -> list[NDArray[np.intp]]:
        """Per query: places of its slate among the candidates, best first, at most `k`. Candidates come best first."""


class SideEffect(Protocol):
    """Work after the slates are made. It changes no slate; one that raises is counted and costs nothing else."""

    name: str

    def run(self, queries: Queries, slates: Sequence[Slate]) -> None:
        """Called once per batch, in the thread that ranks: what takes long belongs elsewhere."""


class Observer:
    """Is notified of what each stage of a run did, and overrides what it wants to know. It must change none of it.

    Called in the order of the stages. Later stages replace the columns that it is given and do not write to them, so it may
    keep them. An observer that raises fails the request, because figures of a run that was seen in part would mislead.
    """

    def on_hydrated(self, queries: Queries) -> None:
        """The batch is hydrated."""

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:
        """A source brought candidates. Not called for one that failed."""

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:
        """A filter dropped these candidates."""

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """The light score of all candidates that the filters left is set, before the cut."""

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:
        """Features, heads and scores of the candidates are set, still in the light order. Not called without a ranking."""

    def on_selected(self, queries: Queries, candidates: Candidates, chosen: Sequence[NDArray[np.intp]]) -> None:
        """Per query: places of its slate among the candidates, best first."""
