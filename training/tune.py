"""Hyperparameter search with Optuna (Akiba et al. 2019): trials train on older events and are judged on the newest slice.

A trial's value is the NDCG@10 of the serving pipeline on that slice. While the first towers of a trial train, the pruner
receives their next-item NDCG after each epoch. It ends a trial that does worse than the median of the earlier ones. The study
is a file of JSON lines. A later call continues it, if data and settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from models.features.compute import SPEC
from models.pipeline.slot import ModelSlot
from models.release.serving import ServingModel
from models.rules import PositiveRule
from schemas.errors import BadDataset, ConfigError, ReleaseRejected
from schemas.records import Interaction, Item
from training.data.corpus import Corpus
from training.data.events import NAMES, EventFrame
from training.encoders.image import ImageEncoder
from training.encoders.live import encode_catalogue
from training.encoders.text import TextEncoder
from training.evaluation.evaluate import EvaluationPlan, evaluate
from training.learn import learn
from training.recipe import KINDS, LearnSettings

__all__ = ["SPACE", "Study", "TuneSettings", "tried", "tune"]

OF = "of"
"Attribute of the study that holds the fingerprint of its data and settings."
PARTS = 12
"Largest number of progress parts in a trial: those of `learn`, and the evaluation."

HASHED_AT_ONCE = 100_000

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True, slots=True)
class TuneSettings:
    """Settings of the search."""

    validation: float = 0.1
    "Newest fraction of the events. Trials are judged on it and never train on it."
    queries: int = 500
    "Maximum number of queries that judge a trial."
    startup: int = 4
    "Number of trials before pruning starts."
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Study:
    """Result of the search."""

    best: LearnSettings
    value: float
    "NDCG@10 of the best trial on the validation slice."
    states: dict[str, int]
    "Number of trials by final state: complete, pruned, failed."


SPACE: Mapping[str, BaseDistribution] = {
    "towers.dimensions": CategoricalDistribution([32, 64, 96, 128]),
    "towers.blocks": IntDistribution(1, 3),
    "towers.rate": FloatDistribution(3e-4, 1e-2, log=True),
    "towers.dropout": FloatDistribution(0.1, 0.5),
    "towers.weight_decay": FloatDistribution(1e-3, 0.3, log=True),
    "towers.hidden_ids": FloatDistribution(0.05, 0.5),
    "towers.resemblance": FloatDistribution(0.0, 16.0),
    "towers.other": FloatDistribution(0.0, 0.5),
    "ranker.kind": CategoricalDistribution(list(KINDS)),
    "ranker.width": CategoricalDistribution([48, 96, 192]),
    "ranker.rate": FloatDistribution(3e-4, 1e-2, log=True),
    "ranker.dropout": FloatDistribution(0.0, 0.3),
    "ranker.pointwise": FloatDistribution(0.05, 1.0, log=True),
    "ease_l2": FloatDistribution(20.0, 3_000.0, log=True),
}
"Search space by setting name."


def tried(parameters: Mapping[str, Any], standard: LearnSettings) -> LearnSettings:
    """`standard` with the values of `parameters`."""
    found = standard
    for name, value in parameters.items():
        part, _, inner = name.rpartition(".")
        found = replace(found, **{part: replace(getattr(found, part), **{inner: value})} if part else {inner: value})
    return found


def _expressible(settings: LearnSettings) -> dict[str, Any]:
    """Values of the settings that lie within the search space, by name."""
    found = {}
    for name, distribution in SPACE.items():
        part, _, inner = name.rpartition(".")
        value = getattr(getattr(settings, part) if part else settings, inner)
        if isinstance(distribution, CategoricalDistribution):
            there = value in distribution.choices
        else:
            there = distribution.low <= value <= distribution.high  # type: ignore[attr-defined]
        if there:
            found[name] = value
    return found


def _fingerprint(about: Mapping[str, Any], corpus: Corpus, standard: LearnSettings, settings: TuneSettings) -> dict[str, Any]:
    """Properties that all trials of a study share: the data, the evaluation, and the settings that are not searched."""
    shown = EventFrame.of([]) if corpus.shown is None else corpus.shown
    fixed = {name: value for name, value in asdict(standard).items() if name not in (*SPACE, "checkpoints", "image_hosts")}
    for name in SPACE:
        part, _, inner = name.rpartition(".")
        if part:
            del fixed[part][inner]
    found = {
        **about,
        "items": len(corpus.items),
        "content of the items": _items_hash(corpus.items),
        "events": len(corpus.events),
        "content of the events": _events_hash(corpus.events),
        "shown": len(shown),
        "content of what was shown": _events_hash(shown),
        "positive": corpus.positive,
        "features": SPEC,
        "encoders": [encoder.name for encoder in (TextEncoder(standard.text_model), ImageEncoder())],
        "searched": sorted(SPACE),
        "validation": settings.validation,
        "queries": settings.queries,
        **{
            f"settings of {name}" if isinstance(value, dict) else name: value
            for name, value in fixed.items()
            if name != "queries"
        },
        "queries of a training": fixed["queries"],
    }
    return dict(json.loads(json.dumps(found)))


def _items_hash(items: Sequence[Item]) -> str:
    found = hashlib.sha256()
    for item in items:
        found.update(repr(replace(item, attributes=dict(sorted(item.attributes.items())))).encode())
    return found.hexdigest()[:16]


def _events_hash(events: Sequence[Interaction]) -> str:
    """Hash over every field. Columns and a list of records give the same hash."""
    found = hashlib.sha256()
    columns = events if isinstance(events, EventFrame) else EventFrame.of(events)
    for part in columns.frame.select(NAMES).iter_slices(HASHED_AT_ONCE):
        found.update(part.write_csv(include_header=False).encode())
    return found.hexdigest()[:16]


def _bind(study: optuna.Study, file: Path, mine: Mapping[str, Any]) -> None:
    """Store the study's fingerprint, or compare it with the stored one. Raises ConfigError if they differ."""
    theirs = study.user_attrs.get(OF)
    if theirs is None:
        study.set_user_attr(OF, dict(mine))
        return
    differing = [name for name in {**theirs, **mine} if theirs.get(name) != mine.get(name)]
    if differing:
        what = "; ".join(f"{name} {theirs.get(name)!r:.80}, here {mine.get(name)!r:.80}" for name in differing[:3])
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        message = f"{file} is a study of other data or settings ({what}{more}): name another file with --study"
        raise ConfigError("other_study", message, "study")


def _opened(file: Path, settings: TuneSettings) -> optuna.Study:
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(file)))
    study = optuna.create_study(
        study_name="riffle",
        storage=storage,
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=settings.startup, n_warmup_steps=2),
    )
    # a continued study must not repeat its first random draws
    study.sampler = optuna.samplers.TPESampler(seed=settings.seed + len(study.trials), multivariate=False)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # trials of a killed call: their parameters are tried again first
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def tune(
    corpus: Corpus,
    cache: Path,
    file: Path,
    trials: int,
    standard: LearnSettings,
    settings: TuneSettings,
    progress: Callable[[str, int, int], None] = lambda part, done, of: None,  # noqa: ARG005
    about: Mapping[str, Any] = MappingProxyType({}),
) -> Study:
    """Run `trials` more trials of the study in `file`. `corpus` is the training part and must not hold test events.

    The first trial uses `standard`, so that the best trial is never worse than it on the validation slice. A study is bound to
    its first items, events, impressions, positive rule, fixed settings and `about`. `progress` is called with the name of a
    trial and its progress.

    Raises:
        BadDataset: too little to learn from.
        ConfigError: the study belongs to other data or settings.
    """
    mine = _fingerprint(about, corpus, standard, settings)
    study = _opened(file, settings)
    _bind(study, file, mine)
    if not study.trials:
        study.enqueue_trial(_expressible(standard))
    for done in range(trials):
        trial = study.ask(dict(SPACE))
        try:
            report = _parts(f"trial {done + 1} of {trials}", progress)
            value = _value(trial, corpus, cache, tried(trial.params, standard), settings, report)
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
        except (ReleaseRejected, ArithmeticError) as exc:  # settings that fail to train end the trial, not the search
            trial.set_user_attr("failure", str(exc))
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)
    ended = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    if "complete" not in ended:
        raise BadDataset("no_trial", "no trial was completed: there is nothing to choose from")
    states = {state: ended.count(state) for state in sorted(set(ended))}
    return Study(tried(study.best_params, standard), study.best_value, states)


def _parts(name: str, progress: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """Combine the progress of a trial's parts into that of the trial."""
    begun: list[str] = []

    def report(part: str, done: int, of: int) -> None:  # noqa: ARG001
        if part not in begun:
            begun.append(part)
        progress(name, min(len(begun) - 1, PARTS), PARTS)

    return report


def _value(
    trial: optuna.Trial,
    corpus: Corpus,
    cache: Path,
    settings: LearnSettings,
    how: TuneSettings,
    report: Callable[[str, int, int], None],
) -> float:
    """NDCG@10 on the validation slice. Raises TrialPruned when the pruner ends the trial."""
    cut = int(len(corpus.events) * (1.0 - how.validation))

    def watch(epoch: int, ndcg: float) -> None:
        trial.report(ndcg, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    learned = learn(corpus.first(cut), cache, settings, report, watch)
    slot = ModelSlot()
    slot.swap(ServingModel(learned.release()))
    known = set(learned.item_ids)
    since = [item for item in corpus.items if item.item_id not in known]
    vectors = encode_catalogue(since, cache, settings.text_model, settings.image_hosts)
    measuring = lambda done, of: report("measure", done, of)
    plan = EvaluationPlan(1.0 - how.validation, how.queries, first=True)
    rule = PositiveRule(corpus.positive)
    figures = evaluate(corpus.items, corpus.events, rule, plan, measuring, slot, vectors=vectors)
    return float(str(figures.to_json()["ndcg@10"]))
