"""`riffle tables`: state of each partition's rows, in workers and in the changelog."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click
from aiokafka import TopicPartition

from agents.cli import asking
from agents.cli.own import own_settings
from agents.cli.screen import plain_console, print_table
from agents.cli.states import answering_webs
from agents.partitions.ownership import TABLES
from agents.web.caller import Caller
from schemas.errors import NotReady
from schemas.masking import masked_url
from schemas.settings import Settings
from streams.kafka import connect
from streams.state.digests import Digest, digest

__all__ = ["changelog_digests", "tables"]


NOT_COMPARED = "not compared"
"Result for a partition whose rows are not complete yet."
ASK_S, VERIFY_S = 30.0, 600.0
"Time limits in seconds of a worker's answer; the second with digests, for which it reads its tables in full."


async def changelog_digests(settings: Settings) -> dict[tuple[str, int], tuple[int, Digest]]:
    """Return by table partition the offset after its changelog's newest record, and the digest of its committed records."""
    consumer = connect.consumer(settings.kafka, connect.COMMITTED)
    await consumer.start()
    found = {}
    try:
        # one after the other: only one partition's rows are in memory
        for table, (_, changelog) in TABLES.items():
            for number in range(settings.partitions):
                tp = TopicPartition(settings.topic(changelog), number)
                consumer.assign([tp])
                end = (await consumer.end_offsets([tp]))[tp]
                await consumer.seek_to_beginning(tp)
                rows: dict[bytes, bytes] = {}
                newest = 0
                while await consumer.position(tp) < end:
                    for records in (await consumer.getmany(tp, timeout_ms=200, max_records=5_000)).values():
                        for record in records:
                            newest = record.offset + 1
                            if record.value is None:
                                rows.pop(record.key, None)
                            else:
                                rows[record.key] = record.value
                found[table, number] = newest, digest(rows.items())
    finally:
        await consumer.stop()
    return found


def _asked(url: str, caller: Caller, *, digests: bool) -> list[dict[str, Any]]:
    try:
        full = f"{url.rstrip('/')}/v1/tables{'?digests=1' if digests else ''}"
        answer = asking.ask(full, VERIFY_S if digests else ASK_S, caller=caller)
    except NotReady as exc:
        raise NotReady("no_worker", f"{exc.message}: run `riffle up`, or see `riffle doctor`") from exc
    found = answer.body.get("tables") if isinstance(answer.body, dict) else None
    if answer.status in {401, 403, 429}:
        error = answer.body.get("error") if isinstance(answer.body, dict) else None
        why = error.get("message") if isinstance(error, dict) else f"HTTP {answer.status}"
        raise NotReady("no_worker", f"the worker at {masked_url(url)} refuses: {why}")
    if answer.status != 200 or not isinstance(found, list):
        raise NotReady("no_worker", f"the program at {url} is not a worker: HTTP {answer.status}")
    return found


def _verdict(facts: dict[str, Any], changelog: tuple[int, Digest] | None) -> str:
    if changelog is None:
        return ""
    if facts["role"] == "restoring":
        return NOT_COMPARED
    newest, made = changelog
    if facts["position"] < newest:
        return "behind"
    return "agrees" if facts["hash"] == made.hash else "DIFFERS"


@click.command()
@click.option(
    "--verify", is_flag=True, help="Compare a hash over each partition's rows with its changelog; reads both in full."
)
@click.option("--worker", "urls", multiple=True, metavar="URL", help="Query these workers; default: those of this instance.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def tables(verify: bool, urls: tuple[str, ...], as_json: bool) -> None:
    """Show the table partitions that workers own, and those that they hold as standbys.

    With --verify the exit code is 1 if rows differ, or were not compared because their partition is being restored.
    A partition behind its changelog is still being written or followed: run this again when the stream is quiet.

    Example: riffle tables --verify --worker http://127.0.0.1:6066 --worker http://127.0.0.1:6068
    """
    settings = Settings.from_env() if urls else own_settings()
    caller = Caller(settings.http)
    asked = urls or answering_webs(settings)
    found = [{"worker": masked_url(url), **facts} for url in asked for facts in _asked(url, caller, digests=verify)]
    if verify:
        changelogs = asyncio.run(changelog_digests(settings))
        for facts in found:
            facts["verdict"] = _verdict(facts, changelogs.get((facts["table"], facts["partition"])))
    if as_json:
        click.echo(json.dumps({"tables": found}))
    else:
        columns = ["worker", "table", "partition", "role", "position", *(["rows", "hash", "verdict"] if verify else [])]
        if len(asked) == 1:
            columns.remove("worker")
        rows = [[str(facts.get(name, "")) for name in columns] for facts in found]
        print_table(plain_console(), columns, rows, fold=("hash",), right=("partition", "position", "rows"))
    left = [f"{facts['table']}-{facts['partition']}" for facts in found if facts.get("verdict") == NOT_COMPARED]
    if verify and (left or not found):
        what = f"{', '.join(left)}: being restored" if found else "no partition is assigned yet"
        click.echo(f"riffle: {NOT_COMPARED}: {what}; ask again when `riffle status` says ready", err=True)
    wrong = any(facts.get("verdict") in {"DIFFERS", NOT_COMPARED} for facts in found) or not found
    sys.exit(1 if verify and wrong else 0)
