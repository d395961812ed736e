"""Train a release and judge it, once a command has checked that there is enough data. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.release.release import Release
from models.release.serving import ServingModel
from schemas.errors import ReleaseRejected
from training.data.corpus import Corpus
from training.data.slates.examination import Examination
from training.encoders.live import encode_catalogue
from training.evaluation.bounds import Bounds
from training.evaluation.evaluate import EvaluationPlan, Figures
from training.evaluation.holdout import Holdout
from training.evaluation.measurement import Measurement
from training.loop.noise import quiet
from training.measure import Encode, examination_of, measure, measurement, threads, train_release
from training.recipe import LearnSettings
from training.release.gate import Verdict, judge
from training.release.learned import Learned
from training.release.parity import Parity
from training.update import update_release

__all__ = ["Evaluated", "Judged", "Task", "evaluate_release", "train_and_judge"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """Input of `riffle train`."""

    corpus: Corpus
    "Corpus with the events of `holdout`."
    holdout: Holdout
    settings: LearnSettings
    cache: Path
    queries: int
    champion: Release | None
    "The serving release; None to compare with the pipeline without a release."
    releases: Path
    "Folder that contains the champion."
    incremental: bool

    @property
    def against(self) -> str:
        """Name of the release that the new one is compared with."""
        return "none" if self.champion is None else self.champion.name

    @property
    def plan(self) -> EvaluationPlan:
        """Evaluation plan for the new release."""
        return EvaluationPlan(self.holdout.share, self.queries, self.queries, first=True, independent=self.holdout.independent)


@dataclass(frozen=True, slots=True)
class Judged:
    """A trained release, not yet written, and the gate's verdict."""

    learned: Learned
    candidate: Figures
    baseline: Figures
    "Figures without a release."
    serving: Figures
    "Figures of the champion; `baseline` without one."
    refused: str
    "Why the champion could not be measured; empty where it was."
    verdict: Verdict

    def measurements(self, task: Task, name: str) -> list[Measurement]:
        """Per-query measurements for the report: without a release, of the champion if there is one, and of the new release."""
        found = [measurement(task.corpus, task.plan, self.baseline, "without a release", "none")]
        if self.serving is not self.baseline:
            found.append(measurement(task.corpus, task.plan, self.serving, "what serves", task.against))
        return [*found, measurement(task.corpus, task.plan, self.candidate, "with it", name)]


def train_and_judge(task: Task, bounds: Callable[[Learned], Bounds], report: Report) -> Judged:
    """Train a release, or update the champion, and judge it at the gate. `bounds` gives the limits of a trained release.

    Raises:
        BadDataset: there is too little to learn from, or the champion cannot be updated.
        NotFirst: this process is not the first of its group, and its part is done.
    """
    quiet()
    corpus, plan, settings, cores = task.corpus, task.plan, task.settings, threads(task.holdout.trained)
    encode = _encode(task.cache, settings)
    if task.incremental:
        learned = update_release(corpus, plan.share, task.releases, task.against, settings, task.cache, report)
    else:
        learned = train_release(corpus, plan.share, settings, task.cache, report)
    model = ServingModel(learned.release(), cores)
    candidate, parity = measure(corpus, plan, report, "measure the new release", model, encode, learned)
    baseline = measure(corpus, plan, report, "measure without a release", None, encode)[0]
    serving, refused = baseline, ""
    if task.champion is not None:
        serving, refused = _of_champion(task.champion, corpus, plan, report, encode, baseline, cores)
    verdict = judge(
        candidate, serving, learned.parity, parity, learned.size_mb, bounds(learned), protocol=task.holdout.protocol
    )
    return Judged(learned, candidate, baseline, serving, refused, verdict)


def _encode(cache: Path, settings: LearnSettings) -> Encode:
    return partial(encode_catalogue, cache=cache, text_model=settings.text_model, image_hosts=settings.image_hosts)


def _of_champion(
    champion: Release, corpus: Corpus, plan: EvaluationPlan, report: Report, encode: Encode, baseline: Figures, cores: int
) -> tuple[Figures, str]:
    """Figures of the champion. For one with other features: `baseline`, and the reason."""
    try:
        serving = ServingModel(champion, cores)
        return measure(corpus, plan, report, f"measure {champion.name}", serving, encode)[0], ""
    except ReleaseRejected as exc:
        if exc.code != "feature_spec":  # a release with other features cannot be measured; any other failure is an error
            raise
        return baseline, exc.message


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Result of `riffle evaluate`."""

    figures: Figures
    baseline: Figures | None
    "Figures without a release, if requested."
    learned: Learned | None
    "The release trained for this evaluation, if any."
    parity: Parity | None
    name: str
    "Name of the release; `none` without one."
    examination: Examination | None = None
    "How likely each position of a shown slate is looked at, where the release knows it."


def evaluate_release(
    corpus: Corpus,
    plan: EvaluationPlan,
    settings: LearnSettings,
    cache: Path,
    existing: Release | None,
    report: Report,
    *,
    train: bool,
    before: bool,
) -> Evaluated:
    """Measure `existing`, or a newly trained release if `train`, or the pipeline without one; with `before`, that too.

    Raises:
        BadDataset: there is too little to learn from.
    """
    quiet()
    encode = _encode(cache, settings)
    learned, model = None, None
    if existing is not None:
        model = ServingModel(existing, threads())
    elif train:
        cores = threads(int(len(corpus.events) * plan.share))
        learned = train_release(corpus, plan.share, settings, cache, report)
        model = ServingModel(learned.release(), cores)
    baseline = measure(corpus, plan, report, "measure without a release", None, encode)[0] if before else None
    figures, parity = measure(corpus, plan, report, "measure", model, encode, learned)
    name = "none" if model is None else model.name
    return Evaluated(figures, baseline, learned, parity, name, examination_of(model, learned))
