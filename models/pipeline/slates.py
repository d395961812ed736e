"""Build the slates of a batch from the selected candidates and the notes of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from schemas.records import AsOf, Slate, SlateItem

__all__ = ["Notes", "slates_of"]


@dataclass(slots=True)
class Notes:
    """Timings, failures and drops of a run, which its slates report."""

    timings: dict[str, float] = field(default_factory=dict)
    "Milliseconds by stage."
    degraded: list[str] = field(default_factory=list)
    "Stages that failed: `source:<name>`, `hydrator:<name>`, `ranker`."
    dropped: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    "Query of each dropped candidate, by filter."


def slates_of(
    queries: Queries,
    candidates: Candidates,
    chosen: Sequence[NDArray[np.intp]],
    items: ItemStore,
    sources: Sequence[str],
    notes: Notes,
    as_of: Sequence[AsOf | None],
) -> list[Slate]:
    """Build one slate per query. `chosen` holds its candidate indices, best first; `sources` names the source-score columns."""
    there = ~np.isnan(candidates.source_scores)
    model = queries.model
    slates = []
    for n, request in enumerate(queries.requests):
        chosen_items = []
        dropped = {name: int((rows == n).sum()) for name, rows in notes.dropped.items()} if request.explain else {}
        for place in chosen[n].tolist():
            by = np.flatnonzero(there[place]).tolist()
            explanation: dict[str, object] | None = None
            if request.explain:
                explanation = {
                    "sources": {sources[s]: round(float(candidates.source_scores[place, s]), 6) for s in by},
                    "light": round(float(candidates.light[place]), 6),
                    "dropped": dropped,
                }
                if model is not None and candidates.heads.size:
                    heads = candidates.heads[place].tolist()
                    explanation["heads"] = {name: round(p, 6) for name, p in zip(model.heads, heads, strict=True)}
            score = float(candidates.score[place])
            chosen_items.append(
                SlateItem(
                    items.ids[int(candidates.item_row[place])],
                    score if np.isfinite(score) else -1e30,
                    tuple(sources[s] for s in by),
                    explanation,
                    candidates.features[place],
                )
            )
        timings = {stage: round(ms, 3) for stage, ms in notes.timings.items()}
        slates.append(
            Slate(
                request.request_id,
                request.user_id,
                tuple(chosen_items),
                "none" if model is None else model.name,
                "default",
                tuple(notes.degraded),
                as_of[n],
                timings,
            )
        )
    return slates
