"""The training command: `python -m training train`, and what `riffle train` runs in a process of its own."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from models.release.release import Release, manifest_sha256
from models.release.source import take
from models.release.tracking import Tracking
from schemas.click_types import Number, Whole
from schemas.errors import BadDataset, ConfigError
from training.cli.forecast import forecast_of
from training.cli.options import LEARNING, WRITTEN, LearningOptions, gathered, vectors_in
from training.cli.progress import note, progress
from training.cli.shared import checked_settings, finish, images_of, write_page
from training.cli.written import written
from training.data.amounts import FEWEST_EVENTS, FEWEST_NEW, demand_enough, demand_trainable
from training.data.corpus import Corpus, open_corpus
from training.data.slates.logged import logged_in
from training.data.table import of_known_items
from training.evaluation.bounds import HALF, STANDARD, Bounds
from training.evaluation.drift import Drift, drift_of
from training.evaluation.holdout import Holdout, held_out, newer_queries, without_revealing_slates
from training.evaluation.updatable import updatable
from training.loop.alone import agree, is_first
from training.recipe import LearnSettings
from training.release.record import forewarn, record

if TYPE_CHECKING:  # they import torch
    from training.release.learned import Learned
    from training.trainer import Judged, Task

__all__ = ["train_command"]

GATE_QUERIES = 1_000
INTERRUPTED = 130
"Exit status after an interrupt."
TRAIN_HELP = f"""Train a release from a dataset folder or an archive, and judge it on events that it was not trained on.

The release is always written. Its manifest holds the gate's verdict, which `riffle release promote` enforces. A release that
the gate passes is refitted: its retrieval is trained again on all events, those included that were held out. Both are written.

\b
The minimum, checked before training:
  for training    {FEWEST_EVENTS} events on items of the catalogue, some of them liked
  for judging     {STANDARD.queries} first interactions with liked items by {STANDARD.people} users in the newest events
                  (--holdout); if these hold fewer, {STANDARD.last} users who liked something after
                  their first event: the last like of each is held out and queried
  for an update   {FEWEST_NEW} events newer than the release that serves (--incremental)

With --incremental, too few new events are not an error: nothing is written, the reason is named, and the exit status is 0.
With MLFLOW_TRACKING_URI the release is recorded there as a run.

Example: python -m training train .riffle/archive --out .riffle/releases --positive "action == 'like'"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions(LearningOptions):
    """Options of `riffle train`."""

    out: Path
    against: str
    holdout: float
    queries: int
    rank_ms: float
    size_mb: float
    page: Path | None
    incremental: bool
    examples: Path | None
    refit: bool | None
    follow: bool
    progress: Path | None


@click.command("train", help=TRAIN_HELP)
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option("--out", default="releases", show_default=True, type=click.Path(path_type=Path), help="Folder of releases.")
@click.option(
    "--against",
    default="none",
    show_default=True,
    help="The release to compare with, usually the one that serves: its name in --out, a folder/, or s3://bucket/prefix/NAME.",
)
@click.option(
    "--holdout",
    default=0.1,
    type=Number(0.01, 0.5),
    show_default=True,
    help=f"Maximum share of newest events that the gate holds out; it holds out only as many as {GATE_QUERIES:,} queries need.",
)
@click.option(
    "--queries",
    default=GATE_QUERIES,
    show_default=True,
    type=Whole(STANDARD.queries),
    help="Maximum number of queries of the gate.",
)
@click.option(
    "--rank-ms",
    default=STANDARD.rank_ms,
    show_default=True,
    type=Number(0.0),
    help="Maximum 99th percentile of the time to rank one request, in milliseconds.",
)
@click.option(
    "--size-mb",
    default=STANDARD.size_mb,
    show_default=True,
    type=Number(0.0),
    help="Maximum size of the release's files in MB.",
)
@click.option("--report", "page", type=WRITTEN, help="Write an HTML page of the gate's measurements.")
@click.option("--incremental", is_flag=True, help="Update the release that serves with new events and a sample of old ones.")
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder written by `riffle examples`: its slates are not joined again. Slates of users erased since are left out.",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Train retrieval again on all events once the gate has passed the release. Default: the setting `refit`, which is on.",
)
@click.option(
    "--follow",
    is_flag=True,
    hidden=True,
    help="--against names the champion, and the context's object finds out which it is when the training ends.",
)
@click.option(
    "--progress",
    type=WRITTEN,
    hidden=True,
    help="Keep this file at the newest progress, for the program that runs the training.",
)
@gathered(TrainOptions, *LEARNING)
def train_command(options: TrainOptions) -> None:
    """Train a release from a dataset folder or an archive, and judge it on events that it was not trained on."""
    if options.incremental:
        _demand_updatable(options)
    settings = checked_settings(options)
    if options.refit is not None:
        settings = replace(settings, refit=options.refit)
    first = is_first()
    console, started = Console(stderr=True, quiet=not first), time.monotonic()
    with (
        progress(console) as shown,
        written(options.progress, shown) as report,
        tempfile.TemporaryDirectory(prefix="riffle-against-") as fetched,
    ):
        report("read", 0, 1)
        champion, releases = _champion(options, Path(fetched))
        serves, since = ("none", None) if champion is None else (champion.name, champion.manifest.trained_until_ms)
        rule = champion.manifest.positive if champion else None
        read = partial(open_corpus, options.source, options.positive, rule, options.newest)
        whole = read()
        note(console, whole)
        corpus = _with_examples(whole, options.examples, settings)
        champion = _to_judge_by(corpus, champion, releases, options)
        held = _held(corpus, champion, options)
        if held is None:
            return
        corpus = without_revealing_slates(corpus, held, (round(seconds * 1_000) for seconds in settings.windows_s.values()))
        if not options.incremental:
            demand_trainable(corpus.items, held.events[: held.trained], corpus.positive, settings, options.settings)
        _announce(console, held, champion, settings, options)
        moved = None if since is None else drift_of(whole, serves, since)
        for line in [] if moved is None else moved.lines():
            console.print(line, highlight=False, soft_wrap=True)
        named = "none" if champion is None else champion.name
        expected = forecast_of(corpus, held, settings, options.queries, named, incremental=options.incremental)
        for line in expected.lines():
            console.print(line, highlight=False, soft_wrap=True)
        report.expect(expected.seconds)
        forewarn(tracking := Tracking.from_env() if first else None)
        from training.trainer import Task, train_and_judge  # it imports torch

        now = click.get_current_context().obj if options.follow else None
        at = vectors_in(options)
        task = Task(
            corpus, held, settings, at, options.queries, champion, releases, options.incremental, whole, serves, now, read
        )
        made = _uninterrupted(lambda: train_and_judge(task, lambda learned: _bounds(learned, options), report), settings)
    facts, kept = _written(task, made, moved, options, started)
    if moved is not None:
        facts["drift"] = moved.to_json()
    facts["expected"] = expected.to_json()
    if tracking is not None:
        facts["mlflow"] = record(tracking, facts, corpus.name, settings, {path.name: path.read_bytes() for path in kept})
    finish(facts, console, as_json=options.as_json)


def _uninterrupted(train: Callable[[], Judged], settings: LearnSettings) -> Judged:
    """Train; if a person interrupts it, say how to go on, and exit with status 130."""
    try:
        return train()
    except KeyboardInterrupt:
        if is_first():
            if settings.checkpoints:
                said = f"the same command goes on from the newest checkpoint of the towers in {settings.checkpoints}"
            else:
                said = "only encoded vectors were kept; with --checkpoints FOLDER a training goes on where it was interrupted"
            click.echo(f"interrupted: {said}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _bounds(learned: Learned, options: TrainOptions) -> Bounds:
    """Bounds of the gate for this release."""
    return replace(HALF if "half" in learned.measured else STANDARD, rank_ms=options.rank_ms, size_mb=options.size_mb)


def _champion(options: TrainOptions, fetched: Path) -> tuple[Release | None, Path]:
    """The champion, None without one, and the folder that contains it."""
    if options.against == "none":
        return None, options.out
    at = take(fetched, options.against) if "/" in options.against else options.out / options.against
    champion = Release.open(at)
    return champion, at.parent


def _to_judge_by(corpus: Corpus, champion: Release | None, releases: Path, options: TrainOptions) -> Release | None:
    """The release that the new one is measured against: the champion, or the one that it was refitted from.

    A refitted champion has learned from all events of its time. As long as too few are newer, settings are compared with the
    release that the gate judged then: it and the new one learn from the events before the held-out ones.
    """
    judged = None if champion is None else champion.manifest.metrics.get("refit", {}).get("of")
    if champion is None or options.incremental or not judged or not (releases / judged).is_dir():
        return champion
    newer = newer_queries(corpus.events, corpus.positive, champion.manifest.trained_until_ms)
    if newer >= 2 * STANDARD.queries:  # half of the newer events may be learned from
        return champion
    return Release.open(releases / judged)


def _held(corpus: Corpus, champion: Release | None, options: TrainOptions) -> Holdout | None:
    """Choose training events and queries; None where an update has too few new events."""
    if options.incremental:
        return _to_update(corpus, champion, options)
    demand_enough(of_known_items(corpus.events, corpus.items), corpus.positive)
    name, until_ms = ("none", -1) if champion is None else (champion.name, champion.manifest.trained_until_ms)
    return held_out(corpus.events, corpus.positive, 1.0 - options.holdout, options.queries, name, until_ms)


def _announce(
    console: Console, held: Holdout, champion: Release | None, settings: LearnSettings, options: TrainOptions
) -> None:
    """Print how this training deviates from the usual: half precision, or the protocol `leave_last_out`."""
    if options.incremental and champion is not None and "half" in champion.manifest.metrics and not settings.half:
        console.print(f"the graphs of {champion.name} are in half precision, so those of the update are too", highlight=False)
    if held.independent:
        said = f"the newest events are too few to judge by: the gate queries the last likes of {held.people} users"
        console.print(f"{said} (leave_last_out)", style="yellow", highlight=False, soft_wrap=True)


def _written(
    task: Task, made: Judged, moved: Drift | None, options: TrainOptions, started: float
) -> tuple[dict[str, Any], list[Path]]:
    """Write the release, its report and its page; returns the reported facts and the paths of the accompanying files."""
    learned, verdict = made.learned, made.verdict
    metrics = {
        "gate": verdict.to_json(),
        "before": made.baseline.to_json(),
        "after": made.candidate.to_json(),
        "seed": options.seed,
        **({} if moved is None else {"drift": moved.to_json(named=False)}),
    }
    kept = {**metrics, "gate": verdict.untimed()}
    folder = learned.write(options.out, kept, made.against)
    if made.refit is not None and (published := made.published) is not learned:
        folder = published.write(options.out, {**kept, "refit": made.refit.untimed(folder.name)}, made.against)
    facts = {
        "release": folder.name,
        "folder": str(folder),
        "manifest_sha256": manifest_sha256(folder),
        **metrics,
        "against": made.against,
        **({"measured_against": task.champion.name} if task.champion and task.champion.name != task.against else {}),
        **({"champion_before": made.before} if made.before else {}),
        **({"refit": made.refit.to_json()} if made.refit is not None else {}),
        **({"against_refused": made.refused} if made.refused else {}),
        "parity": learned.parity,
        **({"half": learned.measured["half"]} if "half" in learned.measured else {}),
        "logged_slates": learned.measured.get("logged_slates", 0),
        "calibration": learned.measured.get("calibration", {}),
        "reliability": learned.measured.get("reliability", {}),
        "events": task.holdout.trained,
        "items": len(task.corpus.items),
        "training_seconds": (made.refit.learned if made.refit is not None else learned).seconds,
        **images_of(learned.images),
        "seconds": round(time.monotonic() - started, 1),
    }
    files = [options.out / f"{folder.name}.report.json", folder / "manifest.json"]
    files[0].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if options.page is not None:
        write_page(options.page, made.measurements(task, folder.name))
        files.append(options.page)
    return facts, files


def _to_update(corpus: Corpus, champion: Release | None, options: TrainOptions) -> Holdout | None:
    """Held-out events that judge an update. Where too few are new, reports it and returns None.

    Raises:
        BadDataset: there is no release to update, or its positive rule differs.
    """
    if champion is None:
        message = "there is no release to update: train without --incremental, and promote that"
        raise BadDataset("no_champion", message)
    if corpus.positive != champion.manifest.positive:
        rules = f"{champion.name} was trained with the rule {champion.manifest.positive!r}, here it is {corpus.positive!r}"
        raise BadDataset("positive_changed", f"{rules}: train in full, without --incremental", "positive")
    until_ms = champion.manifest.trained_until_ms
    found = updatable(corpus, champion.name, until_ms, 1.0 - options.holdout, options.queries)
    agree("new events", found.new)
    if found.held is None and is_first():
        click.echo(f"nothing to learn yet: {found.message}", err=True)
        if options.as_json:
            click.echo(json.dumps({"release": None, **found.to_json(), "against": champion.name}))
    return found.held


def _demand_updatable(options: TrainOptions) -> None:
    if options.newest:
        raise ConfigError(
            "newest", "an update needs all events of its release's training: leave out --newest, or --incremental"
        )
    if options.examples is not None:
        raise ConfigError("examples", "an update keeps its release's ranker: leave out --examples, or --incremental")


def _with_examples(corpus: Corpus, folder: Path | None, settings: LearnSettings) -> Corpus:
    if folder is None:
        return corpus
    if corpus.target is None or corpus.erased is None:
        raise ConfigError("examples", "examples are from an archive's slates: train from that archive, or leave out --examples")
    return replace(corpus, logged=logged_in(folder, corpus.positive, settings.windows_s, corpus.target, corpus.erased))
