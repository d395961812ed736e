"""Ranking examples from replayed history: events in time order through the serving code, with the features it computes.

At sampled first interactions the pipeline answers a request before the event is applied. So a feature never includes its own
event or a later one. Only the labels look ahead, up to the attribution window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES
from models.items.store import ItemStore
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.release.serving import ServingModel
from schemas.records import Interaction, Request
from training.data.slates.logged import LoggedSlate
from training.data.table import ATTRIBUTION_MS, EventTable
from training.ranking.examples import Examples, Replayed, ShownLists
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
        self.places: list[int] = []
        self.traffic: list[float] = []
        self.shown_places: list[int] = []
        self.shown_traffic: list[float] = []
        self.shown: list[tuple[int, dict[str, NDArray[np.float32]], NDArray[np.int64], NDArray[np.int32]]] = []
        "Slates from impression events: user, columns, positions and item rows."
        self.users: dict[str, int] = {}
        self.light: list[NDArray[np.float32]] = []

    def slate(
        self, slate: LoggedSlate, known: NDArray[np.intp], rows: NDArray[np.int32], features: NDArray[np.float32]
    ) -> bool:
        """Add a slate: its items at indices `known`, with their item rows and features. Returns whether there are any."""
        if not len(known):
            return False
        with np.errstate(divide="ignore"):  # weight 0 is minus infinity
            labels, correction = slate.labels[known], np.log(slate.weight[known])
        row = {"features": features, "labels": labels, "gains": labels[:, 0], "correction": correction}
        if slate.positions is not None:
            user = self.users.setdefault(slate.user_id, len(self.users))
            self.shown.append((user, row, slate.positions[known], rows))
            self.shown_places.append(slate.place)
            self.shown_traffic.append(slate.traffic)
            return True
        self.query(row, slate.place, slate.traffic, exposed=True)
        return True

    def query(self, row: dict[str, NDArray[np.float32]], place: int, traffic: float, *, exposed: bool) -> None:
        """Add a query at `place` that stands for `traffic` moments."""
        self.rows.append(row)
        self.exposed.append(exposed)
        self.places.append(place)
        self.traffic.append(traffic)

    def examples(self, features: int) -> Examples:
        """Queries from history and logged slates."""
        made = _padded(self.rows, KEPT, features, self.heads, self.exposed)
        return replace(made, places=np.asarray(self.places, np.int64), traffic=np.asarray(self.traffic, np.float32))

    def lists(self, features: int) -> ShownLists:
        """Slates from impression events."""
        width = max((len(positions) for _, _, positions, _ in self.shown), default=0)
        examples = _padded([row for _, row, _, _ in self.shown], width, features, self.heads, [True] * len(self.shown))
        traffic = np.asarray(self.shown_traffic, np.float32)
        examples = replace(examples, places=np.asarray(self.shown_places, np.int64), traffic=traffic)
        positions, items = np.full((len(self.shown), width), -1, np.int64), np.zeros((len(self.shown), width), np.int64)
        for n, (_, _, mine, rows) in enumerate(self.shown):
            positions[n, : len(mine)], items[n, : len(rows)] = mine, rows
        return ShownLists(examples, positions, np.asarray([user for user, *_ in self.shown], np.int64), items)


def _padded(
    rows: Sequence[Mapping[str, NDArray[np.float32]]], width: int, features: int, heads: int, exposed: Sequence[bool]
) -> Examples:
    q = len(rows)
    out = Examples(
        np.zeros((q, width, features), np.float32),
        np.zeros((q, width, heads), np.float32),
        np.zeros((q, width), np.float32),
        np.zeros((q, width), np.bool_),
        np.zeros((q, width), np.float32),
        np.asarray(exposed, np.bool_),
    )
    for n, row in enumerate(rows):
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
    stands_for = {
        n: len(moments) / len(some)
        for moments, limit in ((liked, most - most // 4), (other, most // 4))
        if len(some := rng.permutation(moments)[:limit])
        for n in some.tolist()
    }
    ahead = _Ahead(table)
    gathered = _Gathered(table.labels.shape[1])
    # a slate precedes the event at its place
    todo: list[tuple[int, LoggedSlate | None]] = [(slate.place, slate) for slate in logged if slate.place >= start]
    todo = sorted([*todo, *((n, None) for n in stands_for)], key=lambda query: query[0])
    at = slates = 0
    for done, (n, slate) in enumerate(todo, 1):
        while at < n:
            stop = min(n, at + CHUNK)
            world.publish(events[stop - 1].event_time)
            world.apply(events[at:stop])
            at = stop
        if slate is not None and slate.features is not None:
            slates += _gather_logged(gathered, slate, slate.features, world.items)
            continue
        user, time_ms = (events[n].user_id, events[n].event_time) if slate is None else (slate.user_id, slate.shown_ms)
        world.publish(time_ms)
        world.know(world.record(user))
        tap.clear()
        # the items of a slate are compared with each other, as those of a request that names them
        named = None if slate is None else tuple(slate.item_ids)
        request = Request("replay", user, k=1, candidates=named, repeats=named is not None)
        pipeline.run([request], [world.record(user)], [None])
        if slate is None:
            _gather(gathered, tap, world.items, ahead.of(n, events), rng, n, stands_for[n])
        else:
            _gather_shown(gathered, tap, slate, world.items)
        if progress is not None:
            progress(done, len(todo))
    examples = gathered.examples(len(FEATURES))
    light = np.stack(gathered.light) if gathered.light else np.zeros((0, LIGHT_KEPT, 0), np.float32)
    sources = [source.name for source in pipeline.sources]
    return Replayed(examples, light, sources, slates, gathered.lists(len(FEATURES)))


def _gather_shown(gathered: _Gathered, tap: Tap, slate: LoggedSlate, items: ItemStore) -> None:
    """Add a slate without logged features, with the features of its items at that moment, if the catalogue holds any."""
    rows = items.rows_of(slate.item_ids)
    known = _kept(slate, rows)
    features = tap.features(rows[known], items)
    if features is not None:
        gathered.slate(slate, known, rows[known], features)


def _kept(slate: LoggedSlate, rows: NDArray[np.int32]) -> NDArray[np.intp]:
    """Indices of the known items of a slate, in its order: at most KEPT, those with an action before others."""
    known = np.flatnonzero(rows >= 0)
    first = np.argsort(~slate.labels[known].any(axis=1), kind="stable")[:KEPT]
    return known[np.sort(first)]


def _gather_logged(gathered: _Gathered, slate: LoggedSlate, features: NDArray[np.float32], items: ItemStore) -> bool:
    rows = items.rows_of(slate.item_ids)
    known = _kept(slate, rows)
    return gathered.slate(slate, known, rows[known], features[known])


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
    place: int,
    traffic: float,
) -> None:
    ranked, merged = tap.ranked, tap.merged
    if ranked is None or merged is None or not ranked.features.size:
        return
    size = len(items)
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
    gathered.query(
        {
            "features": ranked.features[kept],
            "labels": label[rows[kept]],
            "gains": gain[rows[kept]],
            "correction": correction,
        },
        place,
        traffic,
        exposed=False,
    )
    target = items.row_of(ahead[0][0])
    there = np.flatnonzero(merged.item_row == target)
    if ahead[0][2] > 0 and len(there):
        scores = np.nan_to_num(merged.source_scores, nan=0.0)
        scores = scores / np.maximum(scores.max(axis=0), 1e-9)
        others = rng.permutation(np.setdiff1d(np.arange(len(merged)), there))[: LIGHT_KEPT - 1]
        sample = np.zeros((LIGHT_KEPT, scores.shape[1]), np.float32)
        sample[: 1 + len(others)] = scores[np.concatenate([there, others])]
        gathered.light.append(sample)
