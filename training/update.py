"""Incremental training: starts from the champion's weights, on new events and a sample of old ones.

Towers continue from the champion's weights (`weights.safetensors` in its folder). Item-to-item weights are recomputed, and
transitions if the champion has them. Items added since get ids of their own. Vectors are projected as before. The ranker, its
calibration, the actions and the projections stay the champion's: only a full training learns them, from retrieval that had not
seen its labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.release.release import Manifest, Release
from models.release.sequences import LENGTH
from schemas.errors import BadDataset
from schemas.records import Interaction, Item
from training.data.amounts import FEWEST_NEW
from training.data.corpus import Corpus
from training.data.table import EventTable, of_known_items
from training.recipe import LearnSettings
from training.release.learned import Learned
from training.release.renewed import TowerTraining, renewed, table_as
from training.retrieval.weights import Champion, warm_start

__all__ = ["rows_to_learn", "update", "update_release"]

RATE = 0.2
"Learning rate as a fraction of a full training's: an update adjusts the learned weights and does not replace them."
EPOCHS = 2
COPIED = ("reliability", "calibration", "position_bias", "transitions")
"Measurements of the champion's training that hold for what an update copies: ranker, examination curve, weights of lags."
REPLAYED = 1.0
"Old events of users without new ones, per event of the active users. They keep the update from forgetting old behaviour."
Report = Callable[[str, int, int], None]


def rows_to_learn(table: EventTable, since_ms: int, seed: int) -> NDArray[np.intp]:
    """Rows of `table` for an update, ascending.

    Users with events after `since_ms` contribute all of these and their newest LENGTH older events. A random sample of the
    other users contributes about as many rows, the newest LENGTH of each.
    """
    new = table.time_ms > since_ms
    active = np.zeros(int(table.user.max(initial=-1)) + 1, np.bool_)
    active[table.user[new]] = True
    # index from the end among a user's old events: 0 is the newest
    order = np.lexsort((-np.arange(len(table)), table.user))
    old = order[~new[order]]
    starts = np.flatnonzero(np.diff(table.user[old], prepend=-1))
    rank = np.arange(len(old)) - np.repeat(starts, np.diff(np.append(starts, len(old))))
    recent = old[rank < LENGTH]
    mine = np.concatenate([np.flatnonzero(new), recent[active[table.user[recent]]]])
    others = recent[~active[table.user[recent]]]
    people = np.random.default_rng(seed).permutation(np.unique(table.user[others]))
    counts = np.bincount(table.user[others], minlength=len(active))[people]
    drawn = people[np.cumsum(counts) - counts < REPLAYED * len(mine)]
    sample = others[np.isin(table.user[others], drawn)]
    return np.sort(np.concatenate([mine, sample]))


def update_release(
    corpus: Corpus, share: float, releases: Path, champion: str, settings: LearnSettings, cache: Path, report: Report
) -> Learned:
    """Run `update` on the release named `champion` below `releases`, over the first `share` of the events.

    Raises:
        BadDataset: there is no such release, or `update` raises it.
    """
    if champion == "none":
        raise BadDataset("no_champion", "there is no release to update: train without --incremental, and promote that")
    part = corpus.until(share)
    return update(Champion.open(releases / champion), part.items, part.events, cache, settings, report)


def update(
    champion: Champion,
    items: Sequence[Item],
    events: Sequence[Interaction],
    cache: Path,
    settings: LearnSettings,
    report: Report | None = None,
) -> Learned:
    """Train a release that continues from `champion`. `events` are in event-time order and include those it was trained on.

    Of `settings`, only item-to-item weights, the text model, the seed and half precision apply; the towers' settings are the
    champion's. The towers' graphs are in half precision if `settings` or the champion use it; the ranker's graph is copied
    unchanged. Deterministic for one seed.

    Raises:
        BadDataset: too few new events, or the champion's encoders or features differ from this installation's, or it has
            transitions and `settings` none.
        NotFirst: this process is not the first of its group, and its part is done.
    """
    since, release, before = time.perf_counter(), champion.release, champion.release.manifest
    if release.transitions is not None and not settings.followers:
        message = f"release {before.name} has transitions, which an update cannot remove (followers = 0): train in full"
        raise BadDataset("followers", message)
    events = of_known_items(events, items)
    table = table_as(release, items, events)
    fresh = int((table.time_ms > before.trained_until_ms).sum())
    if fresh < FEWEST_NEW:
        newer = f"{fresh} events are newer than release {release.name}"
        raise BadDataset("too_little", f"{newer}, {FEWEST_NEW} are needed")
    what = f"update the towers, {fresh} new events"
    towers = TowerTraining(
        table.take(rows_to_learn(table, before.trained_until_ms, settings.seed)),
        replace(champion.settings, rate=champion.settings.rate * RATE, epochs=EPOCHS, seed=settings.seed),
        champion.settings,
        warm_start(champion, [item.item_id for item in items]),
        None if report is None else lambda done, of: report(what, done, of),
    )
    kept = {name: before.metrics[name] for name in COPIED if name in before.metrics}
    made = renewed(release, _manifest(release, events), items, table, towers, settings, cache, kept)
    made.seconds["update"] = round(time.perf_counter() - since, 1)
    return made


def _manifest(champion: Release, events: Sequence[Interaction]) -> Manifest:
    until = events[-1].event_time
    return replace(
        champion.manifest,
        name=f"{time.strftime('%Y%m%d', time.gmtime(until / 1000))}-u",
        trained_until_ms=until,
        trained_events=len(events),
        metrics={},
        parent=champion.name,
        files={},
    )
