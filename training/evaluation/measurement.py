"""Results of an evaluation with a row per query, for comparison by segment and against another one query by query.

Saved as JSON, format 1: columns are lists, users are numbers. Reading a measurement needs neither the release nor the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.state.rows import hash64
from schemas.errors import BadInput
from training.discount import discounts_at
from training.evaluation import ranking_metrics as metrics
from training.evaluation.evaluate import DEEP, Figures, K

__all__ = ["MEASURES", "SEGMENTS", "Catalogue", "Measurement"]

FORMAT = 1
KIND = "riffle.measurement"
Floats = NDArray[np.float64]

MEASURES: Mapping[str, str] = {
    f"ndcg@{K}": "rank of the liked item, discounted",
    f"hr@{K}": f"the liked item is among the first {K}",
    f"recall@{DEEP}": f"… among the first {DEEP}",
    "mrr": "1 / its rank",
    f"candidate_recall@{DEEP}": f"among the first {DEEP} candidates by the light score",
    "candidate_recall": "among all candidates",
    f"window_ndcg@{K}": "all items liked within the attribution window, discounted",
    f"window_precision@{K}": f"share of the first {K} that are liked within it",
    f"window_recall@{DEEP}": f"share of the items liked within it that are among the first {DEEP}",
    "window_map": "mean average precision of these",
    f"novelty@{K}": "bits of self-information per shown item",
    f"diversity@{K}": "mean distance of shown items by words and categories",
}
"Measures per query, with their descriptions."

SEGMENTS: Mapping[str, str] = {
    "all": "all queries",
    "people_new": "users without earlier likes",
    "people_known": "users with earlier likes",
    "items_new": "liked item without interactions before the split (cold)",
    "items_unmet": "liked item without any earlier interaction",
    "items_head": "liked item among the most popular that hold half of the earlier events",
    "items_tail": "liked item with interactions before the split, less popular",
}
"Segments of the queries; the index of each is a bit of the column `segments`."


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items as known at the start of the queries, the same for every measurement."""

    item_ids: Sequence[str]
    events: NDArray[np.int64]
    "Number of events per item before the split."
    vectors: NDArray[np.float32]
    "Hashed words and categories, of length 1 or 0. Diversity uses them for every release."


@dataclass(slots=True)
class Measurement:
    """One evaluation. All columns have one row per query."""

    label: str
    dataset: str
    release: str
    people: NDArray[np.int64]
    items: NDArray[np.int64]
    "Index of the liked item in `item_ids`, -1 where the catalogue lacks it."
    ranks: NDArray[np.int64]
    segments: NDArray[np.int64]
    stages: list[str]
    sources: list[list[str]]
    tops: NDArray[np.int64]
    "Indices of the first K items, -1 beyond the end of the slate: `(q, K)`."
    values: dict[str, Floats]
    "Values per query, by name in MEASURES."
    item_ids: list[str]
    catalogue_size: int
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per head: reliability bins, expected calibration error, AUC, and GAUC by user. `segments` holds the last three by
    segment, AUC and GAUC with intervals over resampled users. Absent in files saved before segments existed.
    `traffic` and `slates`, where they were measured, hold the reliability on all traffic and on logged slates (`Traffic`)."""
    facts: dict[str, Any] = field(default_factory=dict)
    "Further facts, such as training seconds and parity."

    @classmethod
    def of(
        cls, figures: Figures, catalogue: Catalogue, label: str, dataset: str, release: str, facts: Mapping[str, Any] = {}
    ) -> Measurement:
        """Make a measurement from the outcomes of `evaluate`."""
        asked = figures.asked
        number = {item_id: n for n, item_id in enumerate(catalogue.item_ids)}
        people: dict[str, int] = {}
        tops = np.full((len(asked), K), -1, np.int64)
        for n, one in enumerate(asked):
            tops[n, : len(one.top)] = [number.get(item_id, -1) for item_id in one.top]
        items = np.asarray([number.get(one.item_id, -1) for one in asked], np.int64)
        made = cls(
            label=label,
            dataset=dataset,
            release=release,
            people=np.asarray([people.setdefault(one.user_id, len(people)) for one in asked], np.int64),
            items=items,
            ranks=np.asarray(figures.ranks, np.int64),
            segments=_segments(figures, items, catalogue),
            stages=[one.probed.stage for one in asked],
            sources=[sorted(one.probed.sources) for one in asked],
            tops=tops,
            values=_values(figures, tops, catalogue),
            item_ids=list(catalogue.item_ids),
            catalogue_size=len(catalogue.item_ids),
            facts=dict(facts),
        )
        made.calibration = _calibration(figures, made.people, {name: made.within(name) for name in SEGMENTS})
        for name, part in (("traffic", figures.traffic), ("slates", figures.slates)):
            for head, found in part.to_json(figures.heads).items():
                if head in made.calibration:
                    made.calibration[head][name] = found
        return made

    def __len__(self) -> int:
        return len(self.ranks)

    def within(self, segment: str) -> NDArray[np.bool_]:
        """Mask of the queries in a segment."""
        held: NDArray[np.bool_] = (self.segments >> list(SEGMENTS).index(segment)) & 1 > 0
        return held

    def interval(self, measure: str, segment: str = "all") -> metrics.Interval:
        """Mean and 95 % interval, resampled by user; NaN where the segment holds no query."""
        held = self.within(segment)
        return metrics.bootstrap(self.values[measure][held], self.people[held])

    def against(self, other: Measurement, measure: str, segment: str = "all") -> metrics.Interval:
        """Mean difference to another measurement of the same queries, and its paired 95 % interval; NaN without queries.

        Raises:
            BadInput: the two have different queries.
        """
        if self.queries() != other.queries():
            raise BadInput("other_queries", f"{self.label} and {other.label} do not have the same queries")
        held = self.within(segment)
        return metrics.bootstrap((self.values[measure] - other.values[measure])[held], self.people[held])

    def coverage(self) -> float:
        """Share of the catalogue in the first K of at least one slate."""
        return metrics.coverage(self.tops, self.catalogue_size)

    def queries(self) -> str:
        """Fingerprint of the users and items queried, in order."""
        asked = np.stack([self.people, self.items]) if len(self) else np.zeros(0, np.int64)
        return hashlib.sha256(asked.tobytes() + "\n".join(self.item_ids).encode()).hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Means with intervals by segment, null where it holds no query; coverage; calibration."""
        segments: dict[str, dict[str, Any]] = {}
        for name in SEGMENTS:
            figures = {measure: self.interval(measure, name).to_json() for measure in MEASURES}
            segments[name] = {"queries": int(self.within(name).sum()), **figures}
        return {f"coverage@{K}": round(self.coverage(), 4), "segments": segments, "calibration": self.calibration}

    def save(self, path: Path) -> None:
        """Write the measurement as JSON."""
        names = sorted({*self.stages})
        brought = sorted({name for row in self.sources for name in row})
        path.write_text(
            json.dumps(
                {
                    "kind": KIND,
                    "format": FORMAT,
                    "label": self.label,
                    "dataset": self.dataset,
                    "release": self.release,
                    "facts": self.facts,
                    "calibration": self.calibration,
                    "catalogue_size": self.catalogue_size,
                    "item_ids": self.item_ids,
                    "stage_names": names,
                    "source_names": brought,
                    "columns": {
                        "people": self.people.tolist(),
                        "items": self.items.tolist(),
                        "ranks": self.ranks.tolist(),
                        "segments": self.segments.tolist(),
                        "stages": [names.index(stage) for stage in self.stages],
                        "sources": [sum(1 << brought.index(name) for name in row) for row in self.sources],
                        "tops": self.tops.tolist(),
                    },
                    "values": {name: column.tolist() for name, column in self.values.items()},
                },
                ensure_ascii=False,
            )
            + "\n",
            encoding="utf-8",
        )

    @classmethod
    def load(cls, path: Path) -> Measurement:
        """Read a file written by `save`.

        Raises:
            BadInput: the file cannot be read, is no measurement, or has a later format.
        """
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(saved, dict) or saved.get("kind") != KIND:
                raise BadInput("no_measurement", f"{path} is not a measurement that `riffle evaluate --save` wrote")
            if saved["format"] != FORMAT:
                raise BadInput("unknown_format", f"{path} is of format {saved['format']!r}, this version reads {FORMAT}")
            columns, brought = saved["columns"], list(saved["source_names"])
            made = cls(
                label=str(saved["label"]),
                dataset=str(saved["dataset"]),
                release=str(saved["release"]),
                **{name: np.asarray(columns[name], np.int64) for name in ("people", "items", "ranks", "segments")},
                stages=[saved["stage_names"][n] for n in columns["stages"]],
                sources=[[name for bit, name in enumerate(brought) if mask >> bit & 1] for mask in columns["sources"]],
                tops=np.asarray(columns["tops"], np.int64).reshape(-1, K),
                values={name: np.asarray(saved["values"][name], np.float64) for name in MEASURES},
                item_ids=list(saved["item_ids"]),
                catalogue_size=int(saved["catalogue_size"]),
                calibration=dict(saved["calibration"]),
                facts=dict(saved["facts"]),
            )
        except BadInput:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError) as exc:
            raise BadInput("no_measurement", f"{path} cannot be read as a measurement: {exc}") from exc
        held: list[Sized] = [
            made.people,
            made.items,
            made.segments,
            made.stages,
            made.sources,
            made.tops,
            *made.values.values(),
        ]
        if any(len(column) != len(made.ranks) for column in held):
            raise BadInput("no_measurement", f"{path} holds columns of different lengths")
        return made


def _segments(figures: Figures, items: NDArray[np.int64], catalogue: Catalogue) -> NDArray[np.int64]:
    """Segment bits in the order of SEGMENTS. Ties in the number of events are ordered by hash, not by file position."""
    events = catalogue.events
    hashes = np.asarray([hash64(item_id) for item_id in catalogue.item_ids], np.uint64)
    order = np.lexsort((hashes, -events))
    before = np.cumsum(events[order]) - events[order]
    head = np.zeros(len(events), np.bool_)
    head[order] = (before < events.sum() / 2) & (events[order] > 0)
    there = items >= 0
    warm = np.zeros(len(items), np.bool_)
    popular = np.zeros(len(items), np.bool_)
    warm[there], popular[there] = events[items[there]] > 0, head[items[there]]
    nothing = np.asarray([one.without_history for one in figures.asked], np.bool_)
    cold = np.asarray([one.cold for one in figures.asked], np.bool_)
    parts = (np.ones(len(items), np.bool_), nothing, ~nothing, ~warm, cold, popular, warm & ~popular)
    bits = np.zeros(len(items), np.int64)
    for n, part in enumerate(parts):
        bits |= part.astype(np.int64) << n
    return bits


def _values(figures: Figures, tops: NDArray[np.int64], catalogue: Catalogue) -> dict[str, Floats]:
    ranks = np.asarray(figures.ranks, np.int64)
    candidate = np.asarray([one.probed.candidate_rank for one in figures.asked], np.int64)
    width = max((len(one.hits) for one in figures.asked), default=0)
    hits = np.zeros((len(ranks), width), np.bool_)
    for n, one in enumerate(figures.asked):
        hits[n, : len(one.hits)] = one.hits
    relevant = np.asarray([one.relevant for one in figures.asked], np.int64)
    columns: tuple[NDArray[Any], ...] = (
        discounts_at(ranks, K),
        (ranks >= 0) & (ranks < K),
        (ranks >= 0) & (ranks < DEEP),
        metrics.reciprocal_rank(ranks),
        (candidate >= 0) & (candidate < DEEP),
        candidate >= 0,
        metrics.ndcg_at(hits, relevant, K),
        metrics.precision_at(hits, K),
        metrics.recall_at(hits, relevant, DEEP),
        metrics.average_precision(hits, relevant),
        metrics.novelty(tops, metrics.self_information(catalogue.events)),
        metrics.diversity(tops, catalogue.vectors),
    )
    return {name: column.astype(np.float64).round(6) for name, column in zip(MEASURES, columns, strict=True)}


def _calibration(
    figures: Figures, people: NDArray[np.int64], segments: Mapping[str, NDArray[np.bool_]]
) -> dict[str, dict[str, Any]]:
    """Calibration over all ranked candidates. Queries are at liked events, so actions are somewhat more frequent than usual."""
    ranked = [(n, one) for n, one in enumerate(figures.asked) if one.probed.heads.size]
    if not ranked:
        return {}
    said = np.concatenate([one.probed.heads for _, one in ranked])
    came = np.concatenate([one.came for _, one in ranked])
    query = np.repeat([n for n, _ in ranked], [len(one.came) for _, one in ranked])
    person = people[query]
    found: dict[str, dict[str, Any]] = {}
    for head, name in enumerate(figures.heads):
        bins = metrics.reliability(said[:, head], came[:, head])
        found[name] = {
            "ece": round(bins.error, 6),
            "auc": _known(metrics.auc(said[:, head], came[:, head])),
            "gauc": _known(metrics.grouped_auc(said[:, head], came[:, head], person)),
            "bins": [
                [round(s, 6), round(c, 6), int(n)]
                for s, c, n in zip(bins.said.tolist(), bins.came.tolist(), bins.size.tolist(), strict=True)
            ],
            "segments": {
                segment: _of_part(said[rows, head], came[rows, head], person[rows])
                for segment, held in segments.items()
                if (rows := held[query]).any()
            },
        }
    return found


def _of_part(said: NDArray[np.floating], came: NDArray[np.bool_], person: NDArray[np.int64]) -> dict[str, Any]:
    areas = {"auc": metrics.auc_interval(said, came, person), "gauc": metrics.grouped_auc_interval(said, came, person)}
    return {
        "ece": round(metrics.reliability(said, came).error, 6),
        **{name: None if area is None else area.to_json() for name, area in areas.items()},
    }


def _known(value: float) -> float | None:
    return None if value != value else round(value, 5)  # noqa: PLR0124 - NaN differs from itself
