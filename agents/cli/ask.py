"""`riffle ask`."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.parse
from collections.abc import Awaitable, Callable
from typing import Any

import click
from rich.console import Console

from agents.cli import asking
from agents.cli.own import own_settings
from agents.cli.screen import on_one_line, plain_console, print_table
from agents.cli.states import web_of
from agents.web.caller import Caller
from schemas.click_types import Whole
from schemas.errors import DeadlineExceeded, NotReady
from schemas.parsing import whole_number
from schemas.settings import Settings
from streams.kafka.client import RiffleClient

__all__ = ["ask", "ask_until", "print_slate", "request_slate", "title_of"]

PASSING = frozenset({"not_ready", "registry_unavailable"})
"Codes of answers that a later request may not get."
FIRST_S, MOST_S = 0.1, 1.0
"Seconds before a request is sent again, doubled each time, and their maximum."


async def ask_until(ask: Callable[[int], Awaitable[dict[str, Any]]], deadline_ms: int) -> dict[str, Any]:
    """Return the answer of `ask`, which gets the milliseconds that are left. It is called again while the worker is not ready.

    Raises:
        NotReady: it was still so at the deadline, or will not pass.
        DeadlineExceeded: no answer came.
    """
    clock = asyncio.get_running_loop().time
    end, pause_s = clock() + deadline_ms / 1000, FIRST_S
    last: NotReady | None = None
    while True:
        try:
            return await ask(max(1, round((end - clock()) * 1000)))
        except NotReady as exc:
            if exc.code not in PASSING:
                raise
            last = NotReady(exc.code, f"{exc.message} (still so after {deadline_ms} ms; --deadline-ms waits longer)", exc.field)
        except DeadlineExceeded:
            if last is None:
                raise
        if end - clock() <= pause_s:
            raise last
        await asyncio.sleep(pause_s)
        pause_s = min(MOST_S, 2 * pause_s)


def request_slate(settings: Settings, body: dict[str, Any], deadline_ms: int) -> dict[str, Any]:
    """Ask for one slate over Kafka, as `ask_until`; raises RiffleError, KafkaError."""

    async def run() -> dict[str, Any]:
        client = RiffleClient(settings)
        try:
            await client.start()
            return await ask_until(lambda left_ms: client.ask(body, left_ms), deadline_ms)
        finally:
            await client.stop()

    return asyncio.run(run())


def title_of(settings: Settings, item_id: str) -> str:
    """Look up an item's title by HTTP; empty when no worker answers."""
    try:
        url = f"{web_of(settings)}/v1/items/{urllib.parse.quote(item_id, safe='')}"
        found = asking.ask(url, 2.0, caller=Caller(settings.http)).body
    except NotReady:
        return ""
    return str(found["title"]) if isinstance(found, dict) and isinstance(found.get("title"), str) else ""


def print_slate(settings: Settings, slate: dict[str, Any], console: Console) -> None:
    """Print a slate for users, with explanations if requested."""
    console.print(f"for {on_one_line(slate['user_id'])}")
    rows = [
        (str(position), item["item_id"], title_of(settings, item["item_id"]), f"{item['score']:.3g}", _reasons(item))
        for position, item in enumerate(slate["items"], 1)
    ]
    names = ("rank", "item", "title", "score", "retrieved by")
    if rows:
        wide, right = ("item", "title", "retrieved by"), ("rank", "score")
        print_table(console, names, rows, fold=wide, right=right, lines=("retrieved by",))
    else:
        console.print(
            "no items are left: the catalogue is empty (riffle load DIR), or all of its items are seen, excluded, "
            "unavailable or in other categories"
        )
    if dropped := _dropped(slate):
        console.print(f"filters dropped: {dropped}")
    took = sum(slate["timings_ms"].values())
    as_of = slate["as_of"]
    where = f"partition {as_of['partition']}, offset {as_of['offset']}" if as_of else "no event"
    degraded = f"; degraded: {', '.join(slate['degraded'])}" if slate["degraded"] else ""
    arm = "" if slate["arm"] == "default" else f", arm {slate['arm']}"
    console.print(f"release {slate['release']}{arm}, {took:.1f} ms in the pipeline, as of {where}{degraded}")


def _reasons(item: dict[str, Any]) -> str:
    """Sources of an item. If explained, with the score from each, and the ranker's predictions."""
    explanation = item.get("explanation") or {}
    scores, heads = explanation.get("sources", {}), explanation.get("heads", {})
    lines = [", ".join(f"{name} {scores[name]:.3g}" if name in scores else name for name in item["sources"])]
    if heads:
        lines.append("expects " + ", ".join(f"{action} {chance:.3g}" for action, chance in heads.items()))
    if rules := explanation.get("rules"):
        lines.append("moved by " + ", ".join(rules))
    return "\n".join(lines)


def _dropped(slate: dict[str, Any]) -> str:
    """Number of candidates that each filter dropped; empty if not requested. It is the same for every item of a slate."""
    explanation: dict[str, Any] = next((item["explanation"] for item in slate["items"] if item.get("explanation")), {})
    return ", ".join(f"{name} {count}" for name, count in explanation.get("dropped", {}).items())


@click.command()
@click.argument("user")
@click.option("-k", type=Whole(), default=10, show_default=True, help="Number of items.")
@click.option(
    "--explain", is_flag=True, help="Show the scores of sources and ranker, and the numbers of candidates that filters dropped."
)
@click.option("--repeats", is_flag=True, help="Items that the user has interacted with may be shown.")
@click.option("--category", multiple=True, help="Include only these categories.")
@click.option("--exclude", multiple=True, help="Exclude these items.")
@click.option("--context", multiple=True, metavar="NAME=VALUE", help="A context value, such as device=tv.")
@click.option("--after", help="partition:offset of an event that the slate must reflect.")
@click.option("--deadline-ms", type=Whole(1, 60_000), default=5_000, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The slate as one line of JSON.")
def ask(  # noqa: PLR0913 - an argument for each option
    user: str,
    k: int,
    explain: bool,
    repeats: bool,
    category: tuple[str, ...],
    exclude: tuple[str, ...],
    context: tuple[str, ...],
    after: str | None,
    deadline_ms: int,
    as_json: bool,
) -> None:
    """Ask for a slate over Kafka. While a worker restores the user's partition, it is asked again until the deadline.

    Example: riffle ask u0001 -k 5 --explain
    """
    settings = own_settings()
    body: dict[str, Any] = {"user_id": user, "k": k, "explain": explain, "repeats": repeats}
    body |= {"categories": list(category), "exclude": list(exclude)}
    if unnamed := [entry for entry in context if entry.find("=") < 1]:
        raise click.BadParameter(f"{unnamed[0]!r} is not NAME=VALUE", param_hint="--context")
    body["context"] = {name: value for name, _, value in (entry.partition("=") for entry in context)}
    if after:
        try:
            partition, offset = map(whole_number, after.split(":"))
        except ValueError as exc:
            raise click.BadParameter("write it as partition:offset", param_hint="--after") from exc
        body["after"] = {"partition": partition, "offset": offset}
    slate = request_slate(settings, body, deadline_ms)
    if as_json:
        click.echo(json.dumps(slate))
    elif "error" in slate:
        click.echo(f"riffle: {slate['error']['message']}", err=True)
    else:
        print_slate(settings, slate, plain_console())
    if "error" in slate:
        sys.exit(1)
