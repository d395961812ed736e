"""Retrieval of a release trained anew on other events, with the release's ranker unchanged: for updates and for refits.

The ranker, its calibration, the actions, the weights of content and the projections stay as they are. Towers are trained,
item-to-item weights are recomputed, and transitions if the release has them. Items that the release lacks get ids of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.features.compute import GENERATIONS
from models.release.release import Manifest, Release
from models.release.sequences import Vocabulary
from schemas.errors import BadDataset
from schemas.records import Interaction, Item
from training.data.slates.examination import Examination
from training.data.table import EventTable
from training.encoders.web_images import OFF
from training.loop.group import Group, NotFirst
from training.recipe import LearnSettings, TowerSettings
from training.release.learned import Learned
from training.release.parity import Frozen, Modules
from training.release.parts import ITEM_TOWER, RANKER, USER_TOWER, arrays_of, exported, item_examples, user_examples
from training.retrieval.content import encode_as
from training.retrieval.ease import ease
from training.retrieval.fit_towers import Progress, train_towers
from training.retrieval.negatives import NEVER, first_interaction_ms
from training.retrieval.simulated_cold import Retrieval
from training.retrieval.towers import item_vectors
from training.retrieval.transitions import transitions
from training.retrieval.weights import Start, weights_of

__all__ = ["TowerTraining", "renewed", "table_as"]


@dataclass(frozen=True, slots=True)
class TowerTraining:
    """How the towers of a renewed release are trained."""

    part: EventTable
    "Events that they learn from."
    settings: TowerSettings
    written: TowerSettings
    "Settings that the release's weights are stored with, from which a later update continues."
    start: Start | None = None
    "Initial weights; None for random ones."
    progress: Progress | None = None


def table_as(release: Release, items: Sequence[Item], events: Sequence[Interaction]) -> EventTable:
    """Encode `events`, all on known `items`, as for the training of `release`.

    Raises:
        BadDataset: the release ranks by features that this Riffle does not compute.
    """
    before = release.manifest
    if before.feature_spec not in GENERATIONS:
        known = ", ".join(GENERATIONS)
        message = f"release {release.name} ranks by features {before.feature_spec}, this has {known}: train in full"
        raise BadDataset("feature_spec", message)
    vocabulary = Vocabulary(before.actions, before.value_mean, before.value_deviation, before.positive)
    heads = tuple((head.action, head.weight) for head in before.heads)
    return EventTable.of(events, items, vocabulary, heads, {head.action: head.window_ms for head in before.heads})


def renewed(
    release: Release,
    manifest: Manifest,
    items: Sequence[Item],
    table: EventTable,
    towers: TowerTraining,
    settings: LearnSettings,
    cache: Path,
    kept: Mapping[str, Any],
) -> Learned:
    """Train retrieval on the events of `table`, and export it with the ranker of `release` as `manifest`.

    Of `settings`, only item-to-item weights, transitions, the text model, image hosts and half precision apply. The towers'
    graphs are in half precision if `settings` or the release use it; the ranker's graph is copied unchanged. `kept`:
    measurements of the release that hold for the new one. Deterministic for one seed.

    Raises:
        BadDataset: the release's encoders differ from this installation's.
        NotFirst: this process is not the first of its group, and its part is done.
    """
    group, follow = Group.current(), release.transitions
    with group.first_then_others():
        # only the first process fetches images; the others skip those that it failed to fetch, so that all train on the same
        hosts = settings.image_hosts if group.first else OFF
        content, images = encode_as(release, items, settings.text_model, hosts, cache)
    first_ms = first_interaction_ms(table, len(items))
    user, item = train_towers(towers.part, content, towers.settings, towers.progress, start=towers.start, first_ms=first_ms)
    if not group.first:
        raise NotFirst
    index, weight = ease(table.user[table.liked], table.item[table.liked], len(items), settings.neighbours, settings.ease_l2)
    if follow is not None:
        follow = transitions(table, len(items), settings.followers, follow.lags)
    made = Retrieval(user, item, item_vectors(item, content, first_ms == NEVER), first_ms != NEVER, index, weight, follow)
    rng = np.random.default_rng(0)
    modules = ((USER_TOWER, user, user_examples(made.vectors, rng)), (ITEM_TOWER, item, item_examples(content, rng)))
    export = exported(modules, half=settings.half or "half" in release.manifest.metrics)
    graphs = {**export.graphs, RANKER: release.graphs[RANKER]}
    return Learned(
        manifest,
        arrays_of(made, content, release.projections),
        graphs,
        [each.item_id for each in items],
        {},
        export.parity,
        {**kept, **({} if export.half is None else {"half": export.half})},
        modules=Modules(user, item, Frozen(graphs[RANKER])),
        weights=weights_of(user, item, towers.written),
        images=dict(images),
        examination=Examination.of_json(kept.get("position_bias")),
    )
