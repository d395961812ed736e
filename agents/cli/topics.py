"""`riffle topics`."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from dataclasses import asdict, replace

import click

from agents.cli.own import own_settings
from agents.cli.screen import plain_console, print_table
from agents.cli.waiting import advance
from schemas.click_types import Whole
from schemas.settings import Settings
from streams.kafka.copying import copy_topics
from streams.kafka.rights import ROLES, commands_of, policy_of, rights_of
from streams.kafka.topics import TOPICS, ensure_topics, partition_counts

__all__ = ["topics"]


@click.command()
@click.argument("action", type=click.Choice(["list", "create", "copy", "acls"]), default="list")
@click.option("--to", "prefix", metavar="PREFIX", help="copy: RIFFLE_TOPIC_PREFIX of the new topics.")
@click.option("--partitions", type=Whole(1, 10_000), help="copy: number of partitions of the new topics.")
@click.option("--role", type=click.Choice(ROLES), help="acls: whose rights.")
@click.option("--principal", metavar="USER", help="acls: who gets them, such as User:riffle.")
@click.option("--msk", metavar="ARN", help="acls: print a policy of IAM for this Amazon MSK cluster.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def topics(
    action: str,
    prefix: str | None,
    partitions: int | None,
    role: str | None,
    principal: str | None,
    msk: str | None,
    as_json: bool,
) -> None:
    """List the topics, create missing ones, or copy them to another number of partitions; print the rights that a role needs.

    `copy` does not change the topics. It produces the catalogue, events, impressions and announced releases again to topics of
    another prefix, each to the partition of its key. Stop all producers of events first, and start workers on the copies
    afterwards.

    `acls` prints the least rights of a role, as commands of Kafka's kafka-acls or as a policy of IAM. It connects to nothing.
    The topics must exist (`riffle topics create`).

    Examples: riffle topics copy --to riffle8. --partitions 8
    riffle topics acls --role worker --principal User:riffle
    """
    settings = Settings.from_env() if action == "acls" else own_settings()
    if action == "acls":
        if role is None or bool(principal) == bool(msk):
            raise click.UsageError("acls needs --role ROLE, and --principal USER or --msk ARN")
        _acls(settings, role, principal or "", msk, as_json=as_json)
        return
    if role or principal or msk:
        raise click.UsageError("--role, --principal and --msk are options of acls")
    if action == "copy":
        if not prefix or not partitions:
            raise click.UsageError("copy needs --to PREFIX and --partitions N")
        _copy(settings, replace(settings, topic_prefix=prefix, partitions=partitions), as_json=as_json)
        return
    if prefix or partitions:
        raise click.UsageError("--to and --partitions are options of copy")
    counts = asyncio.run(ensure_topics(settings) if action == "create" else partition_counts(settings))
    if as_json:
        click.echo(json.dumps({settings.topic(name): counts.get(name) for name in TOPICS}))
        return
    rows = [
        (settings.topic(name), str(counts.get(name, "missing")), "compacted" if spec.compacted else "log", spec.purpose)
        for name, spec in TOPICS.items()
    ]
    names = ("topic", "partitions", "kind", "purpose")
    print_table(plain_console(), names, rows, fold=("topic", "purpose"), right=("partitions",))


def _acls(settings: Settings, role: str, principal: str, cluster: str | None, *, as_json: bool) -> None:
    rights = rights_of(role, settings)
    if cluster is not None:
        click.echo(json.dumps(policy_of(rights, cluster), indent=None if as_json else 2))
    elif as_json:
        click.echo(json.dumps([{"principal": principal, **asdict(right)} for right in rights]))
    else:
        click.echo("\n".join(commands_of(rights, principal, settings.bootstrap_servers)))


def _copy(old: Settings, new: Settings, *, as_json: bool) -> None:
    shown: dict[str, ExitStack] = {}
    reports = {}

    def progress(name: str, done: int, total: int) -> None:
        if name not in shown:
            for stack in shown.values():
                stack.close()
            shown[name] = ExitStack()
            reports[name] = shown[name].enter_context(advance(f"copying {name}", total, plain_console(stderr=True)))
        reports[name](done)

    try:
        counts = asyncio.run(copy_topics(old, new, progress))
    finally:
        for stack in shown.values():
            stack.close()
    archive = "off" if old.archive == "off" else f"{old.archive_target}-{new.partitions}"
    variables = {
        "RIFFLE_TOPIC_PREFIX": new.topic_prefix,
        "RIFFLE_PARTITIONS": str(new.partitions),
        "RIFFLE_ARCHIVE": archive,
    }
    if as_json:
        click.echo(json.dumps({"copied": counts, "settings": variables}))
        return
    click.echo("copied: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    click.echo(
        "next: `riffle down`, these settings, `riffle up` (in a cluster: stop all workers first), producers to the new topics:"
    )
    for name, value in variables.items():
        click.echo(f"  export {name}={value}")
    click.echo("the tables and the archive are then rebuilt from the copies; delete the old topics when everything works")
