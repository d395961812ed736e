"""Train a release and judge it, once a command has checked that there is enough data. Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from models.release.release import Release
from models.release.serving import ServingModel
from training.data.corpus import Corpus
from training.data.slates.examination import Examination
from training.encoders.live import encode_catalogue
from training.evaluation.bounds import Bounds
from training.evaluation.evaluate import EvaluationPlan, Figures
from training.evaluation.holdout import Holdout
from training.evaluation.measurement import Measurement
from training.latest import Latest, figures_of
from training.loop.group import alone
from training.loop.noise import quiet
from training.measure import Encode, examination_of, measure, measurement, threads, train_release
from training.recipe import LearnSettings
from training.refit import refit
from training.release.gate import Verdict, judge
from training.release.learned import Learned
from training.release.parity import Parity
from training.release.refitted import Refitted, refitted
from training.update import update_release

__all__ = ["Evaluated", "Judged", "Task", "evaluate_release", "train_and_judge"]

Report = Callable[[str, int, int], None]
LATEST = 3
"Maximum number of times that a release is judged again because another one was promoted meanwhile."


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
    "The release to measure against; None to compare with the pipeline without a release."
    releases: Path
    "Folder that contains the champion."
    incremental: bool
    everything: Corpus
    "The same corpus with all events in event-time order, for the refit."
    serves: str = ""
    "Name of the champion, if `champion` is the release that it was refitted from; empty for the same."
    now: Callable[[str], str] | None = None
    "See `Latest.now`."
    again: Callable[[], Corpus] | None = None
    "Reads the source again, for events that came since."

    @property
    def against(self) -> str:
        """Name of the release that serves, which the new one replaces if it is better."""
        return self.serves or ("none" if self.champion is None else self.champion.name)

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
    against: str
    "Name of the release that serves, and that the verdict is about; `none` without one."
    refit: Refitted | None = None
    "The release after its refit; None where there was none."
    before: str = ""
    "Name of the champion when the training began, if another one was promoted since; else empty."

    @property
    def published(self) -> Learned:
        """The release to publish: refitted if the gate passed it and the refit is fit to run, else as judged."""
        kept = self.refit is not None and self.verdict.passed and not self.refit.reasons
        return self.refit.learned if self.refit is not None and kept else self.learned

    def measurements(self, task: Task, name: str) -> list[Measurement]:
        """Per-query measurements for the report: without a release, of the champion if there is one, and of the new release."""
        found = [measurement(task.corpus, task.plan, self.baseline, "without a release", "none")]
        if self.serving.asked and self.serving is not self.baseline:
            found.append(measurement(task.corpus, task.plan, self.serving, "what serves", self.against))
        return [*found, measurement(task.corpus, task.plan, self.candidate, "with it", name)]


def train_and_judge(task: Task, bounds: Callable[[Learned], Bounds], report: Report) -> Judged:
    """Train a release, or update the champion, judge it at the gate, and refit it if it passes.

    `bounds` gives the limits of a trained release. Where another release is promoted meanwhile, it is judged against that.

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
    model, limits = ServingModel(learned.release(), cores), bounds(learned)
    candidate, parity = measure(corpus, plan, report, "measure the new release", model, encode, learned)
    baseline = measure(corpus, plan, report, "measure without a release", None, encode)[0]
    serving, refused = baseline, ""
    if task.champion is not None:
        serving, refused = figures_of(task.champion, corpus, plan, report, encode, lambda: baseline, cores)
    protocol = task.holdout.protocol
    verdict = judge(candidate, serving, learned.parity, parity, learned.size_mb, limits, protocol=protocol)
    made = Judged(learned, candidate, baseline, serving, refused, verdict, task.against)
    latest = Latest(task.now, task.again, task.releases, corpus, plan, protocol, limits, encode, cores, report)
    made = _against_latest(made, latest, parity)
    if made.verdict.passed and settings.refit:
        again = _refit(task, learned, report)
        after = measure(corpus, plan, report, "measure the refit", ServingModel(again.release(), cores), encode, again)
        made = _against_latest(replace(made, refit=refitted(learned, again, candidate, *after, limits)), latest, parity)
    return made


def _against_latest(made: Judged, latest: Latest, parity: Parity | None) -> Judged:
    """Judge against the champion of this moment, if that is another than before."""
    for _ in range(LATEST):
        champion = latest.other_than(made.against)
        if champion is None:
            break
        found = latest.judge(made.learned, made.candidate, made.baseline, parity, champion)
        made = replace(
            made,
            serving=found.serving,
            refused=found.refused,
            verdict=found.verdict,
            against=champion,
            before=made.before or made.against,
        )
    return made


def _refit(task: Task, learned: Learned, report: Report) -> Learned:
    """Train `learned` again on all events: the towers from the start, or of an update the same update."""
    whole = task.everything.until(1.0)
    if task.incremental:
        with alone():
            return update_release(task.everything, 1.0, task.releases, task.against, task.settings, task.cache, report)
    return refit(learned, whole.items, whole.events, task.cache, task.settings, report)


def _encode(cache: Path, settings: LearnSettings) -> Encode:
    return partial(encode_catalogue, cache=cache, text_model=settings.text_model, image_hosts=settings.image_hosts)


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
