"""`riffle load --check`: what is right and wrong with a dataset folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from models.dataset.checks.check import State
from models.dataset.checks.folder import MOST_ROWS, Checked, checked

__all__ = ["check_folder"]

MARKS = {State.GOOD: "ok  ", State.WARN: "WARN", State.FAIL: "FAIL"}


def check_folder(folder: Path, *, items_only: bool, as_json: bool) -> None:
    """Print the checks of a folder and end the process, with 1 if one fails."""
    found = checked(folder, int(time.time() * 1000), events=not items_only)
    if as_json:
        click.echo(json.dumps(_facts(found)))
    else:
        for check in found.checks:
            click.echo(f"{MARKS[check.state]} {check.name}: {check.found}")
            if check.advice:
                click.echo(f"     {check.advice}")
        click.echo(_summary(found))
    sys.exit(0 if found.passes else 1)


def _facts(found: Checked) -> dict[str, object]:
    return {
        "name": found.name,
        "passes": found.passes,
        "items": found.items,
        "events": found.events,
        "cut": sorted(found.cut),
        "most_rows": MOST_ROWS,
        "checks": [check.to_json() for check in found.checks],
    }


def _summary(found: Checked) -> str:
    counts = {state: sum(check.state is state for check in found.checks) for state in State}
    said = f"{len(found.checks)} checks: {counts[State.FAIL]} failed, {counts[State.WARN]} with a warning"
    if found.cut:
        said += f". Of {' and '.join(sorted(found.cut))} only the first {MOST_ROWS:,} rows were read; `riffle load` reads all"
    return said
