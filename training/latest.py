"""Judging a trained release against the champion of the moment, when another one was promoted during the training.

Where enough of the gate's queries are newer than the new champion's training, it is measured on those. Else the source is read
again, and both releases are measured on the events that neither learned from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.release.release import Release
from models.release.serving import ServingModel
from models.rules import PositiveRule
from schemas.errors import BadDataset, ReleaseRejected
from training.data.corpus import Corpus
from training.evaluation.bounds import Bounds
from training.evaluation.evaluate import EvaluationPlan, Figures, asked_of
from training.evaluation.holdout import newer_held_out
from training.measure import Encode, measure
from training.release.gate import Verdict, judge
from training.release.learned import Learned
from training.release.parity import Parity

__all__ = ["Latest", "Rejudged", "figures_of"]

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Rejudged:
    """The verdict against the champion of the moment."""

    serving: Figures
    "The champion's figures on the corpus; empty where newer events were read to judge by."
    refused: str
    "Why the champion could not be measured; empty where it was."
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Latest:
    """The champion of the moment, and how a release is judged against it."""

    now: Callable[[str], str] | None
    """Called with the champion's name so far, returns its name of now, `none` without one, once its folder is in `releases`;
    None where it cannot change."""
    again: Callable[[], Corpus] | None
    "Reads the source again, for events that came since."
    releases: Path
    corpus: Corpus
    plan: EvaluationPlan
    "Corpus and plan by which the release was judged."
    protocol: str
    bounds: Bounds
    encode: Encode
    cores: int
    report: Report

    def other_than(self, name: str) -> str | None:
        """Name of the champion, if it is another than `name`; else None."""
        found = name if self.now is None else self.now(name)
        return None if found == name else found

    def judge(self, learned: Learned, candidate: Figures, baseline: Figures, parity: Parity | None, name: str) -> Rejudged:
        """Judge `learned` against the release `name`. `candidate`: its figures by the plan; `baseline`: without a release."""
        champion = None if name == "none" else Release.open(self.releases / name)
        until_ms = -1 if champion is None else champion.manifest.trained_until_ms
        rule = PositiveRule(self.corpus.positive)
        queries = asked_of(self.corpus.events, rule, self.plan.share, self.plan.queries, first=True)
        unseen = np.asarray([self.corpus.events[n].event_time > until_ms for n in queries], np.bool_)
        fewest, people = self.bounds.needs(self.protocol)
        users = {one.user_id for one, new in zip(candidate.asked, unseen.tolist(), strict=True) if new}
        if int(unseen.sum()) >= fewest and len(users) >= people:
            serving, refused = self._figures(champion, self.corpus, self.plan, baseline)
            mine, theirs = _only(candidate, unseen), _only(serving, unseen)
            return Rejudged(serving, refused, self._verdict(learned, mine, theirs, parity, self.protocol))
        return self._on_newer_events(learned, parity, name, champion, until_ms)

    def _on_newer_events(
        self, learned: Learned, parity: Parity | None, name: str, champion: Release | None, until_ms: int
    ) -> Rejudged:
        since_ms = max(until_ms, learned.manifest.trained_until_ms)
        corpus = self.corpus if self.again is None else self.again()
        try:
            held = newer_held_out(corpus.events, corpus.positive, self.plan.queries or len(corpus.events), name, since_ms)
        except BadDataset as exc:
            if exc.code != "too_little_to_judge":
                raise
            nothing = self._verdict(learned, Figures(), Figures(), parity, self.protocol)
            reason = f"{name} was promoted during this training, and the events since do not suffice: {exc.message}"
            return Rejudged(Figures(), "", replace(nothing, reasons=[reason, *nothing.reasons]))
        corpus = replace(corpus, events=held.events)
        plan = replace(self.plan, share=held.share, parity=0, independent=held.independent)
        model = ServingModel(learned.release(), self.cores)
        candidate = measure(corpus, plan, self.report, "measure on newer events", model, self.encode, learned)[0]
        serving, refused = self._figures(champion, corpus, plan, None)
        return Rejudged(Figures(), refused, self._verdict(learned, candidate, serving, parity, held.protocol))

    def _figures(
        self, champion: Release | None, corpus: Corpus, plan: EvaluationPlan, baseline: Figures | None
    ) -> tuple[Figures, str]:
        def without() -> Figures:
            if baseline is not None:
                return baseline
            return measure(corpus, plan, self.report, "measure without a release", None, self.encode)[0]

        if champion is None:
            return without(), ""
        return figures_of(champion, corpus, plan, self.report, self.encode, without, self.cores)

    def _verdict(self, learned: Learned, mine: Figures, theirs: Figures, parity: Parity | None, protocol: str) -> Verdict:
        return judge(mine, theirs, learned.parity, parity, learned.size_mb, self.bounds, protocol=protocol)


def figures_of(
    champion: Release,
    corpus: Corpus,
    plan: EvaluationPlan,
    report: Report,
    encode: Encode,
    baseline: Callable[[], Figures],
    cores: int,
) -> tuple[Figures, str]:
    """Figures of the champion. For one with other features: those of `baseline`, and the reason."""
    try:
        serving = ServingModel(champion, cores)
        return measure(corpus, plan, report, f"measure {champion.name}", serving, encode)[0], ""
    except ReleaseRejected as exc:
        if exc.code != "feature_spec":  # a release with other features cannot be measured; any other failure is an error
            raise
        return baseline(), exc.message


def _only(figures: Figures, chosen: np.ndarray) -> Figures:
    """Figures of the chosen queries: their ranks and outcomes."""
    kept = np.flatnonzero(chosen).tolist()
    return Figures(ranks=[figures.ranks[n] for n in kept], asked=[figures.asked[n] for n in kept])
