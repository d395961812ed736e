"""Ranking examples from replayed history: events in time order through the serving code, with the features it computes.

At sampled first interactions the pipeline answers a request before the event is applied. So a feature never includes its own
event or a later one. Only the labels look ahead, up to the attribution window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.release.serving import ServingModel
from schemas.records import Interaction, Request
from training.data.slates.logged import LoggedSlate
from training.data.table import ATTRIBUTION_MS, EventTable
from training.ranking.examples import Examples, Replayed
from training.replay.tap import Tap
from training.replay.world import SimulatedWorker

__all__ = ["replay"]

KEPT = 100
"Candidates kept per query: items with later actions, at most half, and others at random."
LIGHT_KEPT = 200
FADE = 0.85
"Factor on the listwise target for each further first interaction."
CHUNK = 1_000
Progress = Callable[[int, int], None]


class _Gathered:
    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.rows: list[dict[str, NDArray[np.float32]]] = []
        self.exposed: list[bool] = []
        self.told: list[bool] = []
        self.light: list[NDArray[np.float32]] = []

    def slate(self, slate: LoggedSlate, known: NDArray[np.intp], features: NDArray[np.float32]) -> bool:
        """Add a slate: its items at indices `known`, with the features of these. Returns whether there are any."""
        if not len(known):
            return False
        labels, correction = slate.labels[known], np.log(slate.weight[known])
        row = {"features": features, "labels": labels, "gains": labels[:, 0], "correction": correction}
        self.rows.append(row)
        self.exposed.append(True)
        self.told.append(slate.features is None)
        return True

    def examples(self, features: int) -> Examples:
        q = len(self.rows)
        out = Examples(
            np.zeros((q, KEPT, features), np.float32),
            np.zeros((q, KEPT, self.heads), np.float32),
            np.zeros((q, KEPT), np.float32),
            np.zeros((q, KEPT), np.bool_),
            np.zeros((q, KEPT), np.float32),
            np.asarray(self.exposed, np.bool_),
        )
        for n, row in enumerate(self.rows):
            c = len(row["gains"])
            out.valid[n, :c] = True
            for name, array in (
                ("features", out.features),
                ("labels", out.labels),
                ("gains", out.gains),
                ("correction", out.correction),
            ):
                array[n, :c] = row[name]
        return out


def replay(  # noqa: PLR0913 - the history, and the sizes of the sample
    world: SimulatedWorker,
    model: ServingModel,
    events: Sequence[Interaction],
    table: EventTable,
    start: int,
    most: int,
    seed: int,
    progress: Progress | None = None,
    logged: Sequence[LoggedSlate] = (),
) -> Replayed:
    """Apply `events` to `world`. From index `start` on, gather examples at up to `most` first interactions and at `logged`
    slates.

    `table` holds the same events in the same order, with items numbered by their order in the catalogue.
    """
    world.slot.swap(model)
    pipeline = CandidatePipeline(world.items, slot=world.slot, clock=after_all)
    tap = Tap.into(pipeline)
    rng = np.random.default_rng(seed)
    first = start + np.flatnonzero(table.first[start:])
    liked = first[table.labels[first, 0] > 0]
    # three of four queries lead to a like: these teach the order, the others the level
    other = np.setdiff1d(first, liked)
    picked = set(rng.permutation(liked)[: most - most // 4].tolist()) | set(rng.permutation(other)[: most // 4].tolist())
    ahead = _Ahead(table)
    gathered = _Gathered(table.labels.shape[1])
    # a slate precedes the event at its place
    todo: list[tuple[int, LoggedSlate | None]] = [(slate.place, slate) for slate in logged if slate.place >= start]
    todo = sorted([*todo, *((n, None) for n in picked)], key=lambda query: query[0])
    at = slates = 0
    for done, (n, slate) in enumerate(todo, 1):
        while at < n:
            stop = min(n, at + CHUNK)
            world.publish(events[stop - 1].event_time)
            world.apply(events[at:stop])
            at = stop
        if slate is not None and slate.features is not None:
            slates += _gather_logged(gathered, slate, slate.features[:, : model.feature_count], world.items)
            continue
        user, time_ms = (events[n].user_id, events[n].event_time) if slate is None else (slate.user_id, slate.shown_ms)
        world.publish(time_ms)
        world.know(world.record(user))
        tap.clear()
        pipeline.run([Request("replay", user, k=1)], [world.record(user)], [None])
        if slate is None:
            _gather(gathered, tap, world.items, ahead.of(n, events), rng, len(world.items))
        else:
            slates += _gather_shown(gathered, tap, slate, world.items)
        if progress is not None:
            progress(done, len(todo))
    examples = gathered.examples(model.feature_count)
    light = np.stack(gathered.light) if gathered.light else np.zeros((0, LIGHT_KEPT, 0), np.float32)
    told = np.asarray(gathered.told, np.bool_)
    return Replayed(examples, light, [source.name for source in pipeline.sources], slates, told)


def _gather_shown(gathered: _Gathered, tap: Tap, slate: LoggedSlate, items: ItemStore) -> bool:
    """Add a slate without logged features, with the features of its items at that moment. Returns whether there are any."""
    rows = items.rows_of(slate.item_ids)[:KEPT]
    known = np.flatnonzero(rows >= 0)
    features = tap.features(rows[known], items)
    return features is not None and gathered.slate(slate, known, features)


def _gather_logged(gathered: _Gathered, slate: LoggedSlate, features: NDArray[np.float32], items: ItemStore) -> bool:
    known = np.flatnonzero(items.rows_of(slate.item_ids)[:KEPT] >= 0)
    return gathered.slate(slate, known, features[known])


class _Ahead:
    """First interactions of each user, to look up those that follow an event."""

    def __init__(self, table: EventTable) -> None:
        self._table = table
        self._of: dict[int, list[int]] = {}
        for n in np.flatnonzero(table.first).tolist():
            self._of.setdefault(int(table.user[n]), []).append(n)
        self._place = {n: (user, k) for user, rows in self._of.items() for k, n in enumerate(rows)}

    def of(self, n: int, events: Sequence[Interaction]) -> list[tuple[str, NDArray[np.float32], float]]:
        """(item, labels, listwise gain) of the first interaction at event n and of later ones in the attribution window."""
        user, place = self._place[n]
        found, gain = [], 1.0
        for m in self._of[user][place : place + 50]:
            if self._table.time_ms[m] - self._table.time_ms[n] > ATTRIBUTION_MS:
                break
            labels = self._table.labels[m]
            found.append((events[m].item_id, labels, gain * float(labels[0])))
            gain *= FADE
        return found


def _gather(
    gathered: _Gathered,
    tap: Tap,
    items: ItemStore,
    ahead: list[tuple[str, NDArray[np.float32], float]],
    rng: np.random.Generator,
    size: int,
) -> None:
    ranked, merged = tap.ranked, tap.merged
    if ranked is None or merged is None or not ranked.features.size:
        return
    label = np.zeros((size, gathered.heads), np.float32)
    gain = np.zeros(size, np.float32)
    for item_id, labels, value in ahead:
        row = items.row_of(item_id)
        if row >= 0:
            label[row], gain[row] = labels, value
    rows = ranked.item_row
    followed = np.flatnonzero(label[rows].any(axis=1))[: KEPT // 2]
    rest = np.setdiff1d(np.arange(len(rows)), followed)
    drawn = rng.permutation(rest)[: KEPT - len(followed)]
    kept = np.concatenate([followed, drawn])
    correction = np.zeros(len(kept), np.float32)
    correction[len(followed) :] = np.log(max(len(rest), 1) / max(len(drawn), 1))
    gathered.rows.append(
        {
            "features": ranked.features[kept],
            "labels": label[rows[kept]],
            "gains": gain[rows[kept]],
            "correction": correction,
        }
    )
    gathered.exposed.append(False)
    gathered.told.append(False)
    target = items.row_of(ahead[0][0])
    place = np.flatnonzero(merged.item_row == target)
    if ahead[0][2] > 0 and len(place):
        scores = np.nan_to_num(merged.source_scores, nan=0.0)
        scores = scores / np.maximum(scores.max(axis=0), 1e-9)
        others = rng.permutation(np.setdiff1d(np.arange(len(merged)), place))[: LIGHT_KEPT - 1]
        sample = np.zeros((LIGHT_KEPT, scores.shape[1]), np.float32)
        sample[: 1 + len(others)] = scores[np.concatenate([place, others])]
        gathered.light.append(sample)
