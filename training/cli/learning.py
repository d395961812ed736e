"""Commands of training. The command line finds them by name when they are called.

Whatever can be wrong with options, rules, settings or data is found before torch is imported: see `training.trainer`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from models.release.release import Release, manifest_sha256
from models.release.source import take
from models.release.tracking import Tracking
from models.rules import PositiveRule
from schemas.click_types import Number, Whole
from schemas.errors import BadDataset, ConfigError
from training.cli.options import FP16, MORE, chosen, newest, settings_file
from training.cli.progress import note, progress
from training.data.amounts import FEWEST_EVENTS, FEWEST_NEW, demand_enough, demand_trainable, new_events
from training.data.corpus import Corpus, open_corpus
from training.data.slates.logged import logged_in
from training.data.table import of_known_items
from training.evaluation.bounds import HALF, STANDARD
from training.evaluation.evaluate import asked_of
from training.evaluation.existing import find_release, newer_share, seen_events
from training.evaluation.holdout import Holdout, held_out, without_kept
from training.evaluation.measurement import Measurement
from training.loop.alone import agree, is_first
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.release.record import forewarn, record

__all__ = ["evaluate_command", "report_command", "train_command"]

GATE_QUERIES = 1_000
MET_SAID = 10
"Where more than one query in so many is for what was met before, it is said."
DEFAULT_CACHE = "~/.cache/riffle"
OF_TRAINING = ("quick", "seed", "ranker", "settings", "checkpoints", "fp16")
"Options that say something of a training alone."
WRITTEN = click.Path(dir_okay=False, writable=True, path_type=Path)


TRAIN_HELP = f"""Train a release from a dataset folder or an archive, and judge it on events that it was not trained on.

The release is written whatever the gate decides; its manifest holds the verdict, which `riffle release promote` obeys.

\b
The least that is needed, checked before anything is trained:
  to learn from   {FEWEST_EVENTS} events on items of the catalogue, some of them liked
  to judge by     {STANDARD.queries} items liked by {STANDARD.people} people in the newest events (--holdout); where
                  these hold less, {STANDARD.last} people who liked something after their first
                  event: the last like of each is kept from training and asked for
  to update by    {FEWEST_NEW} events newer than the release that serves (--incremental)

With --incremental, too little that is new is no error: nothing is written, and the exit status is 0.
With MLFLOW_TRACKING_URI the release is recorded there as a run.

Example: python -m training train .riffle/archive --out .riffle/releases --positive "action == 'like'"
"""


def _settings(seed: int, text_model: str, *, quick: bool) -> LearnSettings:
    settings = LearnSettings(
        seed=seed, text_model=text_model, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed)
    )
    if quick:
        settings = replace(settings, towers=replace(settings.towers, epochs=3), queries=1_500)
    return chosen(settings)


def _cache(folder: str) -> Path:
    return Path(folder).expanduser() / "vectors"


LEARNING = (
    *MORE,
    FP16,
    click.option("--positive", help="Rule over event columns that says which events are liked, such as \"action == 'like'\"."),
    click.option(
        "--text-model",
        default="",
        envvar="RIFFLE_TEXT_MODEL",
        help="Folder or hub name of a text encoder; the packaged MiniLM without it.",
    ),
    click.option("--seed", default=0, show_default=True, type=Whole(0)),
    click.option("--quick", is_flag=True, help="Fewer passes: a release of slightly lower quality in a third of the time."),
    click.option("--cache", default=DEFAULT_CACHE, show_default=True, help="Folder of encoded item vectors."),
    click.option("--json", "as_json", is_flag=True, help="End with one line of JSON."),
)


def _learning(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(LEARNING):
        command = option(command)
    return command


@click.command("evaluate")
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option(
    "--share",
    type=Number(0.0, 1.0),
    help="Events before the first query: 0.8 without it; with --release those that it was trained on.",
)
@click.option("--no-train", is_flag=True, help="Measure the pipeline without a release.")
@click.option("--release", "named", help="Train nothing: measure the release in this folder, or of this name in --releases.")
@click.option("--releases", type=click.Path(path_type=Path), help="Folder of releases; RIFFLE_HOME/releases without it.")
@click.option("--home", default=".riffle", envvar="RIFFLE_HOME", hidden=True)
@click.option("--seen", is_flag=True, help="With --release: ask also about events that it was trained on.")
@click.option("--before", is_flag=True, help="Measure without a release as well.")
@click.option("--queries", type=Whole(1), help="Ask only that many of the queries, evenly spread.")
@click.option(
    "--first", is_flag=True, help="Ask where a person first meets what they then like: for logged impressions and views."
)
@click.option("--parity", default=0, type=Whole(0), help="Requests on which the exported graphs are held against torch.")
@click.option("--save", type=WRITTEN, help="Write what was measured, query by query, as JSON for `riffle report`.")
@click.option("--report", "page", type=WRITTEN, help="Write an HTML page with plots.")
@_learning
def evaluate_command(
    source: str,
    share: float | None,
    no_train: bool,
    named: str | None,
    releases: Path | None,
    home: str,
    seen: bool,
    before: bool,
    queries: int | None,
    first: bool,
    parity: int,
    save: Path | None,
    page: Path | None,
    positive: str | None,
    text_model: str,
    seed: int,
    quick: bool,
    cache: str,
    as_json: bool,
) -> None:
    """Train on the first part of a dataset folder, then measure the slates on the rest, query by query in time order.

    With --release nothing is trained: a release that exists is asked about the events that are newer than what it learned from.

    NDCG@10, HR@10, Recall@50 and MRR, through the pipeline that serves, of all queries and of parts of them, with intervals;
    what the candidates hold; where liked items are lost; calibration, coverage, novelty, diversity.

    A slate never holds what a person has met. Where likes follow impressions or views of the same item, ask with --first.

    Example: riffle evaluate my-dataset --report quality.html --json
    """
    console, started = Console(stderr=True), time.monotonic()
    settings = _checked(positive, seed, text_model, quick=quick)
    if named is None:
        _demand_release()
    else:
        _demand_untrained()
    existing = None if named is None else find_release(named, releases or Path(home) / "releases")
    about: dict[str, Any] = {}
    with progress(console) as report:
        report("read", 0, 1)
        corpus = open_corpus(source, positive, existing.manifest.positive if existing else None, newest())
        note(console, corpus)
        if existing is not None:
            until = existing.manifest.trained_until_ms
            share = newer_share(corpus.events, until, existing.name) if share is None and not seen else share
            known = seen_events(corpus.events, 0.8 if share is None else share, until, existing.name, allowed=seen)
            about = {"trained_until_ms": until, "seen_events": known}
            if known:
                about["warning"] = f"{existing.name} was trained on {known} of the events that it was asked about"
                console.print(f"[yellow]{about['warning']}", highlight=False)
        share = 0.8 if share is None else share
        _demand_queries(corpus, share, first=first)
        if existing is None and not no_train:
            train = corpus.events[: int(len(corpus.events) * share)]
            demand_trainable(corpus.items, train, corpus.positive, settings, settings_file())
        from training.measure import Asked, measurement  # they import torch, and so does what trains
        from training.trainer import evaluated

        asked = Asked(share, queries, parity, first)
        cache_at = _cache(cache)
        made = evaluated(corpus, asked, settings, cache_at, existing, report, train=not no_train, before=before)
    figures, learned = made.figures, made.learned
    met = sum(one.met for one in figures.asked)
    if MET_SAID * met > len(figures.asked):
        said = f"{met:,} of {len(figures.asked):,} queries are for items that the person has met before, which no slate holds: "
        console.print(f"[yellow]{said}ask with --first", highlight=False)
    facts: dict[str, Any] = {
        "bad_rows": corpus.bad_rows,
        **about,
        "training_seconds": {} if learned is None else learned.seconds,
        **({"logged_slates": learned.measured.get("logged_slates", 0)} if learned is not None else {}),
        **(_images(learned.images) if learned is not None else {}),
        **({"parity": made.parity.to_json()} if made.parity else {}),
    }
    label = "without a release" if made.name == "none" else "with a release" if existing is None else existing.name
    found = [measurement(corpus, asked, figures, label, made.name, facts)]
    if made.plain is not None:
        found.insert(0, measurement(corpus, asked, made.plain, "without a release", "none"))
    if save is not None:
        found[-1].save(save)
    if page is not None:
        _write_page(page, found)
    out: dict[str, Any] = {
        "dataset": corpus.name,
        "release": made.name,
        **figures.to_json(),
        **({"before": made.plain.to_json()} if made.plain else {}),
        **found[-1].summary(),
        **facts,
        "seconds": round(time.monotonic() - started, 1),
    }
    _finish(out, console, as_json=as_json)


def _checked(positive: str | None, seed: int, text_model: str, *, quick: bool) -> LearnSettings:
    """The settings, once rule and settings file are known to be right."""
    if positive is not None:
        PositiveRule(positive, "--positive")
    return _settings(seed, text_model, quick=quick)


def _demand_queries(corpus: Corpus, share: float, *, first: bool) -> None:
    """Raise BadDataset where there is nothing to ask."""
    if not asked_of(corpus.events, PositiveRule(corpus.positive), share, first=first):
        rest = len(corpus.events) - int(len(corpus.events) * share)
        message = f"none of the {rest:,} events after the first {share:.0%} is liked by the rule {corpus.positive!r}"
        raise BadDataset("nothing_to_ask", f"there is nothing to ask: {message}", "positive")


def _said(*names: str) -> Iterator[tuple[str, str]]:
    """Those of these parameters of the running command that were named, each with its option."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            yield name, f"--{name.replace('_', '-')}"


def _demand_release() -> None:
    """Raise ConfigError where an option was named that says something of a release that exists."""
    for name, option in _said("seen", "releases"):
        raise ConfigError("release", f"{option} is of a release that exists: name it with --release, or leave it out", name)


def _demand_untrained() -> None:
    """Raise ConfigError where an option of training, or of what only a training gives, was named."""
    for name, option in _said("no_train", "parity", *OF_TRAINING):
        raise ConfigError("release", f"--release measures what is there, and trains nothing: leave out {option}", name)


@click.command("report")
@click.argument("saved", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=WRITTEN, help="The HTML page to write.")
def report_command(saved: tuple[Path, ...], out: Path) -> None:
    """Compare saved measurements on one HTML page: the first is what the others are held against.

    They must be of the same queries. The page needs no network and runs no script.

    Example: riffle report before.json after.json --out quality.html
    """
    found = [Measurement.load(path) for path in saved]
    if len({each.label for each in found}) < len(found):  # of the same kind: told apart by their files
        found = [replace(each, label=path.stem) for each, path in zip(found, saved, strict=True)]
    _write_page(out, found)
    click.echo(f"wrote {out}")


@click.command("train", help=TRAIN_HELP)
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option("--out", default="releases", show_default=True, type=click.Path(path_type=Path), help="Folder of releases.")
@click.option(
    "--against",
    default="none",
    show_default=True,
    help="The release to be better than, usually the one that serves: its name in --out, a folder/, or s3://bucket/prefix/NAME.",
)
@click.option(
    "--holdout",
    default=0.1,
    type=Number(0.01, 0.5),
    show_default=True,
    help=f"Newest share of the events that the gate may keep; it keeps only as many as hold {GATE_QUERIES:,} queries.",
)
@click.option(
    "--queries",
    default=GATE_QUERIES,
    show_default=True,
    type=Whole(STANDARD.queries),
    help="Queries that the gate asks, at most.",
)
@click.option(
    "--rank-ms",
    default=STANDARD.rank_ms,
    show_default=True,
    type=Number(0.0),
    help="Milliseconds that ranking one request may take, 99th percentile.",
)
@click.option(
    "--size-mb", default=STANDARD.size_mb, show_default=True, type=Number(0.0), help="MB that the release's files may hold."
)
@click.option("--report", "page", type=WRITTEN, help="Write an HTML page of what the gate measured.")
@click.option("--incremental", is_flag=True, help="Update the release that serves by new events and a sample of old ones.")
@click.option(
    "--examples",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that `riffle examples` wrote: its slates are not joined again. Those of people erased since are left out.",
)
@_learning
def train_command(
    source: str,
    out: Path,
    against: str,
    holdout: float,
    queries: int,
    page: Path | None,
    incremental: bool,
    examples: Path | None,
    rank_ms: float,
    size_mb: float,
    positive: str | None,
    text_model: str,
    seed: int,
    quick: bool,
    cache: str,
    as_json: bool,
) -> None:
    """Train a release from a dataset folder or an archive, and judge it on events that it was not trained on."""
    if incremental:
        _demand_updatable(examples)
    settings = _checked(positive, seed, text_model, quick=quick)
    first = is_first()
    console, started = Console(stderr=True, quiet=not first), time.monotonic()
    with progress(console) as report, tempfile.TemporaryDirectory(prefix="riffle-against-") as fetched:
        report("read", 0, 1)
        champion, releases = None, out
        if against != "none":
            at = take(Path(fetched), against) if "/" in against else out / against
            champion, releases, against = Release.open(at), at.parent, at.name
        corpus = open_corpus(source, positive, champion.manifest.positive if champion else None, newest())
        note(console, corpus)
        corpus = _with_examples(corpus, examples, settings)
        demand_enough(of_known_items(corpus.events, corpus.items), corpus.positive)
        if incremental:
            if (held := _to_update(corpus, champion, 1.0 - holdout, queries, as_json=as_json)) is None:
                return
        else:
            until_ms = -1 if champion is None else champion.manifest.trained_until_ms
            held = held_out(corpus.events, corpus.positive, 1.0 - holdout, queries, against, until_ms)
        corpus = without_kept(corpus, held, (round(seconds * 1_000) for seconds in settings.windows_s.values()))
        if not incremental:
            demand_trainable(corpus.items, held.events[: held.trained], corpus.positive, settings, settings_file())
        if incremental and champion is not None and "half" in champion.manifest.metrics and not settings.half:
            console.print(f"the graphs of {against} are in half precision: so are the update's", highlight=False)
        if held.apart:
            said = f"the newest events are too few to judge by: the gate asks {held.people} people for their last like"
            console.print(f"{said} (leave_last_out)", style="yellow", highlight=False, soft_wrap=True)
        forewarn(tracking := Tracking.from_env() if first else None)
        from training.trainer import Task, judged  # it imports torch

        task = Task(corpus, held, settings, _cache(cache), queries, champion, releases, incremental)
        within = lambda learned: replace(HALF if "half" in learned.measured else STANDARD, rank_ms=rank_ms, size_mb=size_mb)
        made = judged(task, within, report)
    learned, verdict = made.learned, made.verdict
    metrics = {"gate": verdict.to_json(), "before": made.plain.to_json(), "after": made.mine.to_json(), "seed": seed}
    folder = learned.write(out, {**metrics, "gate": verdict.untimed()}, against)
    facts = {
        "release": folder.name,
        "folder": str(folder),
        "manifest_sha256": manifest_sha256(folder),
        **metrics,
        "against": against,
        **({"against_refused": made.refused} if made.refused else {}),
        "parity": learned.parity,
        **({"half": learned.measured["half"]} if "half" in learned.measured else {}),
        "logged_slates": learned.measured.get("logged_slates", 0),
        "events": held.trained,
        "items": len(corpus.items),
        "training_seconds": learned.seconds,
        **_images(learned.images),
        "seconds": round(time.monotonic() - started, 1),
    }
    kept = [out / f"{folder.name}.report.json", folder / "manifest.json"]
    kept[0].write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if page is not None:
        _write_page(page, made.measurements(task, folder.name))
        kept.append(page)
    if tracking is not None:
        facts["mlflow"] = record(tracking, facts, corpus.name, settings, {path.name: path.read_bytes() for path in kept})
    _finish(facts, console, as_json=as_json)


def _to_update(corpus: Corpus, champion: Release | None, share: float, queries: int, *, as_json: bool) -> Holdout | None:
    """What an update is judged by; None, and a word about it, where too little is new.

    Raises:
        BadDataset: there is nothing to go on from, or another rule says what is liked.
    """
    if champion is None:
        message = "there is no release to update: train without --incremental, and promote that"
        raise BadDataset("no_champion", message)
    if corpus.positive != champion.manifest.positive:
        rules = f"{champion.name} learned by the rule {champion.manifest.positive!r}, here it is {corpus.positive!r}"
        raise BadDataset("positive_changed", f"{rules}: train in full, without --incremental", "positive")
    name, until_ms = champion.name, champion.manifest.trained_until_ms
    found = new_events(corpus, 1.0, until_ms)
    held = None
    why: dict[str, Any] = {"skipped": "nothing_new", "new_events": found, "needed": FEWEST_NEW}
    said = f"{found} events are newer than {name}, {FEWEST_NEW} are needed"
    if found >= FEWEST_NEW:
        try:
            held = held_out(corpus.events, corpus.positive, share, queries, name, until_ms)
            found = new_events(replace(corpus, events=held.events), held.share, until_ms)
            why["new_events"] = found
            said = f"{found} events are newer than {name} and not kept for the gate, {FEWEST_NEW} are needed"
        except BadDataset as exc:
            if exc.code != "too_little_to_judge":
                raise
            said, why = exc.message, {"skipped": exc.code, "message": exc.message}
    agree("new events", found)
    if held is not None and found >= FEWEST_NEW:
        return held
    if is_first():
        click.echo(f"nothing to learn yet: {said}", err=True)
        if as_json:
            click.echo(json.dumps({"release": None, **why, "against": name}))
    return None


def _demand_updatable(examples: Path | None) -> None:
    if newest():
        raise ConfigError("newest", "an update needs all that its release learned from: leave out --newest, or --incremental")
    if examples is not None:
        raise ConfigError("examples", "an update keeps its release's ranker: leave out --examples, or --incremental")


def _with_examples(corpus: Corpus, folder: Path | None, settings: LearnSettings) -> Corpus:
    if folder is None:
        return corpus
    if corpus.target is None or corpus.erased is None:
        raise ConfigError("examples", "examples are of an archive's slates: train from that archive, or leave out --examples")
    return replace(corpus, logged=logged_in(folder, corpus.positive, settings.windows_s, corpus.target, corpus.erased))


def _images(found: Mapping[str, int]) -> dict[str, dict[str, int]]:
    from training.encoders.encoder import UNUSED  # loads torch, which training has done by then

    by_url = {reason: n for reason, n in found.items() if reason not in UNUSED}
    unused = {reason: n for reason, n in found.items() if reason in UNUSED}
    return ({"images_by_url": by_url} if by_url else {}) | ({"images_unused": unused} if unused else {})


def _write_page(path: Path, found: list[Measurement]) -> None:
    from training.evaluation.report import html_report  # it draws, and nothing else here does

    path.write_text(html_report(found), encoding="utf-8")


def _finish(facts: dict[str, Any], console: Console, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    for line in _lines(facts):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _lines(facts: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Names and figures, one a line, parts of a part below it; long lists only by their length."""
    for name, value in facts.items():
        head = f"{indent}{name:{max(28 - len(indent), 1)}s}"
        if isinstance(value, Mapping) and value:
            yield head.rstrip()
            yield from _lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and (len(value) > 4 or any(isinstance(v, (list, tuple, dict)) for v in value)):
            yield f"{head} {len(value)} values (--json shows them)"
        elif isinstance(value, (list, tuple)):
            yield f"{head} {'  '.join(_figure(v) for v in value)}"
        else:
            yield f"{head} {_figure(value)}"


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)
