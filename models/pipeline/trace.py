"""The trace of one request: how many candidates each stage got and passed on, and how the order came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.kernels import order
from models.pipeline.ragged import Ragged
from models.pipeline.stages import Observer

__all__ = ["LISTED", "Trace"]

LISTED = 40
"Number of candidates, by the ranker's order, that a trace lists in addition to the slate."


@dataclass(slots=True)
class _Source:
    """Number of candidates of one source after each stage."""

    name: str
    brought: int = 0
    "Distinct candidates."
    alone: int = 0
    "Candidates that passed the filters and that no other source brought."
    dropped: int = 0
    passed: int = 0
    "Candidates that passed the filters."
    ranked: int = 0
    shown: int = 0

    def to_json(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in ("name", "brought", "alone", "dropped", "passed", "ranked", "shown")}


@dataclass(slots=True)
class Trace(Observer):
    """Observes one run of one request. `items` and `sources` are those of the pipeline."""

    items: ItemStore
    sources: Sequence[str]
    _by_source: dict[str, _Source] = field(init=False)
    _filters: list[dict[str, object]] = field(default_factory=list)
    _passed: int = 0
    _light_ranks: dict[int, int] = field(default_factory=dict)
    "Place by the light score, from 0, by item row."
    _found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._by_source = {name: _Source(name) for name in self.sources}

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:  # noqa: ARG002
        """Count a source's candidates."""
        self._by_source[source].brought = len(np.unique(brought.item_row))

    def on_dropped(self, queries: Queries, stage: str, candidates: Candidates) -> None:  # noqa: ARG002
        """Count what a filter dropped."""
        self._filters.append({"name": stage, "dropped": len(candidates)})
        for name, n in self._counts(candidates).items():
            self._by_source[name].dropped += n

    def on_scored(self, queries: Queries, candidates: Candidates) -> None:
        """Note the order of the light score."""
        self._passed = len(candidates)
        there = ~np.isnan(candidates.source_scores)
        alone = there & (there.sum(axis=1) == 1)[:, None]
        for n, name in enumerate(self.sources):
            self._by_source[name].passed = int(there[:, n].sum())
            self._by_source[name].alone = int(alone[:, n].sum())
        ordered = order.descending(candidates.score, candidates.spans(len(queries)))
        self._light_ranks = {int(row): n for n, row in enumerate(candidates.item_row[ordered])}

    def on_selected(self, queries: Queries, candidates: Candidates, chosen: Ragged) -> None:
        """Note the ranked candidates and their places in the slate."""
        places = {int(index): n for n, index in enumerate(chosen.values)}
        slate = candidates.take(chosen.values)
        for name, n in self._counts(candidates).items():
            self._by_source[name].ranked = n
        for name, n in self._counts(slate).items():
            self._by_source[name].shown = n
        listed = [n for n in range(len(candidates)) if n < LISTED or n in places]
        self._found = {
            "merged": self._passed + sum(int(str(dropped["dropped"])) for dropped in self._filters),
            "passed": self._passed,
            "ranked": len(candidates),
            "shown": len(slate),
            "heads": list(queries.model.heads) if queries.model is not None and candidates.heads.size else [],
            "candidates": [self._candidate(candidates, n, places.get(n)) for n in listed],
        }

    def _counts(self, candidates: Candidates) -> dict[str, int]:
        counts = (~np.isnan(candidates.source_scores)).sum(axis=0)
        return dict(zip(self.sources, counts.tolist(), strict=True))

    def _candidate(self, candidates: Candidates, n: int, place: int | None) -> Mapping[str, object]:
        row = int(candidates.item_row[n])
        scores = candidates.source_scores[n]
        return {
            "item_id": self.items.ids[row],
            "sources": {name: _number(scores[s]) for s, name in enumerate(self.sources) if not np.isnan(scores[s])},
            "light": _number(candidates.light[n]),
            "light_rank": self._light_ranks.get(row),
            "score": _number(candidates.score[n]),
            "rank": n,
            "position": place,
            "heads": [_number(p) for p in candidates.heads[n]],
        }

    def to_json(self) -> dict[str, object]:
        """Return the trace as JSON values, after the run."""
        return {**self._found, "sources": [s.to_json() for s in self._by_source.values()], "filters": list(self._filters)}


def _number(value: np.float32) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None
