"""`riffle tables`: what each partition's rows are, here and in the changelog."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

import click
from aiokafka import TopicPartition
from rich.console import Console
from rich.table import Table

from agents.ownership import TABLES
from schemas.errors import NotReady
from streams.digests import Digest, digest
from streams.lenient import AIOKafkaConsumer
from streams.settings import Settings

__all__ = ["changelog_digests", "tables"]


async def changelog_digests(settings: Settings) -> dict[tuple[str, int], tuple[int, Digest]]:
    """Per table partition: the offset after its changelog's newest record, and the digest of what a committed reader finds."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
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


def _asked(url: str, *, digests: bool) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{url}/v1/tables{'?digests=1' if digests else ''}", timeout=600) as response:
            return list(json.load(response)["tables"])
    except OSError as exc:
        raise NotReady("no_worker", f"no worker answers at {url}: run `riffle up`, or see `riffle doctor`") from exc


def _verdict(facts: dict[str, Any], changelog: tuple[int, Digest] | None) -> str:
    if changelog is None:
        return ""
    newest, made = changelog
    if facts["position"] < newest:
        return "behind"
    return "agrees" if facts["hash"] == made.hash else "DIFFERS"


@click.command()
@click.option("--verify", is_flag=True, help="Compare a hash over each partition's rows with its changelog; reads both whole.")
@click.option("--worker", "urls", multiple=True, metavar="URL", help="Ask these workers; without it the one of this instance.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def tables(verify: bool, urls: tuple[str, ...], as_json: bool) -> None:
    """Show which table partitions workers own and stand by for. With --verify exit code 1 when rows differ.

    What is behind its changelog is still being written or followed: ask again when the stream is quiet.

    Example: riffle tables --verify --worker http://127.0.0.1:6066 --worker http://127.0.0.1:6067
    """
    settings = Settings.from_env()
    found = [{"worker": url, **facts} for url in urls or (settings.web,) for facts in _asked(url, digests=verify)]
    if verify:
        changelogs = asyncio.run(changelog_digests(settings))
        for facts in found:
            facts["verdict"] = _verdict(facts, changelogs.get((facts["table"], facts["partition"])))
    if as_json:
        click.echo(json.dumps({"tables": found}))
    else:
        columns = ["worker", "table", "partition", "role", "position", *(["rows", "hash", "verdict"] if verify else [])]
        shown = Table(*columns)
        for facts in found:
            shown.add_row(*(str(facts.get(name, "")) for name in columns))
        Console().print(shown)
    sys.exit(1 if any(facts.get("verdict") == "DIFFERS" for facts in found) else 0)
