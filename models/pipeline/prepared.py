"""A batch between its two halves: all that needs the item store is done, and the graph of the ranker has not run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from models.pipeline.batch import Candidates, Queries
from models.pipeline.slates import Notes
from schemas.records import AsOf

__all__ = ["Prepared", "Timer"]


@dataclass(slots=True)
class Timer:
    """Notes the milliseconds of each stage. `clock`: seconds, never set back."""

    notes: Notes
    clock: Callable[[], float] = time.perf_counter
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self.clock()

    @property
    def ms(self) -> float:
        """Milliseconds since the end of the last stage."""
        return (self.clock() - self._since) * 1e3

    def ended(self, stage: str) -> None:
        """Note the end of a stage."""
        now = self.clock()
        self.notes.timings[stage] = (now - self._since) * 1e3
        self._since = now


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch whose candidates have passed the light cut. `CandidatePipeline.complete` makes its slates."""

    queries: Queries
    candidates: Candidates
    "In the light order."
    ranked: Candidates | None
    "The same candidates with their features, which `complete` ranks; None if nothing is ranked."
    notes: Notes
    timer: Timer
    as_of: Sequence[AsOf | None]
    revision: int
    "`ItemStore.revision` at which the candidates were filtered."
    counted: bool
    "Whether skipped pins of the rules are counted."
