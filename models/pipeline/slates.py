"""Build the slates of a batch from the selected candidates and the notes of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.pipeline.batch import Candidates
from models.pipeline.ragged import Ragged
from models.pipeline.rules.applied import AppliedRules
from schemas.records import AsOf, Request, Slate, SlateItem

__all__ = ["Asked", "Ids", "Named", "Notes", "slates_of"]


class Named(Protocol):
    """The part of a release that slates show."""

    @property
    def name(self) -> str:
        """Name of the release."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the columns of `Candidates.heads`."""


class Asked(Protocol):
    """The part of `Queries` that slates show."""

    @property
    def requests(self) -> Sequence[Request]:
        """The requests of the batch."""

    @property
    def model(self) -> Named | None:
        """The release that ranked, or None."""

    @property
    def rules(self) -> AppliedRules | None:
        """The rules that were applied, or None."""


class Ids(Protocol):
    """The part of `ItemStore` that slates show."""

    @property
    def ids(self) -> Sequence[str]:
        """Id of each item row."""


@dataclass(slots=True)
class Notes:
    """Timings, failures and drops of a run, which its slates report."""

    timings: dict[str, float] = field(default_factory=dict)
    "Milliseconds by stage."
    degraded: list[str] = field(default_factory=list)
    """What the slates lack: failed stages `source:<name>`, `hydrator:<name>`, `ranker`, `rules`, or what `Effort.degraded`
    names."""
    dropped: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    "Number of dropped candidates of each query `(q,)`, by filter."


def slates_of(
    queries: Asked,
    candidates: Candidates,
    chosen: Ragged,
    items: Ids,
    sources: Sequence[str],
    notes: Notes,
    as_of: Sequence[AsOf | None],
) -> list[Slate]:
    """Build one slate per query. `chosen` holds its candidate indices, best first; `sources` names the source-score columns."""
    slated = candidates.take(chosen.values)
    scores = np.where(np.isfinite(slated.score), slated.score, np.float32(-1e30)).tolist()
    there = ~np.isnan(slated.source_scores)
    names = _names(there, sources)
    ids = [items.ids[row] for row in slated.item_row.tolist()]
    timings = {stage: round(ms, 3) for stage, ms in notes.timings.items()}
    release, degraded = "none" if queries.model is None else queries.model.name, tuple(notes.degraded)
    starts = chosen.starts.tolist()
    slates = []
    for n, request in enumerate(queries.requests):
        places = range(starts[n], starts[n + 1])
        told = _explained(queries, slated, there, sources, notes, n, places) if request.explain else None
        chosen_items = tuple(
            [
                SlateItem(ids[p], scores[p], names[p], None if told is None else told[p - starts[n]], slated.features[p])
                for p in places
            ]
        )
        slates.append(Slate(request.request_id, request.user_id, chosen_items, release, "default", degraded, as_of[n], timings))
    return slates


def _names(there: NDArray[np.bool_], sources: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the names of the sources of each row of `there` `(n, sources)`."""
    codes = (there @ (1 << np.arange(there.shape[1], dtype=np.int64))).tolist()
    known = {code: tuple(name for s, name in enumerate(sources) if code >> s & 1) for code in set(codes)}
    return [known[code] for code in codes]


def _explained(
    queries: Asked,
    slated: Candidates,
    there: NDArray[np.bool_],
    sources: Sequence[str],
    notes: Notes,
    query: int,
    places: range,
) -> list[dict[str, object]]:
    dropped = {name: int(counts[query]) for name, counts in notes.dropped.items()}
    explained = []
    for place in places:
        scores = {sources[s]: round(float(slated.source_scores[place, s]), 6) for s in np.flatnonzero(there[place]).tolist()}
        explanation: dict[str, object] = {"sources": scores, "light": round(float(slated.light[place]), 6), "dropped": dropped}
        if queries.model is not None and slated.heads.size:
            heads = slated.heads[place].tolist()
            explanation["heads"] = {name: round(p, 6) for name, p in zip(queries.model.heads, heads, strict=True)}
        if queries.rules is not None and (moved := queries.rules.moved(query, int(slated.item_row[place]), place)):
            explanation["rules"] = moved
        explained.append(explanation)
    return explained
