"""`riffle ask`: one request over Kafka, its slate as a table."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import aiohttp
import click
import orjson
from rich.console import Console
from rich.table import Table
from yarl import URL

from schemas.errors import RiffleError
from schemas.records import Request, Slate
from schemas.validation import request_from
from streams.client import RiffleClient
from streams.settings import Settings

__all__ = ["ask", "titles"]

TITLES_TIMEOUT_S = 2.0


@click.command(epilog="Example: riffle ask 42 -k 5 --explain --category Comedy")
@click.argument("user_id", metavar="USER")
@click.option("-k", "k", default=10, show_default=True, help="Items wanted.")
@click.option("--explain", is_flag=True, help="Say why each item is there.")
@click.option("--category", multiple=True, help="Only items of this category; may repeat.")
@click.option("--exclude", multiple=True, metavar="ITEM", help="Leave this item out; may repeat.")
@click.option("--after", metavar="P:O", help="Reflect the event with this token (partition:offset).")
@click.option("--deadline-ms", default=2_000, show_default=True, help="Milliseconds to wait for the answer.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON: the slate of the contract.")
def ask(  # noqa: PLR0917
    user_id: str,
    k: int,
    explain: bool,
    category: Sequence[str],
    exclude: Sequence[str],
    after: str | None,
    deadline_ms: int,
    as_json: bool,
) -> None:
    """Ask for USER's slate over Kafka and print it with titles and sources."""
    settings = Settings.from_env()
    body: dict[str, object] = {"user_id": user_id, "k": k, "explain": explain}
    body |= {"categories": list(category), "exclude": list(exclude), "after": _after(after)}
    try:
        request = request_from(body, request_id=uuid4().hex)
        slate, names = asyncio.run(_ask(settings, request, deadline_ms, with_titles=not as_json))
    except RiffleError as error:
        if as_json:
            click.echo(orjson.dumps({"error": error.to_json()}))
            raise SystemExit(1) from error
        raise click.ClickException(f"{error.message} ({error.code})") from error
    if as_json:
        click.echo(orjson.dumps(slate.to_json()))
    else:
        _show(slate, names, explain=explain)


def _after(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    partition, _, offset = text.partition(":")
    if not (partition.isdecimal() and offset.isdecimal()):
        raise click.BadParameter("must be partition:offset", param_hint="--after")
    return {"partition": int(partition), "offset": int(offset)}


async def _ask(
    settings: Settings, request: Request, deadline_ms: int, *, with_titles: bool
) -> tuple[Slate, dict[str, str]]:
    async with RiffleClient(settings) as client:
        slate = await client.recommend(request, deadline_ms)
    names = await titles(settings.web, [item.item_id for item in slate.items]) if with_titles else {}
    return slate, names


async def titles(web: str, item_ids: Sequence[str]) -> dict[str, str]:
    """Titles of items over HTTP; items without one are left out, and all of them when HTTP does not answer."""

    async def title(session: aiohttp.ClientSession, item_id: str) -> tuple[str, str]:
        async with session.get(URL(web) / "v1" / "items" / item_id) as response:
            body = await response.json() if response.status == 200 else {}
            return item_id, str(body.get("title") or "")

    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TITLES_TIMEOUT_S)) as session:
            found = await asyncio.gather(*(title(session, item_id) for item_id in item_ids))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return {}
    return {item_id: name for item_id, name in found if name}


def _show(slate: Slate, names: dict[str, str], *, explain: bool) -> None:
    console = Console()
    table = Table(title=f"Slate for {slate.user_id}", caption=_caption(slate), caption_justify="left")
    table.add_column("#", justify="right")
    table.add_column("item")
    table.add_column("title", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("sources")
    if explain:
        table.add_column("why", overflow="fold")
    for rank, item in enumerate(slate.items, 1):
        row = [str(rank), item.item_id, names.get(item.item_id, ""), f"{item.score:.4f}", ", ".join(item.sources)]
        table.add_row(*row, *([_why(item.explanation)] if explain else []))
    console.print(table)


def _why(explanation: object) -> str:
    return orjson.dumps(explanation, default=str).decode() if explanation else ""


def _caption(slate: Slate) -> str:
    parts = [f"release {slate.release or '-'}", f"arm {slate.arm or '-'}"]
    if slate.as_of is not None:
        parts.append(f"as of {slate.as_of.partition}:{slate.as_of.offset}")
    if slate.degraded:
        parts.append(f"degraded: {', '.join(slate.degraded)}")
    parts.append(" ".join(f"{stage} {ms:.1f} ms" for stage, ms in slate.timings_ms.items()))
    return " · ".join(parts)
