"""Commands that bring data in."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.dataset.folder import Dataset
from streams.produce import produce_events, produce_items
from streams.settings import Settings
from streams.topics import ensure_topics

__all__ = ["load", "replay", "with_progress"]


def with_progress(what: str, total: int, work: Callable[[Callable[[int], None]], Awaitable[Any]]) -> Any:
    """Run `work` under a progress bar on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()

    async def run() -> Any:
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total)
            return await work(lambda done: bar.update(task, completed=done))

    return asyncio.run(run())


def _report(dataset: Dataset) -> dict[str, Any]:
    return {
        "bad_rows": dataset.bad_count,
        "examples": [{"file": b.file, "row": b.row, "field": b.field, "reason": b.reason} for b in dataset.bad[:20]],
    }


def _finish(facts: dict[str, Any], dataset: Dataset, *, as_json: bool, strict: bool) -> None:
    for bad in dataset.bad[:20]:
        click.echo(f"{bad.file} row {bad.row}: {bad.reason}", err=True)
    if dataset.bad_count > 20:
        click.echo(f"… and {dataset.bad_count - 20} more bad rows", err=True)
    click.echo(json.dumps(facts) if as_json else ", ".join(f"{k} {v}" for k, v in facts.items() if k != "examples"))
    if strict and dataset.bad_count:
        sys.exit(1)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Produce nothing and exit with 1 when any row is bad.")
@click.option("--items-only", is_flag=True, help="Leave the events to `riffle replay`.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def load(folder: Path, strict: bool, items_only: bool, as_json: bool) -> None:
    """Validate a dataset folder, then produce its items and events. Bad rows are reported and skipped.

    Example: riffle load my-dataset --strict
    """
    settings, dataset = Settings.from_env(), Dataset.open(folder)
    n_items, n_events = dataset.counts()
    n_users = sum(1 for _ in dataset.users())
    if strict:
        for _ in dataset.items():
            pass
        for _ in dataset.events():
            pass
        if dataset.bad_count:
            _finish(
                {"name": dataset.name, "items": 0, "events": 0, **_report(dataset)},
                dataset,
                as_json=as_json,
                strict=True,
            )
    asyncio.run(ensure_topics(settings))
    with_progress("items", n_items, lambda at: produce_items(settings, dataset.items(), at))
    tokens = {}
    if not items_only:
        tokens = with_progress("events", n_events, lambda at: produce_events(settings, dataset.events(), None, at))
    facts: dict[str, Any] = {"name": dataset.name, "items": n_items, "events": 0 if items_only else n_events}
    facts |= {"users": n_users} if dataset.has_users else {}
    facts |= {"last_offsets": tokens}
    _finish({**facts, **_report(dataset)}, dataset, as_json=as_json, strict=strict)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rate", default="max", help="Events per second, or max.", show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def replay(folder: Path, rate: str, limit: int | None, as_json: bool) -> None:
    """Produce a dataset folder's events in event-time order, at a rate.

    Example: riffle replay my-dataset --rate 500
    """
    settings, dataset = Settings.from_env(), Dataset.open(folder)
    try:
        per_second = None if rate == "max" else float(rate)
    except ValueError as exc:
        raise click.BadParameter(f"{rate!r} is neither a number nor max", param_hint="--rate") from exc
    if per_second is not None and not per_second > 0:
        raise click.BadParameter("must be greater than 0", param_hint="--rate")
    total = min(dataset.counts()[1], limit or sys.maxsize)
    asyncio.run(ensure_topics(settings))
    started = time.perf_counter()
    events = (event for _, event in zip(range(total), dataset.events(), strict=False))
    tokens = with_progress("events", total, lambda at: produce_events(settings, events, per_second, at))
    took = time.perf_counter() - started
    facts = {"name": dataset.name, "events": total, "seconds": round(took, 2), "per_s": round(total / took)}
    _finish({**facts, "last_offsets": tokens, **_report(dataset)}, dataset, as_json=as_json, strict=False)
