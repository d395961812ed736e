"""Refit: a release that passed the gate is trained again on all events, those included that the gate held out.

Retrieval (towers, item-to-item weights, transitions) is trained from the start on all events with the settings of the release.
The ranker, its calibration and the weights of content stay the judged ones: they were learned from retrieval that had not seen
their labels, and that holds for any retrieval trained in the same way (decision 0004).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from schemas.records import Interaction, Item
from training.data.table import of_known_items
from training.loop.group import alone
from training.recipe import LearnSettings
from training.release.learned import Learned
from training.release.renewed import TowerTraining, renewed, table_as
from training.retrieval.fit_towers import with_passes
from training.update import Report

__all__ = ["refit"]

PART = "refit the towers"


def refit(
    judged: Learned,
    items: Sequence[Item],
    events: Sequence[Interaction],
    cache: Path,
    settings: LearnSettings,
    report: Report | None = None,
) -> Learned:
    """Train the retrieval of a full training's release on `events`, which are all there are, in event-time order.

    Runs in this process alone, also where the training ran in several. Deterministic for one seed.
    """
    since, events = time.perf_counter(), of_known_items(events, items)
    release = judged.release()
    table = table_as(release, items, events)
    towers = TowerTraining(
        table,
        with_passes(table, settings.towers, settings.least_steps),
        settings.towers,
        progress=None if report is None else lambda done, of: report(PART, done, of),
    )
    if report is not None:
        report(PART, 0, 1)
    until = events[-1].event_time
    name = time.strftime("%Y%m%d", time.gmtime(until / 1000))
    manifest = replace(judged.manifest, name=name, trained_until_ms=until, trained_events=len(events))
    with alone():
        made = renewed(release, manifest, items, table, towers, settings, cache, judged.measured)
    made.seconds = {**judged.seconds, "refit": round(time.perf_counter() - since, 1)}
    made.checkpoints, made.images = judged.checkpoints, judged.images
    return made
