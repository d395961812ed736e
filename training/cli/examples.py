"""The command `python -m training examples`: joins shown slates with the actions that followed, for all or some partitions."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import polars as pl

from models.archive.files import files
from models.archive.target import open_target
from models.rules import PositiveRule
from schemas.click_types import Number, Whole
from schemas.errors import BadDataset
from schemas.parsing import finite_number, shown
from training.data.slates.examples import ImpressionSettings, build_examples
from training.data.table import ATTRIBUTION_MS

__all__ = ["examples_command"]

SHORTEST_S, LONGEST_S = 1e-3, 1e9
"Shortest and longest window, seconds."


def _window(text: str) -> tuple[str, int]:
    action, equals, seconds = text.partition("=")
    try:
        if not action or not equals:
            raise ValueError(f"must be ACTION=SECONDS, is {shown(text)}")
        number = finite_number(seconds)
        if not SHORTEST_S <= number <= LONGEST_S:
            raise ValueError(f"must be from {SHORTEST_S:g} to {LONGEST_S:g} seconds, is {shown(seconds)}")
    except ValueError as exc:
        raise click.BadParameter(f"{action or text}: {exc}", param_hint="--window-of") from exc
    return action, round(number * 1000)


@click.command("examples")
@click.argument("archive")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of one Parquet file per partition.")
@click.option("--positive", default="True", show_default="every event", help="Rule over event columns for liked events.")
@click.option(
    "--window",
    default=ATTRIBUTION_MS / 1000,
    show_default=True,
    type=Number(SHORTEST_S, LONGEST_S),
    help="Seconds after a slate in which an action counts for it.",
)
@click.option("--window-of", multiple=True, metavar="ACTION=SECONDS", help="Another window for an action.")
@click.option(
    "--position-bias",
    default=0.5,
    show_default=True,
    type=Number(0.0),
    help="Correction of position bias; 0: none.",
)
@click.option(
    "--partition", "partitions", multiple=True, type=Whole(0), help="Only these partitions; each may be a separate job."
)
@click.option("--at-once", default=2, show_default=True, type=Whole(1), help="Partitions read in parallel.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def examples_command(  # noqa: PLR0913 - an argument for each option
    archive: str,
    out: Path,
    positive: str,
    window: float,
    window_of: tuple[str, ...],
    position_bias: float,
    partitions: tuple[int, ...],
    at_once: int,
    as_json: bool,
) -> None:
    """Join the slates that Riffle logged in an archive with the actions that followed, and write ranking examples.

    Writes a file for each partition with slates. Slates from events with the action `impression` are not included, because
    training reads them itself.

    Example: riffle examples .riffle/archive --out examples --positive "action == 'like'"
    """
    PositiveRule(positive)
    windows = dict(_window(text) for text in window_of)
    started, target = time.perf_counter(), open_target(archive)
    if not files(target, "impressions") and not files(target, "interactions"):
        raise BadDataset("no_archive", f"{archive} is no archive: it holds no files of slates or events")
    settings = ImpressionSettings(positive, round(window * 1000), windows, position_bias)
    written = build_examples(target, out, settings, partitions or None, at_once)
    followed = pl.col("labels").list.len() > 0
    counted = pl.len(), followed.sum().alias("followed")
    counts = [pl.scan_parquet(path, glob=False).select(counted).collect().row(0) for path in written]
    facts = {
        "files": [str(path) for path in written],
        "examples": sum(count for count, _ in counts),
        "followed": sum(count for _, count in counts),
        "seconds": round(time.perf_counter() - started, 2),
    }
    click.echo(json.dumps(facts) if as_json else f"{facts['examples']} examples, {facts['followed']} followed, in {out}")
