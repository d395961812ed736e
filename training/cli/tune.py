"""`riffle tune`."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console

from models.rules import PositiveRule
from schemas.click_types import Number, Whole
from training.cli.options import MORE, chosen, newest, settings_file
from training.cli.progress import note, progress
from training.data.amounts import demand_trainable
from training.data.corpus import open_corpus
from training.environment import TrainingSettings
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.settings_file import write_settings

__all__ = ["tune_command"]


def _with_more(command: click.Command) -> click.Command:
    for option in reversed(MORE):
        option(command)
    return command


@click.command("tune")
@click.argument("source", metavar="DIR|ARCHIVE")
@click.option("--trials", default=20, show_default=True, type=Whole(1), help="Further trials.")
@click.option("--out", default="tuned.json", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--study", "file", type=click.Path(dir_okay=False, path_type=Path), help="File of the study.")
@click.option("--share", default=0.8, type=Number(0.1, 1.0), show_default=True, help="First part of the events.")
@click.option("--validation", default=0.1, type=Number(0.01, 0.5), show_default=True, help="Its newest share, to judge by.")
@click.option("--queries", default=500, show_default=True, type=Whole(1), help="Queries per trial.")
@click.option("--epochs", default=8, show_default=True, type=Whole(1), help="Of the towers.")
@click.option("--positive", help="Rule over event columns that says which events are liked.")
@click.option(
    "--text-model",
    default=lambda: TrainingSettings.from_env().text_model,
    help="Folder or hub name of a text encoder; the packaged MiniLM without it.",
)
@click.option("--seed", default=0, show_default=True, type=Whole(0))
@click.option("--cache", default="~/.cache/riffle", show_default=True, help="Folder of encoded item vectors.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def tune_command(
    source: str,
    trials: int,
    out: Path,
    file: Path | None,
    share: float,
    validation: float,
    queries: int,
    epochs: int,
    positive: str | None,
    text_model: str,
    seed: int,
    cache: str,
    as_json: bool,
) -> None:
    """Search for better settings on the first part of the events, and write the best for `riffle train --settings FILE`.

    A later call with the same study goes on with it; a study is of one part of one dataset, and of the same fixed settings.

    Example: riffle tune my-dataset --trials 20 --out tuned.json
    """
    if positive is not None:
        PositiveRule(positive, "--positive")
    console = Console(stderr=True)
    plain = LearnSettings(
        towers=TowerSettings(seed=seed, epochs=epochs), ranker=RankerSettings(seed=seed), text_model=text_model, seed=seed
    )
    standard = chosen(plain)
    corpus = open_corpus(source, positive, newest=newest())
    note(console, corpus)
    events = corpus.events[: int(len(corpus.events) * share)]
    train = events[: int(len(events) * (1.0 - validation))]
    demand_trainable(corpus.items, train, corpus.positive, standard, settings_file())
    from training.loop.noise import quiet
    from training.tune import TuneSettings, tune  # it imports torch

    quiet()
    study = file or out.with_suffix(".study.jsonl")
    with progress(console) as report:
        found = tune(
            corpus.items,
            events,
            corpus.positive,
            Path(cache).expanduser() / "vectors",
            study,
            trials,
            standard,
            TuneSettings(validation=validation, queries=queries, seed=seed),
            report,
            corpus.logged,
            {"dataset": corpus.name, "share": share},
            corpus.shown,
        )
    write_settings(out, found.best, LearnSettings())
    facts = {"settings": str(out), "study": str(study), "ndcg@10": found.value, "trials": found.states}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            console.print(f"{name:12s} {value}")


_with_more(tune_command)
