"""`riffle dlq`: list, show and replay dead letters, which are records that could not be used."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import click

from agents.cli.own import own_settings
from agents.cli.screen import plain_console, print_table, printable
from schemas.click_types import Whole
from schemas.errors import BadRequest
from streams.kafka.dead_letters import origins_of, read_letters, replay_letters

__all__ = ["dlq"]


def _letters(code: str | None = None, letter: int | None = None, came_back: set[bytes] | None = None) -> list[dict[str, Any]]:
    """Read letters. The origins of all replayed ones, whatever their code and number, are added to `came_back`."""

    async def read() -> list[dict[str, Any]]:
        chosen = []
        async for found in read_letters(own_settings()):
            if came_back is not None:
                came_back.update(origins_of([found]))
            if code in {None, found["code"]} and letter in {None, found["letter"]}:
                chosen.append(found)
        return chosen

    return asyncio.run(read())


def _text(data: bytes | None, most: int | None = None) -> str | None:
    if data is None:
        return None
    text = data.decode("utf-8", "backslashreplace")
    return text if most is None or len(text) <= most else text[:most] + "…"


def _plain(letter: dict[str, Any]) -> dict[str, Any]:
    headers = {name: _text(value) for name, value in letter.get("headers", {}).items()}
    return {**letter, "key": _text(letter.get("key")), "value": _text(letter.get("value")), "headers": headers}


@click.group()
def dlq() -> None:
    """Show records that could not be used, and produce them again once the cause is fixed.

    Bad catalogue records appear when they are archived, some ten seconds later (RIFFLE_ARCHIVE_INTERVAL_S).

    Example: riffle dlq list
    """


@dlq.command("list")
@click.option("--code", help="Only dead letters with this reason code.")
@click.option("--last", default=20, show_default=True, type=Whole(1, 10_000), help="Show this many, newest last.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def list_letters(code: str | None, last: int, as_json: bool) -> None:
    """Count dead letters by reason, and list the newest.

    Example: riffle dlq list --code key_mismatch
    """
    letters = _letters(code)
    codes = Counter(letter["code"] for letter in letters)
    if as_json:
        click.echo(json.dumps({"total": len(letters), "codes": codes, "letters": [_plain(one) for one in letters[-last:]]}))
        return
    console = plain_console()
    if not letters:
        console.print("no dead letters")
        return
    console.print(", ".join(f"{name} {count}" for name, count in codes.most_common()))
    rows = []
    for one in letters[-last:]:
        when = datetime.fromtimestamp(one.get("timestamp", 0) / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((str(one["letter"]), when, one["code"], _text(one.get("key"), 24) or ""))
    print_table(console, ("letter", "time (UTC)", "code", "key"), rows, fold=("code", "key"))
    for one in letters[-last:]:
        origin = f"{one['topic']}-{one['partition']}@{one['offset']}" if "topic" in one else "origin unknown"
        console.print(f"{one['letter']}: {printable(one['reason'][:200])} ({origin})")
    console.print("see one with: riffle dlq show LETTER")


@dlq.command()
@click.argument("letter", type=Whole(0))
def show(letter: int) -> None:
    """Print one dead letter in full, as JSON.

    Example: riffle dlq show 17
    """
    found = _letters(letter=letter)
    if not found:
        raise BadRequest("not_found", f"there is no dead letter {letter}: see riffle dlq list")
    click.echo("\n".join(map(printable, json.dumps(_plain(found[0]), indent=1, ensure_ascii=False).split("\n"))))


@dlq.command()
@click.option("--code", help="Dead letters with this reason code.")
@click.option("--letter", type=Whole(0), help="The dead letter with this number.")
@click.option("--all", "everything", is_flag=True, help="All dead letters.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def replay(code: str | None, letter: int | None, everything: bool, as_json: bool) -> None:
    """Produce dead letters again to their original topics, once their cause is fixed.

    Nothing counts twice: events that were applied meanwhile are dropped as duplicates. Catalogue entries are not sent if a
    newer one exists, and events are not sent if their user was erased later. Of a record that became a dead letter several
    times, only the last is sent.

    Example: riffle dlq replay --code unknown_schema
    """
    if code is None and letter is None and not everything:
        raise click.UsageError("choose one of --code CODE, --letter N or --all")
    came_back = set[bytes]()
    letters = _letters(code, letter, came_back)
    if letter is not None and not letters:
        raise BadRequest("not_found", f"there is no dead letter {letter}: see riffle dlq list")
    outcome = asyncio.run(replay_letters(own_settings(), letters, came_back))
    if as_json:
        click.echo(json.dumps(outcome))
        return
    click.echo(f"{outcome['sent']} produced again")
    if outcome["cut"]:
        click.echo(f"{outcome['cut']} were too large to be kept whole: produce them again from their source")
    if outcome["superseded"]:
        click.echo(f"{outcome['superseded']} not sent: a newer record followed, or they came back as later letters")
    if outcome["erased"]:
        click.echo(f"{outcome['erased']} not sent: their users were erased later")
    if outcome["failed"]:
        click.echo(f"{outcome['failed']} were not acknowledged by Kafka: try again")
    if outcome["unreadable"]:
        click.echo(f"{outcome['unreadable']} are not dead letters")
