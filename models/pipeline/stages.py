"""The stage types of the pipeline. Each stage is a vectorised function over a batch and makes no object per candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.ragged import Ragged
from schemas.records import Slate

__all__ = ["CandidateHydrator", "Filter", "Observer", "QueryHydrator", "Scorer", "Selector", "SideEffect", "Source"]


class QueryHydrator(Protocol):
    """Loads data about the batch for later stages. If it raises, the slate is degraded; the request never fails."""

    name: str

    def hydrate(self, queries: Queries, items: ItemStore) -> Callable[[], None] | None:
        """Add the data to `queries`. A returned call ends the work; it runs in another thread and uses `queries` alone."""


class Source(Protocol):
    """Retrieves candidates. If it raises, the slate lacks its candidates and is degraded; the request never fails."""

    name: str
    default_weight: float
    "Weight of the source's normalised score in the light score where no release serves. Finite."
    retrieves: bool
    "Whether the source finds candidates itself; a feature then marks its candidates. False for candidates given by requests."

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return candidates for every query, of the items below `queries.size`; each source has its own score scale."""


class Filter(Protocol):
    """Removes candidates; they are counted under its name. If it raises, the request fails: a wrong slate is never returned."""

    name: str

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Return whether each candidate is kept: bool `(n,)`, in the order of the candidates.

        It may be called with candidates that other filters drop.
        """


class Scorer(Protocol):
    """Scores candidates: the light scorer after the filters, the ranker after the light cut.

    If a light scorer raises, the request fails. If a ranker raises, the light order stays and the slate is degraded.
    """

    name: str

    def score(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.float32]:
        """Return a score per candidate, in order, larger is better: float32 `(n,)`. Non-finite scores rank last.

        A ranker sets `candidates.heads`. Empty heads mean that it did not rank; the light order then stays. A ranker runs in
        another thread, while the item store may change; it reads `candidates.features`.
        """


class CandidateHydrator(Protocol):
    """Loads data about the candidates for the ranker. Runs only under a release. If it raises, ranking is skipped."""

    name: str

    def hydrate(self, queries: Queries, candidates: Candidates, items: ItemStore) -> None:
        """Add the data to `candidates`."""


class Selector(Protocol):
    """Picks the slates from scored candidates. If it raises, the request fails."""

    name: str

    def select(self, queries: Queries, candidates: Candidates, items: ItemStore) -> Ragged:
        """Return, per query, the candidate indices of its slate, best first, at most `k`. The input is sorted best first."""


class SideEffect(Protocol):
    """Work after the slates are made. It changes no slate; if it raises, the failure is counted and has no other effect."""

    name: str

    def run(self, queries: Queries, slates: Sequence[Slate]) -> None:
        """Run once per batch, on the event loop; it must not run long."""


class Observer:
    """Is notified of the result of each stage of a run; subclasses override the notifications they need.

    It must not change its arguments. Calls follow the order of the stages. Later stages replace the given columns and do not
    write to them, so an observer may keep them. An observer that raises fails the request, because figures of a run that was
    observed only in part would mislead.
    """

    def on_hydrated(self, queries: Queries) -> None:
        """Called when the batch is hydrated."""

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:
        """Called with the candidates of a source. Not called for a source that failed."""

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:
        """Called with the candidates that a filter dropped."""

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """Called with the light scores of all candidates that passed the filters, before the cut."""

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:
        """Called when features, heads and scores are set, still in the light order. Not called without a ranking."""

    def on_selected(self, queries: Queries, candidates: Candidates, chosen: Ragged) -> None:
        """Called with the candidate indices of each query's slate, best first."""
