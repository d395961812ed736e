"""A full training: encode, train retrieval, replay, train the ranker, train retrieval again, export."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.features.compute import FEATURES, SPEC
from models.pipeline.scoring import DEFAULT_WEIGHTS
from models.release.nearest import STANDARD, VectorIndex
from models.release.release import FORMAT, WITH_TRANSITIONS, Head, Manifest, Release
from models.release.sequences import Vocabulary
from models.release.serving import ServingModel
from models.rules import PositiveRule
from schemas.records import Interaction, Item
from training.data.amounts import demand_enough
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.slates.examination import FIXED, Examination
from training.data.slates.logged import LoggedSlate, slates_of
from training.data.slates.shown import all_slates, shown_slates
from training.data.table import ATTRIBUTION_MS, EventTable, Heads, heads_of, of_known_items, vocabulary_of, windows_of
from training.encoders.web_images import OFF
from training.loop.checkpoints import Checkpoints
from training.loop.group import Group, NotFirst
from training.ranking.base import Ranker
from training.ranking.calibrate import calibration_error, reliability
from training.ranking.choice import trained_ranker
from training.ranking.examples import Replayed
from training.ranking.fit import with_passes as with_ranker_passes
from training.ranking.kinds import make_ranker
from training.ranking.light import fit_light, gain_of
from training.ranking.position_bias import choices_in, measured
from training.recipe import LearnSettings
from training.release.learned import Learned
from training.release.parity import Modules
from training.release.parts import (
    ITEM_TOWER,
    RANKER,
    USER_TOWER,
    arrays_of,
    exported,
    item_examples,
    ranker_examples,
    user_examples,
)
from training.replay.replay import replay
from training.replay.world import SimulatedWorker
from training.retrieval.content import EncodedContent, encode
from training.retrieval.ease import ease
from training.retrieval.fit_towers import Watch, train_towers, with_passes
from training.retrieval.negatives import NEVER, first_interaction_ms
from training.retrieval.next_item import Validation
from training.retrieval.simulated_cold import Retrieval, simulate_cold
from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors
from training.retrieval.transitions import chosen_decay, lags_of, transitions
from training.retrieval.weights import weights_of

__all__ = ["learn"]

EXAMINED = 50_000
"Number of newest slates by which position bias is measured."
STANDARD_SETTINGS = LearnSettings()
GAIN = 2.0
"Standard errors by which transitions must lower the light score's loss to be kept."
Report = Callable[[str, int, int], None]


class _Clock:
    def __init__(self, report: Report | None) -> None:
        self.seconds: dict[str, float] = {}
        self._report = report
        self._part, self._since = "", time.perf_counter()

    def part(self, name: str) -> Callable[[int, int], None]:
        """Begin a part and return its progress function."""
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


def learn(
    corpus: Corpus,
    cache: Path,
    settings: LearnSettings = STANDARD_SETTINGS,
    report: Report | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> Learned:
    """Train a release on `corpus`: retrieval on its events, the ranker also on logged slates and impressions.

    Retrieval is trained twice. The first training uses the older events, so that the ranker learns from candidates and
    features of models that had not seen its labels. The second uses all events and produces the release. `watch` is called
    after each epoch of the first towers with the epoch number and their NDCG@10 on the newer events; an exception that it
    raises ends the training.

    Under `torchrun`, every process calls this with the same arguments: all train the towers, the first does the rest.

    Raises:
        BadDataset: too few events or items to learn from.
        NotFirst: this process is not the first of its group, and its part is done.
    """
    group, clock = Group.current(), _Clock(report)
    history = _History.of(corpus, settings)
    table = history.table()
    with group.first_then_others():
        # only the first process fetches images; the others skip those that it failed to fetch, so that all train on the same
        hosts = settings.image_hosts if group.first else OFF
        encoded = encode(corpus.items, settings.text_model, hosts, cache, clock.part)
    base = history.table(history.start)
    clock.part("weigh content")
    content_queries = encoded.weigh(base, settings.seed)
    maker = _Maker(history, encoded, settings, clock)
    maker.measured["content_queries"] = content_queries
    if not group.first:
        for part in (base, table):
            maker.towers(part, "", None)
        raise NotFirst
    maker.choose_lags(base, table)
    first = maker.retrieval(base, "older part", _watching(watch, table, encoded.content, history.start, settings.seed))
    first = simulate_cold(first, encoded.content, settings.unlearned_share, settings.seed)
    clock.part("read logged slates")
    logged, known = _logged(corpus, history, settings)
    clock.part("measure position bias")
    examination = _examination(corpus, history, known)
    slates = logged + _shown(corpus, history, settings, examination, known)
    replayed = _replayed(history, table, maker.unranked(first), settings, clock, slates)
    replayed = maker.with_transitions_if_they_help(replayed)
    progress = clock.part("train the ranker")
    how = with_ranker_passes(len(replayed.examples), settings.ranker, settings.least_steps)
    chosen = trained_ranker(replayed, history.replayed_ms, how, progress, examination)
    ranker, maker.measured["logged_slates"] = chosen.ranker, chosen.slates
    if corpus.shown is not None and len(corpus.shown):
        maker.measured["position_bias"] = chosen.examination.to_json()
    light = fit_light(replayed.light_scores, replayed.sources, dict(DEFAULT_WEIGHTS))
    for unfitted in ("history",) if maker.lags is not None else ("history", "transitions"):
        light.pop(unfitted, None)
    second = maker.retrieval(table, "all")
    clock.part("export")
    arrays, graphs, parity = maker.parts(second, ranker)
    bins = reliability(ranker, chosen.examples, cut=chosen.cut, lists=chosen.lists)
    maker.measured["reliability"] = dict(zip(dict(history.heads), bins, strict=True))
    maker.measured["calibration"] = {
        name: round(calibration_error(one), 6) for name, one in maker.measured["reliability"].items()
    }
    clock.end()
    return Learned(
        maker.manifest(history.events, light),
        arrays,
        graphs,
        [item.item_id for item in corpus.items],
        clock.seconds,
        parity,
        maker.measured,
        maker.checkpoints,
        Modules(second.user, second.item, ranker),
        weights_of(second.user, second.item, settings.towers),
        dict(encoded.images),
        chosen.examination if corpus.shown is not None and len(corpus.shown) else None,
    )


@dataclass(frozen=True, slots=True)
class _History:
    """The events to learn from, and how they are encoded."""

    items: Sequence[Item]
    events: Sequence[Interaction]
    "Events on items of the catalogue, in event-time order."
    positive: str
    vocabulary: Vocabulary
    heads: Heads
    windows: Mapping[str, int]
    "Attribution window in ms by head; a head without an entry has a day."
    start: int
    "Index of the first event of the newer part, on which the ranker learns."

    @classmethod
    def of(cls, corpus: Corpus, settings: LearnSettings) -> _History:
        """Encode the events of `corpus`.

        Raises:
            BadDataset: there is too little to learn from.
        """
        vocabulary = vocabulary_of(corpus.events, corpus.positive)
        heads = heads_of(corpus.events, vocabulary, corpus.positive, settings.heads)
        windows = windows_of(settings.windows_s, vocabulary)
        events = of_known_items(corpus.events, corpus.items)
        demand_enough(events, corpus.positive)
        start = int(len(events) * (1 - settings.replayed_share))
        return cls(corpus.items, events, corpus.positive, vocabulary, heads, windows, start)

    def table(self, until: int | None = None) -> EventTable:
        """Table of all events, or of the first `until`. Labels use only the events in the table."""
        events = self.events if until is None else self.events[:until]
        return EventTable.of(events, self.items, self.vocabulary, self.heads, self.windows)

    @property
    def replayed_ms(self) -> int:
        """Time span of the newer part, ms."""
        return int(self.events[-1].event_time - self.events[self.start].event_time)


def _examination(corpus: Corpus, history: _History, known: Collection[tuple[str, str]]) -> Examination:
    """How likely each position of a slate is looked at, by the newest slates from impression events, or the fixed curve.

    The logged slates `known`, by user and request, are left out: their order follows what the user likes.
    """
    if corpus.shown is None or not isinstance(history.events, EventFrame):
        return FIXED
    rule = PositiveRule(history.positive)
    slates = all_slates(corpus.shown, history.events, rule, history.windows, EXAMINED, known)
    return measured(choices_in(slates)) or FIXED


def _replayed(
    history: _History,
    table: EventTable,
    model: ServingModel,
    settings: LearnSettings,
    clock: _Clock,
    slates: Sequence[LoggedSlate],
) -> Replayed:
    """Gather ranking examples from the newer part, with candidates retrieved by `model`."""
    # slates from impression events have a limit of their own
    progress, queries = clock.part("replay"), settings.queries - sum(slate.features is not None for slate in slates)
    world = SimulatedWorker(history.items)
    return replay(world, model, history.events, table, history.start, queries, settings.seed, progress, slates)


def _logged(corpus: Corpus, history: _History, settings: LearnSettings) -> tuple[list[LoggedSlate], set[tuple[str, str]]]:
    """Logged slates of the newer part, up to the limit in the settings, and the user and request of each."""
    events = history.events
    if corpus.logged is None or not isinstance(events, EventFrame):
        return [], set()
    most, after_ms = int(settings.queries * settings.logged_share), events[history.start].event_time
    found = corpus.logged(after_ms, events[-1].event_time, most, history.windows)
    known = set(found.select("user_id", "request_id").iter_rows()) if len(found) else set()
    return slates_of(found, events, history.heads), known


def _shown(
    corpus: Corpus,
    history: _History,
    settings: LearnSettings,
    examination: Examination,
    known: Collection[tuple[str, str]],
) -> list[LoggedSlate]:
    """Slates of the newer part from impression events without the `known` ones, up to the limit in the settings."""
    events = history.events
    if corpus.shown is None or not isinstance(events, EventFrame):
        return []
    rule, after_ms = PositiveRule(history.positive), events[history.start].event_time
    most = settings.shown_slates
    return shown_slates(corpus.shown, events, history.heads, rule, history.windows, after_ms, most, known, examination)


def _watching(
    watch: Callable[[int, float], None] | None, table: EventTable, content: Content, start: int, seed: int
) -> Watch | None:
    """Make a callback that passes the towers' NDCG@10 on the events from index `start` on to `watch`."""
    if watch is None:
        return None
    validation = Validation(table, content, start, seed)
    return lambda epoch, user, item: watch(epoch, validation(user, item))


@dataclass(slots=True)
class _Maker:
    """Makes the parts of a release from one history and one set of content vectors."""

    history: _History
    encoded: EncodedContent
    settings: LearnSettings
    clock: _Clock
    measured: dict[str, Any] = field(default_factory=dict)
    lags: NDArray[np.float32] | None = None
    "Weights of a session's newest events in transitions; None for a release without transitions."

    def choose_lags(self, older: EventTable, table: EventTable) -> None:
        """Choose the weights by which transitions of the older part predict the newer one best, if there are transitions."""
        settings = self.settings
        if not settings.followers:
            return
        self.clock.part("transitions")
        found = transitions(older, len(self.history.items), settings.followers, lags_of(1.0))
        if (found.index >= 0).any():
            self.lags = lags_of(chosen_decay(found, table, self.history.start, settings.seed))

    def with_transitions_if_they_help(self, replayed: Replayed) -> Replayed:
        """Drop the transitions if they lower the light score's loss by less than GAIN standard errors.

        The release is then as if none had been learned, and costs no more to serve.
        """
        if self.lags is None:
            return replayed
        gain, error = gain_of(replayed.sources.index("transitions"), replayed.light_scores)
        kept = gain > GAIN * error
        self.measured["transitions"] = {"kept": kept, "gain": round(gain, 4), "decay": round(float(self.lags[1]), 2)}
        if not np.isfinite(error):
            self.measured["transitions"]["gain"] = None
        if kept:
            return replayed
        self.lags = None
        return replayed.without_transitions()

    @property
    def checkpoints(self) -> Checkpoints | None:
        return Checkpoints(Path(self.settings.checkpoints)) if self.settings.checkpoints else None

    def towers(self, table: EventTable, what: str, watch: Watch | None) -> tuple[UserTower, ItemTower]:
        progress = self.clock.part(f"train the towers, {what}")
        settings = with_passes(table, self.settings.towers, self.settings.least_steps)
        return train_towers(table, self.encoded.content, settings, progress, watch, self.checkpoints)

    def retrieval(self, table: EventTable, what: str, watch: Watch | None = None) -> Retrieval:
        self.clock.part(f"item-to-item weights, {what}")
        n, settings = len(self.history.items), self.settings
        index, weight = ease(table.user[table.liked], table.item[table.liked], n, settings.neighbours, settings.ease_l2)
        user, item = self.towers(table, what, watch)
        warm = first_interaction_ms(table, n) != NEVER
        follow = None if self.lags is None else transitions(table, n, settings.followers, self.lags)
        return Retrieval(user, item, item_vectors(item, self.encoded.content, ~warm), warm, index, weight, follow)

    def manifest(self, events: Sequence[Interaction], light: Mapping[str, float]) -> Manifest:
        history, until = self.history, events[-1].event_time
        return Manifest(
            name=time.strftime("%Y%m%d", time.gmtime(until / 1000)),
            feature_spec=SPEC,
            heads=tuple(Head(name, weight, history.windows.get(name, ATTRIBUTION_MS)) for name, weight in history.heads),
            positive=history.positive,
            actions=history.vocabulary.actions,
            value_mean=history.vocabulary.value_mean,
            value_deviation=history.vocabulary.value_deviation,
            light=light,
            trained_until_ms=until,
            trained_events=len(events),
            encoders=self.encoded.encoders,
            content=self.encoded.weights,
            format=FORMAT if self.lags is None else WITH_TRANSITIONS,
        )

    def unranked(self, made: Retrieval) -> ServingModel:
        """Make a serving model from this retrieval and an untrained ranker."""
        arrays, graphs, _ = self.parts(made, None)
        manifest = self.manifest(self.history.events[: self.history.start], dict(DEFAULT_WEIGHTS))
        ids = [item.item_id for item in self.history.items]
        return ServingModel(Release(manifest, arrays, graphs, ids), threads=torch.get_num_threads())

    def parts(self, made: Retrieval, ranker: Ranker | None) -> tuple[dict[str, NDArray[Any]], dict[str, bytes], float]:
        """Arrays, graphs, and the largest difference between torch and ONNX. Without a ranker, an untrained one is used."""
        final, content, rng = ranker is not None, self.encoded.content, np.random.default_rng(0)
        if ranker is None:
            torch.manual_seed(0)
            ranker = make_ranker(len(FEATURES), len(self.history.heads), self.settings.ranker).eval()
        items, users = item_examples(content, rng), user_examples(made.vectors, rng)
        modules = (
            (USER_TOWER, made.user, users),
            (ITEM_TOWER, made.item, items),
            (RANKER, ranker, ranker_examples(ranker, rng)),
        )
        export = exported(modules, half=final and self.settings.half)
        if export.half is not None:
            self.measured["half"] = export.half
        if final and len(self.history.items) >= STANDARD.exact_below:
            with torch.inference_mode():
                asked = made.user(*(torch.from_numpy(part) for part in users.values())).numpy()
            index = VectorIndex(made.vectors, asked)
            self.measured["index"] = {"recall": round(index.recall, 4), "probes": index.probes, "bytes": index.nbytes}
        return arrays_of(made, content, self.encoded.projections), export.graphs, export.parity
