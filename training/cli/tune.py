"""The command `riffle tune`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.console import Console

from models.rules import PositiveRule
from schemas.click_types import Number, Whole
from training.cli.options import SHARED, SharedOptions, chosen, gathered, vectors_in
from training.cli.progress import note, progress
from training.data.amounts import demand_trainable
from training.data.corpus import open_corpus
from training.environment import TrainingSettings
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.settings_file import write_settings

__all__ = ["tune_command"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions(SharedOptions):
    """Options of `riffle tune`."""

    trials: int
    out: Path
    file: Path | None
    share: float
    validation: float
    queries: int
    epochs: int


@click.command("tune")
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option("--trials", default=20, show_default=True, type=Whole(1), help="Further trials.")
@click.option("--out", default="tuned.json", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--study", "file", type=click.Path(dir_okay=False, path_type=Path), help="File of the study.")
@click.option("--share", default=0.8, type=Number(0.1, 1.0), show_default=True, help="First part of the events.")
@click.option(
    "--validation", default=0.1, type=Number(0.01, 0.5), show_default=True, help="Its newest share, on which trials are judged."
)
@click.option("--queries", default=500, show_default=True, type=Whole(1), help="Queries per trial.")
@click.option("--epochs", default=8, show_default=True, type=Whole(1), help="Epochs of the towers.")
@click.option("--positive", help="Rule over event columns for liked events.")
@click.option(
    "--text-model",
    default=lambda: TrainingSettings.from_env().text_model,
    help="Folder or hub name of a text encoder; default: the packaged MiniLM.",
)
@click.option("--seed", default=0, show_default=True, type=Whole(0))
@click.option("--cache", default="~/.cache/riffle", show_default=True, help="Folder of encoded item vectors.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@gathered(TuneOptions, *reversed(SHARED))
def tune_command(options: TuneOptions) -> None:
    """Search for better settings on the first part of the events, and write the best for `riffle train --settings FILE`.

    A later call with the same study continues it. A study belongs to one part of one dataset and to one set of fixed settings.

    Example: riffle tune my-dataset --trials 20 --out tuned.json
    """
    if options.positive is not None:
        PositiveRule(options.positive, "--positive")
    console, seed = Console(stderr=True), options.seed
    plain = LearnSettings(
        towers=TowerSettings(seed=seed, epochs=options.epochs),
        ranker=RankerSettings(seed=seed),
        text_model=options.text_model,
        seed=seed,
    )
    standard = chosen(plain, options)
    corpus = open_corpus(options.source, options.positive, newest=options.newest)
    note(console, corpus)
    corpus = replace(corpus, events=corpus.events[: int(len(corpus.events) * options.share)])
    train = corpus.events[: int(len(corpus.events) * (1.0 - options.validation))]
    demand_trainable(corpus.items, train, corpus.positive, standard, options.settings)
    from training.loop.noise import quiet
    from training.tune import TuneSettings, tune  # it imports torch

    quiet()
    study = options.file or options.out.with_suffix(".study.jsonl")
    settings = TuneSettings(validation=options.validation, queries=options.queries, seed=seed)
    about = {"dataset": corpus.name, "share": options.share}
    with progress(console) as report:
        found = tune(corpus, vectors_in(options), study, options.trials, standard, settings, report, about)
    write_settings(options.out, found.best, LearnSettings())
    facts = {"settings": str(options.out), "study": str(study), "ndcg@10": found.value, "trials": found.states}
    if options.as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            console.print(f"{name:12s} {value}")
