"""Ranking of one request's candidates without the item store: what the ranker and the selector need, and their result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates
from models.pipeline.kernels import candidates as kernels
from models.pipeline.kernels import order
from models.pipeline.prepared import Prepared
from models.pipeline.ragged import Ragged
from models.pipeline.slates import Notes, slates_of
from schemas.records import AsOf, Request, Slate

__all__ = ["RankTask", "Ranked", "Ranks", "predicted", "selected", "slate_of", "tasks_of"]


class Ranks(Protocol):
    """The ranker of a release."""

    @property
    def name(self) -> str:
        """Name of the release."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the actions that the ranker predicts."""

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`."""

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the weighted sum of the heads: float32 `(n,)`."""


@dataclass(frozen=True, slots=True)
class RankTask:
    """The n candidates of one request in the light order, with all that their slate shows."""

    request: Request
    "Only `request_id`, `user_id`, `k` and `explain` are used."
    release: str
    "Name of the release that must rank."
    retrieving: bool
    "Whether Riffle retrieved the candidates; if not, the score alone orders."
    diversity: float
    "As `PipelineSettings.diversity`."
    sources: tuple[str, ...]
    "Names of the source-score columns."
    ids: Sequence[str]
    "Ids of the candidates `(n,)`."
    categories: NDArray[np.int32]
    "Number of each candidate's first category, -1 without one: `(n,)`. Only equality counts."
    candidates: Candidates
    "`item_row` counts from 0, and is an index of `ids`."
    degraded: tuple[str, ...]
    timings: Mapping[str, float]
    "Milliseconds by stage so far; `rank` has those of the features."
    dropped: Mapping[str, int]
    "Number of dropped candidates by filter, for explanations."
    as_of: AsOf | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Ranked:
    """The slate of a task as indices of its candidates, best first."""

    chosen: NDArray[np.int32]
    "`(m,)`, each at most once."
    scores: NDArray[np.float32]
    "`(m,)`."
    heads: NDArray[np.float32]
    "`(m, heads)`."


def tasks_of(
    prepared: Prepared, ranked: Candidates, items: ItemStore, sources: tuple[str, ...], diversity: float
) -> list[RankTask] | None:
    """Return a task for each query of a batch; None if the candidates have no features."""
    queries, notes = prepared.queries, prepared.notes
    if queries.model is None or not ranked.features.size:
        return None
    spans = ranked.spans(len(queries)).tolist()
    timings = {**notes.timings, "rank": prepared.timer.ms}
    tasks = []
    for n, request in enumerate(queries.requests):
        mine = np.arange(spans[n], spans[n + 1])
        rows = ranked.item_row[mine]
        own = replace(ranked.take(mine), query_row=np.zeros(len(mine), np.int32), item_row=np.arange(len(mine), dtype=np.int32))
        tasks.append(
            RankTask(
                request,
                queries.model.name,
                bool(queries.retrieving[n]),
                diversity,
                sources,
                [items.ids[row] for row in rows.tolist()],
                items.category_ids[rows, 0].astype(np.int32),
                own,
                tuple(notes.degraded),
                timings,
                {name: int(counts[n]) for name, counts in notes.dropped.items()} if request.explain else {},
                prepared.as_of[n],
            )
        )
    return tasks


def predicted(tasks: Sequence[RankTask], ranker: Ranks) -> NDArray[np.float32]:
    """Predict the heads of all candidates of all tasks, one task after the other, with one inference: `(n, heads)`.

    Those of a task do not depend on the others, except for rounding in the ranker's graph.
    """
    features = [task.candidates.features for task in tasks if len(task)]
    return ranker.rank(np.concatenate(features)) if features else np.zeros((0, len(ranker.heads)), np.float32)


def selected(tasks: Sequence[RankTask], heads: NDArray[np.float32], ranker: Ranks) -> list[Ranked]:
    """Select the slate of each task. `heads`: of `predicted`.

    Candidates of non-finite score rank last, and ties keep the light order, as in the pipeline.
    """
    scores = ranker.score(heads)
    scores = np.where(np.isfinite(scores), scores, -np.inf).astype(np.float32)
    found, start = [], 0
    for task in tasks:
        mine = slice(start, start + len(task))
        found.append(_selected(task, scores[mine], heads[mine]))
        start = mine.stop
    return found


def _selected(task: RankTask, scores: NDArray[np.float32], heads: NDArray[np.float32]) -> Ranked:
    span = np.asarray([0, len(task)])
    best = order.descending(scores, span)
    most, diversify = np.asarray([task.request.k]), np.asarray([task.retrieving])
    picked, _ = kernels.diverse(scores[best], span, task.categories[best], most, diversify, task.diversity)
    chosen = best[picked]
    return Ranked(chosen.astype(np.int32), scores[chosen], heads[chosen])


@dataclass(frozen=True, slots=True)
class _Release:
    name: str
    heads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _One:
    """A batch of one request, as its slate shows it."""

    requests: tuple[Request]
    model: _Release
    rules: None = None


@dataclass(frozen=True, slots=True)
class _Ids:
    ids: Sequence[str]


def slate_of(task: RankTask, result: Ranked, heads: tuple[str, ...], timings: Mapping[str, float]) -> Slate:
    """Build the slate of a ranked task. `heads`: names of the columns of `Ranked.heads`. `timings`: milliseconds by stage."""
    slated = task.candidates.take(result.chosen)
    slated.score, slated.heads = result.scores, result.heads
    dropped = {name: np.asarray([count]) for name, count in task.dropped.items()}
    notes = Notes(dict(timings), list(task.degraded), dropped)
    whole = Ragged(np.asarray([0, len(slated)]), np.arange(len(slated)))
    one = _One((task.request,), _Release(task.release, heads))
    (slate,) = slates_of(one, slated, whole, _Ids(task.ids), task.sources, notes, [task.as_of])
    return slate
