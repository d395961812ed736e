"""The command `riffle report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from training.cli.options import WRITTEN
from training.cli.shared import write_page
from training.evaluation.measurement import Measurement

__all__ = ["report_command"]


@click.command("report")
@click.argument("saved", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=WRITTEN, help="The HTML page to write.")
def report_command(saved: tuple[Path, ...], out: Path) -> None:
    """Compare saved measurements on one HTML page. The first is the baseline of the others.

    All must have the same queries. The page needs no network and runs no script.

    Example: riffle report before.json after.json --out quality.html
    """
    found = [Measurement.load(path) for path in saved]
    if len({each.label for each in found}) < len(found):  # equal labels are distinguished by file name
        found = [replace(each, label=path.stem) for each, path in zip(found, saved, strict=True)]
    write_page(out, found)
    click.echo(f"wrote {out}")
