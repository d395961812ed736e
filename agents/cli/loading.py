"""Commands that load data."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click

from agents.cli.checking import check_folder
from agents.cli.interrupts import INTERRUPTED
from agents.cli.outcomes import outcomes, since
from agents.cli.own import own_settings
from agents.cli.waiting import with_progress
from agents.web.caller import Caller
from models.dataset.bad_rows import place
from models.dataset.folder import Dataset
from models.state.rows import HISTORY
from schemas.click_types import Whole
from schemas.parsing import finite_number
from schemas.records import Interaction, Item
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics

__all__ = ["load", "replay"]

T = TypeVar("T")
SHOWN = 20
"Maximum number of bad rows that a report names."


def _counted(rows: Iterable[T], counts: Counter[str], name: str) -> Iterator[T]:
    for row in rows:
        counts[name] += 1
        yield row


def _known(events: Iterable[Interaction], items: Set[str], counts: Counter[str]) -> Iterator[Interaction]:
    for event in events:
        counts["unknown_items"] += event.item_id not in items
        yield event


def _noted(items: Iterable[Item], ids: set[str]) -> Iterator[Item]:
    for item in items:
        ids.add(item.item_id)
        yield item


def _report(dataset: Dataset) -> dict[str, Any]:
    return {
        "bad_rows": dataset.bad_count,
        "repeated_events": dataset.warnings["repeated_event"],
        "warnings": sum(dataset.warnings.values()),
        "examples": [{"file": b.file, "row": b.row, "field": b.field, "reason": b.reason} for b in dataset.bad[:SHOWN]],
    }


def _finish(facts: dict[str, Any], dataset: Dataset, *, as_json: bool, strict: bool) -> None:
    for bad in dataset.bad[:SHOWN]:
        click.echo(f"{place(bad)}: {bad.reason}", err=True)
    if dataset.bad_count > SHOWN:
        click.echo(f"… and {dataset.bad_count - SHOWN} more bad rows", err=True)
    for line in dataset.report.warning_lines():
        click.echo(f"warning: {line}", err=True)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo(", ".join(_words(name, value) for name, value in facts.items() if name != "examples"))
    if dataset.torn or (strict and dataset.bad_count):
        sys.exit(1)


@contextmanager
def _reporting_interrupts(sent: Counter[str]) -> Iterator[None]:
    """Report what was sent, and what a repetition does, when Ctrl-C interrupts the block; then exit."""
    try:
        yield
    except KeyboardInterrupt:
        # rows are counted when they are read, and the newest may not have reached the broker
        rows = " and ".join(f"{sent[name]:,} {name}" for name in ("items", "events") if sent[name])
        again = (
            "Run the command again to send all: a repeated event is not counted if it is among its user's last "
            f"{HISTORY} events, and training reads it once"
        )
        click.echo(
            f"riffle: interrupted; up to {rows} were sent. {again}" if rows else "riffle: interrupted; nothing was sent",
            err=True,
        )
        sys.exit(INTERRUPTED)


def _came_to(found: Counter[str] | None) -> dict[str, int]:
    if found is None:
        click.echo("the number of new events is not known: the worker has not received all; see `riffle status`", err=True)
        return {}
    if not found["applied"] and not found["shown"] and not found["dead_letter"]:
        click.echo("nothing new: the worker already had every event", err=True)
    return {"applied": found["applied"], "duplicates": found["duplicate"]}


def _words(name: str, value: object) -> str:
    if isinstance(value, dict):
        value = " ".join(f"{partition}:{offset}" for partition, offset in sorted(value.items())) or "none"
    return f"{name.replace('_', ' ')} {value}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--strict", is_flag=True, help="Produce nothing and exit with 1 when any row is bad.")
@click.option(
    "--check",
    "only_check",
    is_flag=True,
    help="Send nothing: report within seconds what is wrong, and how to mend it.",
)
@click.option("--items-only", is_flag=True, help="Load no events (for `riffle replay`); the file of events is then optional.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def load(folder: Path, strict: bool, only_check: bool, items_only: bool, as_json: bool) -> None:
    """Validate a dataset folder, then produce its items and events. Bad rows are reported and skipped.

    Exit code 1 if a quote in a CSV file is not closed, because the boundaries of later rows are then a guess. If a worker
    answers, the last line counts the events that it applied and those that it had before.

    With --check nothing is sent, and no worker is needed: exit code 1 if a check fails.

    Example: riffle load my-dataset --check
    """
    if only_check:
        check_folder(folder, items_only=items_only, as_json=as_json)
    settings, dataset = own_settings(), Dataset.open(folder, events=not items_only)
    dataset.check(events=not items_only)
    n_items, n_events = dataset.counts()
    n_users = sum(1 for _ in dataset.users())
    now_ms = int(time.time() * 1000)
    if strict:
        for _ in dataset.items():
            pass
        for _ in () if items_only else dataset.events(now_ms):
            pass
        if dataset.bad_count:
            nothing = {"name": dataset.name, "items": 0, "events": 0, **_report(dataset)}
            _finish(nothing, dataset, as_json=as_json, strict=True)
    asyncio.run(ensure_topics(settings))
    caller = Caller(settings.http)
    before = None if items_only else asyncio.run(outcomes(settings.web, caller))
    sent: Counter[str] = Counter()
    ids = set[str]()
    tokens = {}
    with _reporting_interrupts(sent):
        items = _counted(_noted(dataset.items(), ids), sent, "items")
        with_progress("items", n_items, lambda at: produce_items(settings, items, at))
        if not items_only:
            events = _counted(_known(dataset.events(now_ms), ids, sent), sent, "events")
            tokens = with_progress("events", n_events, lambda at: produce_events(settings, events, None, at))
    if sent["unknown_items"]:
        number = f"{sent['unknown_items']} of {sent['events']} events are on items that the dataset's catalogue lacks"
        click.echo(f"warning: {number}: no slate holds such an item, and training leaves them out", err=True)
    facts: dict[str, Any] = {"name": dataset.name, "items": sent["items"], "events": sent["events"]}
    facts |= {"users": n_users} if dataset.has_users else {}
    facts |= {"last_offsets": tokens}
    if before is not None and sent["events"]:
        with _reporting_interrupts(sent):
            facts |= _came_to(asyncio.run(since(settings.web, before, sent["events"], caller=caller)))
    _finish({**facts, **_report(dataset)}, dataset, as_json=as_json, strict=strict)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--rate", default="max", help="Events per second, or max.", show_default=True)
@click.option("--limit", type=Whole(1), help="Stop after this many events.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def replay(folder: Path, rate: str, limit: int | None, as_json: bool) -> None:
    """Produce a dataset folder's events in event-time order, at a rate.

    Example: riffle replay my-dataset --rate 500
    """
    try:
        per_second = None if rate == "max" else finite_number(rate)
    except ValueError as exc:
        raise click.BadParameter(f"{exc}, and not max", param_hint="--rate") from exc
    if per_second is not None and per_second <= 0:
        raise click.BadParameter("must be greater than 0", param_hint="--rate")
    settings, dataset = own_settings(), Dataset.open(folder)
    dataset.check()
    total = min(dataset.counts()[1], limit or sys.maxsize)
    asyncio.run(ensure_topics(settings))
    started, sent = time.perf_counter(), Counter[str]()
    events = _counted(islice(dataset.events(int(time.time() * 1000)), limit), sent, "events")
    with _reporting_interrupts(sent):
        tokens = with_progress("events", total, lambda at: produce_events(settings, events, per_second, at))
    took = time.perf_counter() - started
    facts = {"name": dataset.name, "events": sent["events"], "seconds": round(took, 2), "per_s": round(sent["events"] / took)}
    _finish({**facts, "last_offsets": tokens, **_report(dataset)}, dataset, as_json=as_json, strict=False)
