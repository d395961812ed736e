"""The command `riffle evaluate`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from models.release.release import Release
from models.rules import PositiveRule
from schemas.click_types import Number, Whole
from schemas.errors import BadDataset, ConfigError
from training.cli.options import LEARNING, WRITTEN, LearningOptions, gathered, vectors_in
from training.cli.progress import note, progress
from training.cli.shared import checked_settings, finish, images_of, write_page
from training.data.amounts import demand_trainable
from training.data.corpus import Corpus, open_corpus
from training.environment import TrainingSettings
from training.evaluation.evaluate import EvaluationPlan, Figures, asked_of
from training.evaluation.existing import find_release, newer_share, seen_events

if TYPE_CHECKING:  # it imports torch
    from training.trainer import Evaluated

__all__ = ["evaluate_command"]

SHARE = 0.8
TRAFFIC = 500
"Number of moments of all traffic, and of shown slates, at which probabilities are compared with outcomes."
WARN_ONE_IN = 10
"A warning is printed if more than one query in this many asks for an item that the user interacted with before."
OF_TRAINING = ("quick", "seed", "ranker", "settings", "checkpoints", "fp16")
"Options that only apply to a training."


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions(LearningOptions):
    """Values of the options of `riffle evaluate`."""

    share: float | None
    no_train: bool
    named: str | None
    releases: Path | None
    home: str
    seen: bool
    before: bool
    queries: int | None
    first: bool
    repeats: bool
    parity: int
    save: Path | None
    page: Path | None


@click.command("evaluate")
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option(
    "--share",
    type=Number(0.0, 1.0),
    help="Share of the events before the first query; default: 0.8, with --release its training events.",
)
@click.option("--no-train", is_flag=True, help="Measure the pipeline without a release.")
@click.option("--release", "named", help="Train nothing: measure the release in this folder, or of this name in --releases.")
@click.option("--releases", type=click.Path(path_type=Path), help="Folder of releases; default: RIFFLE_HOME/releases.")
@click.option("--home", default=lambda: TrainingSettings.from_env().home, hidden=True)
@click.option("--seen", is_flag=True, help="With --release: query also at events that it was trained on.")
@click.option("--before", is_flag=True, help="Measure without a release as well.")
@click.option("--queries", type=Whole(1), help="Maximum number of queries, evenly spread.")
@click.option(
    "--first", is_flag=True, help="Query only at first interactions with liked items: for logged impressions and views."
)
@click.option("--repeats", is_flag=True, help="Slates may hold items that the user has interacted with.")
@click.option(
    "--parity", default=0, type=Whole(0), help="Number of requests on which the exported graphs are compared with torch."
)
@click.option("--save", type=WRITTEN, help="Write the measurements of each query as JSON for `riffle report`.")
@click.option("--report", "page", type=WRITTEN, help="Write an HTML page with plots.")
@gathered(EvaluateOptions, *LEARNING)
def evaluate_command(options: EvaluateOptions) -> None:
    """Train on the first part of a dataset folder, then measure the slates on the rest, query by query in time order.

    With --release nothing is trained: an existing release is measured on the events newer than its training data.

    Reports NDCG@10, HR@10, Recall@50 and MRR of the serving pipeline, over all queries and by segment, with intervals; recall
    of the candidates; the stages where liked items are lost; coverage, novelty and diversity; and calibration, at the queries,
    on all traffic (moments of first interactions, liked or not) and on logged or shown slates, by head and decile.

    If the data holds lists that another system showed, also the rank of the liked item among the shown ones: by a request that
    names them as its candidates, as they were shown, and by two baselines.

    A slate holds items that the user interacted with only with --repeats. If likes follow views of the same item, use --first.

    Example: riffle evaluate my-dataset --report quality.html --json
    """
    console, started = Console(stderr=True), time.monotonic()
    settings = checked_settings(options)
    if options.repeats and options.first:
        raise ConfigError(
            "repeats", "--first queries only items that the user has not seen: leave out --first or --repeats", "repeats"
        )
    if options.named is None:
        _demand_release()
    else:
        _demand_untrained()
    releases = options.releases or Path(options.home) / "releases"
    existing = None if options.named is None else find_release(options.named, releases)
    with progress(console) as report:
        report("read", 0, 1)
        corpus = open_corpus(options.source, options.positive, existing.manifest.positive if existing else None, options.newest)
        note(console, corpus)
        share, about = _share(corpus, existing, options, console)
        _demand_queries(corpus, share, first=options.first)
        if existing is None and not options.no_train:
            part = corpus.until(share)
            demand_trainable(part.items, part.events, corpus.positive, settings, options.settings)
        from training.measure import measurement  # both import torch, which only training and measuring need
        from training.trainer import evaluate_release

        plan = EvaluationPlan(
            share, options.queries, options.parity, options.first, repeats=options.repeats, shown=True, traffic=TRAFFIC
        )
        at, train, before = vectors_in(options), not options.no_train, options.before
        made = evaluate_release(corpus, plan, settings, at, existing, report, train=train, before=before)
    if not options.repeats:
        _warn_of_interacted(made.figures, console)
    facts = _facts(corpus, made, {**about, **({"repeats": True} if options.repeats else {})})
    lists = _lists(made)
    label = "without a release" if made.name == "none" else "with a release" if existing is None else existing.name
    found = [measurement(corpus, plan, made.figures, label, made.name, facts)]
    if made.baseline is not None:
        found.insert(0, measurement(corpus, plan, made.baseline, "without a release", "none"))
    if options.save is not None:
        found[-1].save(options.save)
    if options.page is not None:
        write_page(options.page, found)
    out: dict[str, Any] = {
        "dataset": corpus.name,
        "release": made.name,
        **made.figures.to_json(),
        **({"before": made.baseline.to_json()} if made.baseline else {}),
        **found[-1].summary(),
        **lists,
        **facts,
        "seconds": round(time.monotonic() - started, 1),
    }
    finish(out, console, as_json=options.as_json)


def _share(
    corpus: Corpus, existing: Release | None, options: EvaluateOptions, console: Console
) -> tuple[float, dict[str, Any]]:
    """Share of the events before the first query, and facts about an existing release."""
    share = options.share
    if existing is None:
        return SHARE if share is None else share, {}
    name, until = existing.name, existing.manifest.trained_until_ms
    if share is None:
        share = SHARE if options.seen else newer_share(corpus.events, until, name)
    known = seen_events(corpus.events, share, until, name, allowed=options.seen)
    about: dict[str, Any] = {"trained_until_ms": until, "seen_events": known}
    if known:
        about["warning"] = f"{name} was trained on {known} of the events that it is measured on"
        console.print(f"[yellow]{about['warning']}", highlight=False)
    return share, about


def _warn_of_interacted(figures: Figures, console: Console) -> None:
    met = sum(one.interacted for one in figures.asked)
    if WARN_ONE_IN * met > len(figures.asked):
        said = f"{met:,} of {len(figures.asked):,} queries are for items that the user has seen, which no slate holds: "
        console.print(f"[yellow]{said}use --first, or --repeats if yours may hold them", highlight=False)


def _facts(corpus: Corpus, made: Evaluated, about: dict[str, Any]) -> dict[str, Any]:
    """Facts that are reported beside the figures."""
    learned = made.learned
    return {
        "bad_rows": corpus.bad_rows,
        **about,
        "training_seconds": {} if learned is None else learned.seconds,
        **({"logged_slates": learned.measured.get("logged_slates", 0)} if learned is not None else {}),
        **(images_of(learned.images) if learned is not None else {}),
        **({"parity": made.parity.to_json()} if made.parity else {}),
    }


def _lists(made: Evaluated) -> dict[str, Any]:
    """Figures of re-ranking shown slates; empty without such slates."""
    figures, baseline = made.figures.lists, None if made.baseline is None else made.baseline.lists
    if figures is None:
        return {}
    examination = made.examination
    before = {} if baseline is None else {"before": baseline.to_json(examination)}
    bias = {} if examination is None else {"position_bias": examination.to_json()}
    return {"shown_slates": {**figures.to_json(examination), **before, **bias}}


def _demand_queries(corpus: Corpus, share: float, *, first: bool) -> None:
    """Raise BadDataset where no event qualifies as a query."""
    if not asked_of(corpus.events, PositiveRule(corpus.positive), share, first=first):
        rest = len(corpus.events) - int(len(corpus.events) * share)
        message = f"none of the {rest:,} events after the first {share:.0%} is liked by the rule {corpus.positive!r}"
        raise BadDataset("nothing_to_ask", f"there are no queries: {message}", "positive")


def _named(*names: str) -> Iterator[tuple[str, str]]:
    """Yield those of these parameters that are set on the command line, each with its option."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            yield name, f"--{name.replace('_', '-')}"


def _demand_release() -> None:
    """Raise ConfigError where an option is set that only applies to an existing release."""
    for name, option in _named("seen", "releases"):
        raise ConfigError("release", f"{option} applies to an existing release: name it with --release, or leave it out", name)


def _demand_untrained() -> None:
    """Raise ConfigError where an option is set that only applies to a training or to its result."""
    for name, option in _named("no_train", "parity", *OF_TRAINING):
        raise ConfigError("release", f"--release measures an existing release and trains nothing: leave out {option}", name)
