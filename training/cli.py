"""Commands of training. The command line finds them by name when they are called."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from models.release import Release
from models.rules import PositiveRule
from models.serving import ServingModel
from models.slot import ModelSlot
from schemas.errors import ReleaseRejected
from schemas.records import Interaction, Item
from training.evaluate import Figures, evaluate
from training.gate import judge
from training.incremental import updated
from training.learn import LearnSettings, learn
from training.options import MORE, chosen
from training.ranker import RankerSettings
from training.sources import Corpus, open_corpus
from training.towers import TowerSettings

__all__ = ["evaluate_command", "train_command"]

GATE_QUERIES = 1_000
DEFAULT_CACHE = "~/.cache/riffle"
SAID_EVERY_S = 10.0
Report = Callable[[str, int, int], None]


@contextmanager
def _progress(console: Console, clock: Callable[[], float] = time.monotonic) -> Iterator[Report]:
    """A bar per part, kept on the screen when it is done; a line every `SAID_EVERY_S` where there is no terminal."""
    columns = (TextColumn("{task.description:36s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    said = clock()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def report(part: str, done: int, of: int) -> None:
            nonlocal said
            if part not in tasks:
                for task in tasks.values():
                    bar.update(task, completed=bar.tasks[task].total)
                    bar.stop_task(task)
                tasks[part] = bar.add_task(part, total=of)
                if not console.is_terminal:
                    console.print(f"{part} …")
                    said = clock()
            elif not console.is_terminal and clock() - said >= SAID_EVERY_S:
                said = clock()
                console.print(f"{part}: {100 * done // max(1, of)} %", highlight=False)
            bar.update(tasks[part], completed=done, total=of)

        yield report


def _settings(seed: int, text_model: str, *, quick: bool) -> LearnSettings:
    settings = LearnSettings(
        seed=seed, text_model=text_model, towers=TowerSettings(seed=seed), ranker=RankerSettings(seed=seed)
    )
    if quick:
        settings = replace(settings, towers=replace(settings.towers, epochs=3), queries=1_500)
    return chosen(settings)


def _threads() -> None:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def _cache(folder: str) -> Path:
    return Path(folder).expanduser() / "vectors"


def _measure(corpus: Corpus, share: float, report: Report, what: str, model: ServingModel | None, most: int | None) -> Figures:
    slot = ModelSlot()
    slot.swap(model)
    rule = PositiveRule(corpus.positive)
    return evaluate(corpus.items, corpus.events, rule, share, lambda done, of: report(what, done, of), slot, most)


LEARNING = (
    *MORE,
    click.option("--positive", help="Rule over event columns that says which events are liked."),
    click.option("--text-model", default="", help="Folder or hub name of a text encoder; the packaged MiniLM without it."),
    click.option("--seed", default=0, show_default=True),
    click.option("--quick", is_flag=True, help="Fewer passes: a release of slightly lower quality in a third of the time."),
    click.option("--cache", default=DEFAULT_CACHE, show_default=True, help="Folder of encoded item vectors."),
    click.option("--json", "as_json", is_flag=True, help="End with one line of JSON."),
)


def _learning(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(LEARNING):
        command = option(command)
    return command


@click.command("evaluate")
@click.argument("source", metavar="DIR")
@click.option("--share", default=0.8, type=click.FloatRange(0.0, 1.0), show_default=True, help="Events before the first query.")
@click.option("--no-train", is_flag=True, help="Measure the pipeline without a release.")
@click.option("--before", is_flag=True, help="Measure without a release as well.")
@click.option("--queries", type=click.IntRange(min=1), help="Ask only that many of the queries, evenly spread.")
@_learning
def evaluate_command(
    source: str,
    share: float,
    no_train: bool,
    before: bool,
    queries: int | None,
    positive: str | None,
    text_model: str,
    seed: int,
    quick: bool,
    cache: str,
    as_json: bool,
) -> None:
    """Train on the first part of a dataset folder, then measure the slates on the rest, query by query in time order.

    NDCG@10, HR@10, Recall@50 and MRR, through the pipeline that serves, and where liked items are lost.

    Example: riffle evaluate my-dataset --json
    """
    console, started = Console(stderr=True), time.monotonic()
    with _progress(console) as report:
        report("read", 0, 1)
        corpus = open_corpus(source, positive)
        model, seconds = None, {}
        if not no_train:
            _threads()
            train = corpus.events[: int(len(corpus.events) * share)]
            known, settings = _published(corpus.items, train), _settings(seed, text_model, quick=quick)
            learned = learn(known, train, corpus.positive, _cache(cache), settings, report)
            model, seconds = ServingModel(learned.release(), os.cpu_count() or 1), learned.seconds
        plain = _measure(corpus, share, report, "measure without a release", None, queries) if before else None
        figures = _measure(corpus, share, report, "measure", model, queries)
    out: dict[str, Any] = {
        "dataset": corpus.name,
        "release": "none" if model is None else model.name,
        **figures.to_json(),
        **({"before": plain.to_json()} if plain else {}),
        "bad_rows": corpus.bad_rows,
        "training_seconds": seconds,
        "seconds": round(time.monotonic() - started, 1),
    }
    _finish(out, console, as_json=as_json)


@click.command("train")
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option("--out", default="releases", show_default=True, type=click.Path(path_type=Path), help="Folder of releases.")
@click.option("--against", default="none", show_default=True, help="The release that serves, to be better than.")
@click.option(
    "--holdout", default=0.1, type=click.FloatRange(0.01, 0.5), show_default=True, help="Newest share of events for the gate."
)
@click.option("--incremental", is_flag=True, help="Go on from the release that serves: new events, and a sample of the old.")
@_learning
def train_command(
    source: str,
    out: Path,
    against: str,
    holdout: float,
    incremental: bool,
    positive: str | None,
    text_model: str,
    seed: int,
    quick: bool,
    cache: str,
    as_json: bool,
) -> None:
    """Train a release from a dataset folder or an archive, and judge it on the newest events.

    The release is written whatever the gate says; its manifest holds the verdict, and `riffle release promote` heeds it.

    Example: python -m training train .riffle/archive --out .riffle/releases --positive "action == 'like'"
    """
    console, started = Console(stderr=True), time.monotonic()
    with _progress(console) as report:
        report("read", 0, 1)
        corpus = open_corpus(source, positive)
        _threads()
        share = 1.0 - holdout
        train = corpus.events[: int(len(corpus.events) * share)]
        settings = _settings(seed, text_model, quick=quick)
        if incremental:
            learned = updated(corpus, share, out, against, settings, _cache(cache), report)
        else:
            known = _published(corpus.items, train)
            learned = learn(known, train, corpus.positive, _cache(cache), settings, report, corpus.logged)
        threads = os.cpu_count() or 1
        mine = _measure(
            corpus, share, report, "measure the new release", ServingModel(learned.release(), threads), GATE_QUERIES
        )
        plain = _measure(corpus, share, report, "measure without a release", None, GATE_QUERIES)
        theirs, refused = plain, ""
        if against != "none":
            try:
                serving = ServingModel(Release.open(out / against), threads)
                theirs = _measure(corpus, share, report, f"measure {against}", serving, GATE_QUERIES)
            except ReleaseRejected as exc:
                if exc.code != "feature_spec":  # one made for other features cannot be asked; any other must be found
                    raise
                refused = exc.message
    verdict = judge(mine, theirs, learned.parity)
    metrics = {"gate": verdict.to_json(), "before": plain.to_json(), "after": mine.to_json(), "seed": seed}
    folder = learned.write(out, metrics, against)
    facts = {
        "release": folder.name,
        "folder": str(folder),
        **metrics,
        "against": against,
        **({"against_refused": refused} if refused else {}),
        "parity": learned.parity,
        "events": len(train),
        "items": len(corpus.items),
        "training_seconds": learned.seconds,
        "seconds": round(time.monotonic() - started, 1),
    }
    (out / f"{folder.name}.report.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    _finish(facts, console, as_json=as_json)


def _published(items: Sequence[Item], events: Sequence[Interaction]) -> list[Item]:
    """The items that were there when the last of `events` happened: a later one must be served as the new item that it is."""
    until = events[-1].event_time if events else 0
    return [item for item in items if item.published_at is None or item.published_at <= until]


def _finish(facts: dict[str, Any], console: Console, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        console.print(f"{name:24s} {value}")
