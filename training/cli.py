"""Commands of training. The command line finds them by name when they are called."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.dataset.folder import Dataset
from models.rules import PositiveRule
from training.evaluate import evaluate

__all__ = ["evaluate_command"]


@click.command("evaluate")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--share", default=0.8, type=click.FloatRange(0.0, 1.0), show_default=True, help="Events before the first query.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def evaluate_command(folder: Path, share: float, as_json: bool) -> None:
    """Measure the slates on a dataset folder: NDCG@10, HR@10, Recall@50, MRR, and where liked items are lost.

    Nothing is learned yet: the figures are those of the pipeline without a release.

    Example: riffle evaluate my-dataset --json
    """
    console = Console(stderr=True)
    started = time.monotonic()
    dataset = Dataset.open(folder)
    positive = PositiveRule(dataset.positive)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        reading = bar.add_task("reading", total=None)
        items, events = list(dataset.items()), list(dataset.events())
        bar.remove_task(reading)
        task = bar.add_task("events", total=len(events))
        figures = evaluate(items, events, positive, share, lambda done, of: bar.update(task, completed=done, total=of))
    out = {
        "dataset": dataset.name,
        "release": "none",
        **figures.to_json(),
        "bad_rows": dataset.bad_count,
        "seconds": round(time.monotonic() - started, 1),
    }
    if as_json:
        click.echo(json.dumps(out))
        return
    for name, value in out.items():
        console.print(f"{name:24s} {value}")
