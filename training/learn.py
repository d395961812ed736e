"""Training, whole: encode, retrieve, replay, rank, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from models.features.compute import FEATURES, SPEC
from models.items.store import TEXT_DIMENSIONS, text_vector
from models.items.vectors import unit_rows
from models.pipeline.scoring import DEFAULT_WEIGHTS
from models.release.nearest import STANDARD, VectorIndex
from models.release.release import Head, Manifest, Release
from models.release.sequences import EVENT_WIDTH, LENGTH, Vocabulary
from models.release.serving import ServingModel
from models.rules import PositiveRule
from schemas.records import Interaction, Item
from training.data.amounts import demand_enough
from training.data.events import EventFrame
from training.data.slates.logged import Logged, LoggedSlate, slates_of
from training.data.slates.shown import shown_slates
from training.data.table import ATTRIBUTION_MS, EventTable, Heads, heads_of, of_known_items, vocabulary_of, windows_of
from training.encoders.encoder import Encoder, TextEncoder, encode_items, image_encoder
from training.encoders.projections import fit_projection, projected
from training.encoders.web_images import OFF
from training.loop.checkpoints import Checkpoints
from training.loop.group import Group, NotFirst
from training.ranking.base import Ranker
from training.ranking.calibrate import reliability
from training.ranking.choice import trained_ranker
from training.ranking.fit import with_passes as with_ranker_passes
from training.ranking.kinds import make_ranker
from training.ranking.light import fit_light
from training.recipe import LearnSettings
from training.release.export import to_half, to_onnx
from training.release.learned import Learned
from training.release.parity import Modules
from training.replay.replay import replay
from training.replay.world import SimulatedWorker
from training.retrieval.content_weights import content_weights
from training.retrieval.ease import ease
from training.retrieval.fit_towers import NEVER, Watch, first_meetings, train_towers, with_passes
from training.retrieval.next_item import Validation
from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors
from training.retrieval.unlearn import Retrieval, unlearned
from training.retrieval.weights import weights_of

__all__ = ["learn"]

TEXT_KEPT, IMAGE_KEPT = 128, 64
STANDARD_SETTINGS = LearnSettings()
FLATTENED = {"text": 0.0, "image": 0.5}
"How far each modality's axes are brought to one width: a few axes of an image, as how bright it is, else drown the rest."
LEAST_READ = 0.05
"Weight by which the towers read text and image at least: what history does not tell of yet must not be learned slowly."


Report = Callable[[str, int, int], None]


class _Clock:
    def __init__(self, report: Report | None) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._part, self._since = "", time.perf_counter()

    def part(self, name: str) -> Callable[[int, int], None]:
        """Begin a part; returns its progress function."""
        self.end()
        self._part, self._since = name, time.perf_counter()
        report = self._report
        if report is None:
            return lambda done, of: None  # noqa: ARG005
        report(name, 0, 1)
        return lambda done, of: report(name, done, of)

    def end(self) -> None:
        if self._part:
            self.seconds[self._part] = round(self.seconds.get(self._part, 0.0) + time.perf_counter() - self._since, 1)
        self._part = ""


@dataclass(slots=True)
class _Encoded:
    """Content vectors, and how they came about."""

    content: Content
    projections: dict[str, NDArray[np.float32]]
    encoders: dict[str, str]
    "Per modality that some item has: its encoder."
    images: Mapping[str, int]
    "Of images by URL, how many were fetched, and by reason how many were not; and which images could not be used."
    weights: dict[str, float] = field(default_factory=dict)
    "Of words, text and image, where items are compared by content (`training.retrieval.content_weights`)."

    def weigh(self, table: EventTable, seed: int) -> int:
        """Learn the weights from history; returns from how many meetings. Every process of the group gets the first one's.

        The towers read text and image by the root of their weights, as a comparison does: what says little is then little to
        learn from by heart. The factor is part of the projection, so that a worker does the same.
        """
        content = self.content
        parts = {"words": content.hashed, "text": content.text, "image": content.image}
        self.weights, asked = content_weights(table, parts, seed)
        everybodys = Group.current().gathered(torch.tensor(list(self.weights.values()), dtype=torch.float64))
        self.weights = dict(zip(self.weights, everybodys[0].tolist(), strict=True))
        factors = {name: np.float32(np.sqrt(max(self.weights[name], LEAST_READ))) for name in self.projections}
        self.projections = {name: fitted * factors[name] for name, fitted in self.projections.items()}
        self.content = replace(content, text=content.text * factors["text"], image=content.image * factors["image"])
        return asked


def _encoded(items: Sequence[Item], settings: LearnSettings, cache: Path, clock: _Clock) -> _Encoded:
    """Content vectors. An encoder runs only where its modality exists."""
    parts, projections, names = [], {}, {}
    images = image_encoder(cache, settings.image_hosts)
    encoders: tuple[tuple[str, str, Callable[[], Encoder], int], ...] = (
        ("text", "encode text", lambda: TextEncoder(settings.text_model), TEXT_KEPT),
        ("image", "encode images", lambda: images, IMAGE_KEPT),
    )
    for modality, part, make, kept in encoders:
        progress, encoder = clock.part(part), make()
        vectors, present = encode_items(items, encoder, cache, progress)
        projections[modality] = fit_projection(vectors, present, kept, FLATTENED[modality])
        parts.append((projected(vectors, present, projections[modality]), present))
        if present.any():
            names[modality] = encoder.name
    (text, has_text), (image, has_image) = parts
    hashed = np.stack([text_vector(item) for item in items]) if items else np.zeros((0, TEXT_DIMENSIONS), np.float32)
    there = np.stack([has_text, has_image], axis=1).astype(np.float32)
    return _Encoded(Content(hashed, text, image, there), projections, names, {**images.counters, **images.unused})


def learn(
    items: Sequence[Item],
    events: Sequence[Interaction],
    positive: str,
    cache: Path,
    settings: LearnSettings = STANDARD_SETTINGS,
    report: Report | None = None,
    logged: Logged | None = None,
    watch: Callable[[int, float], None] | None = None,
    shown: EventFrame | None = None,
) -> Learned:
    """Train everything on `events`, in event-time order; the ranker also on `logged` slates and on those that `shown` tells.

    Retrieval is trained twice: on the older part, so that the ranker learns from candidates and features of models that
    had not seen its labels, and then on all of it, for the release. `watch` is called after each epoch of the first towers
    with its number and their NDCG@10 on the newer part; what it raises ends the training.

    Under `torchrun` every process calls it with the same arguments: all train the towers, the first one does the rest.

    Raises:
        BadDataset: too few events or items to learn from.
        NotFirst: this process is not the first of its group, and its part is done.
    """
    group = Group.current()
    clock = _Clock(report)
    vocabulary = vocabulary_of(events, positive)
    heads = heads_of(events, vocabulary, positive, settings.heads)
    windows = windows_of(settings.windows_s, vocabulary)
    events = of_known_items(events, items)
    demand_enough(events, positive)
    table = EventTable.of(events, items, vocabulary, heads, windows)
    if not group.first:  # the first process encodes what is new, the others find it in the cache
        group.wait()
    # what the first could not have, the others do not try: all must learn from the same
    encoded = _encoded(items, settings if group.first else replace(settings, image_hosts=OFF), cache, clock)
    if group.first:
        group.wait()
    start = int(len(events) * (1 - settings.replayed_share))
    base = EventTable.of(events[:start], items, vocabulary, heads, windows)
    clock.part("weigh content")
    content_queries = encoded.weigh(base, settings.seed)
    maker = _Maker(items, vocabulary, heads, windows, encoded.content, settings, clock, positive, encoded)
    maker.measured["content_queries"] = content_queries
    if not group.first:
        for part in (base, table):
            maker.towers(part, "", None)
        raise NotFirst
    validation = Validation(table, encoded.content, start, settings.seed) if watch is not None else None
    first = maker.retrieval(base, "older part", _watching(watch, validation))
    first = unlearned(first, encoded.content, settings.unlearned_share, settings.seed)
    arrays, graphs, _ = maker.parts(first, None)
    manifest = maker.manifest(events[:start], dict(DEFAULT_WEIGHTS))
    ids = [item.item_id for item in items]
    model = ServingModel(Release(manifest, arrays, graphs, ids), threads=torch.get_num_threads())
    clock.part("read logged slates")
    slates: list[LoggedSlate] = []
    if isinstance(events, EventFrame):
        most, after_ms = int(settings.queries * settings.logged_share), events[start].event_time
        asked = pl.DataFrame()
        if logged is not None:
            asked = logged(after_ms, events[-1].event_time, most, windows)
            slates = slates_of(asked, events, heads)
        if shown is not None:
            known = set(asked.select("user_id", "request_id").iter_rows()) if len(asked) else set()
            rule, left = PositiveRule(positive), most - len(slates)
            slates += shown_slates(shown, events, heads, rule, windows, after_ms, left, known)
    # whether those that events told of are of use is not known yet: they take the place of no other query
    progress, replays = clock.part("replay"), settings.queries - sum(slate.features is not None for slate in slates)
    replayed = replay(SimulatedWorker(items), model, events, table, start, replays, settings.seed, progress, slates)
    progress = clock.part("train the ranker")
    span_ms = int(events[-1].event_time - events[start].event_time)
    how = with_ranker_passes(len(replayed.examples), settings.ranker, settings.least_steps)
    ranker, examples, maker.measured["logged_slates"] = trained_ranker(replayed, span_ms, how, progress)
    light = fit_light(replayed.light_scores, replayed.sources, dict(DEFAULT_WEIGHTS))
    second = maker.retrieval(table, "all")
    clock.part("export")
    arrays, graphs, parity = maker.parts(second, ranker)
    maker.measured["reliability"] = dict(zip(dict(heads), reliability(ranker, examples), strict=True))
    clock.end()
    manifest = maker.manifest(events, light)
    modules = Modules(second.user, second.item, ranker)
    weights = weights_of(second.user, second.item, settings.towers)
    return Learned(
        manifest,
        arrays,
        graphs,
        ids,
        clock.seconds,
        parity,
        maker.measured,
        maker.checkpoints,
        modules,
        weights,
        dict(encoded.images),
    )


def _watching(watch: Callable[[int, float], None] | None, validation: Validation | None) -> Watch | None:
    if watch is None or validation is None:
        return None
    return lambda epoch, user, item: watch(epoch, validation(user, item))


@dataclass(slots=True)
class _Maker:
    items: Sequence[Item]
    vocabulary: Vocabulary
    heads: Heads
    windows: Mapping[str, int]
    content: Content
    settings: LearnSettings
    clock: _Clock
    positive: str
    encoded: _Encoded
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Checkpoints | None:
        return Checkpoints(Path(self.settings.checkpoints)) if self.settings.checkpoints else None

    def towers(self, table: EventTable, what: str, watch: Watch | None) -> tuple[UserTower, ItemTower]:
        progress = self.clock.part(f"train the towers, {what}")
        settings = with_passes(table, self.settings.towers, self.settings.least_steps)
        return train_towers(table, self.content, settings, progress, watch, self.checkpoints)

    def retrieval(self, table: EventTable, what: str, watch: Watch | None = None) -> Retrieval:
        self.clock.part(f"item-to-item weights, {what}")
        index, weight = ease(
            table.user[table.liked], table.item[table.liked], len(self.items), self.settings.neighbours, self.settings.ease_l2
        )
        user, item = self.towers(table, what, watch)
        met = first_meetings(table, len(self.items)) != NEVER
        return Retrieval(user, item, item_vectors(item, self.content, ~met), met, index, weight)

    def manifest(self, events: Sequence[Interaction], light: Mapping[str, float]) -> Manifest:
        until = events[-1].event_time
        return Manifest(
            name=time.strftime("%Y%m%d", time.gmtime(until / 1000)),
            feature_spec=SPEC,
            heads=tuple(Head(name, weight, self.windows.get(name, ATTRIBUTION_MS)) for name, weight in self.heads),
            positive=self.positive,
            actions=self.vocabulary.actions,
            value_mean=self.vocabulary.value_mean,
            value_deviation=self.vocabulary.value_deviation,
            light=light,
            trained_until_ms=until,
            trained_events=len(events),
            encoders=self.encoded.encoders,
            content=self.encoded.weights,
        )

    def parts(self, made: Retrieval, ranker: Ranker | None) -> tuple[dict[str, NDArray[Any]], dict[str, bytes], float]:
        """Arrays, graphs, and the largest difference between torch and ONNX. Without a ranker, an untrained one."""
        n, final = 256, ranker is not None
        rng = np.random.default_rng(0)
        picked = rng.integers(0, len(self.items), n)
        if ranker is None:
            torch.manual_seed(0)
            ranker = make_ranker(len(FEATURES), len(self.heads), self.settings.ranker).eval()
        mask = (np.arange(LENGTH) >= LENGTH - rng.integers(0, LENGTH + 1, (n, 1))).astype(np.float32)
        history = made.vectors[rng.integers(0, len(self.items), (n, LENGTH))]
        events = rng.random((n, LENGTH, EVENT_WIDTH), np.float32)
        users, worst = {"items": history, "events": events, "mask": mask}, 0.0
        graphs: dict[str, bytes] = {}
        graphs["user_tower.onnx"], difference = to_onnx(made.user, users, "user_vectors")
        worst = max(worst, difference)
        fields = zip(("content", "text", "image", "present"), self.content.arrays(), strict=True)
        content = {name: array[picked] for name, array in fields}
        graphs["item_tower.onnx"], difference = to_onnx(made.item, content, "item_vectors")
        worst = max(worst, difference)
        spread = rng.normal(0, 1, (n, len(FEATURES))).astype(np.float32)
        ranked = {"features": spread * ranker.scale.detach().numpy() + ranker.mean.detach().numpy()}
        graphs["ranker.onnx"], difference = to_onnx(ranker, ranked, "heads")
        if final and self.settings.half:
            examples = (("user_tower.onnx", users), ("item_tower.onnx", content), ("ranker.onnx", ranked))
            for name, inputs in examples:
                graphs[name], share = to_half(graphs[name], inputs, name)
                self.measured["half"] = max(share, self.measured.get("half", 0.0))
        if final and len(self.items) >= STANDARD.exact_below:
            with torch.inference_mode():
                asked = made.user(*(torch.from_numpy(part) for part in users.values())).numpy()
            index = VectorIndex(made.vectors, asked)
            self.measured["index"] = {"recall": round(index.recall, 4), "probes": index.probes, "bytes": index.nbytes}
        arrays: dict[str, NDArray[Any]] = {
            "item_vectors.npy": made.vectors,
            "text.npy": unit_rows(self.content.text),
            "image.npy": unit_rows(self.content.image),
            "present.npy": self.content.present > 0,
            "met.npy": made.met,
            "ease_index.npy": made.ease_index,
            "ease_weight.npy": made.ease_weight,
            **{f"{modality}_projection.npy": fitted for modality, fitted in self.encoded.projections.items()},
        }
        return arrays, graphs, max(worst, difference)
