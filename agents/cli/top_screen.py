"""The screen and the lines of `riffle top`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agents.cli.screen import printable

__all__ = ["COLUMNS", "bars", "line_of", "screen_of"]

COLUMNS = (
    "at",
    "ready",
    "release",
    "events_per_s",
    "requests_per_s",
    "p50_ms",
    "p99_ms",
    "freshness_ms",
    "lag",
    "degraded_per_s",
    "refused_per_s",
)
"Columns of a line without a terminal. A value that is not known is empty."
BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"Characters of a curve: as many of the newest samples."
CURVES = (
    ("events", "events/s"),
    ("requests", "requests/s"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("freshness_ms", "event to slate ms"),
    ("lag", "lag, records"),
)


def line_of(look: Mapping[str, Any]) -> str:
    """Return one look as a line of `COLUMNS`, separated by tabs."""
    newest, worker = look["newest"], look["worker"]
    named = {
        "at": "at",
        "events_per_s": "events",
        "requests_per_s": "requests",
        "degraded_per_s": "degraded",
        "refused_per_s": "refused",
    }
    values = {"ready": int(worker["ready"]), "release": worker["release"]}
    found = [values[name] if name in values else newest.get(named.get(name, name)) for name in COLUMNS]
    return "\t".join("" if value is None else printable(str(value)) for value in found)


def bars(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Draw the newest `width` values, each as one character; a value that is not known is a blank."""
    newest = values[-width:]
    most = max((value for value in newest if value is not None), default=0.0)
    drawn = [" " if value is None else BLOCKS[min(int(value / most * 7.999), 7) if most > 0 else 0] for value in newest]
    return "".join(drawn).rjust(width)


def number(value: float | None) -> str:
    """Format a number in few characters; `-` if it is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def screen_of(
    look: Mapping[str, Any] | None, samples: Mapping[str, Sequence[Any]], recent: Sequence[Mapping[str, Any]], trouble: str
) -> RenderableType:
    """Return the whole view. `look`: as `Look.to_json`, None before the first answer. `trouble`: why there is no newer one."""
    parts: list[RenderableType] = []
    if trouble:
        parts.append(Text(printable(trouble), style="bold red"))
    if look is None:
        return Group(*parts)
    parts += [_head(look), Text(), _curves(samples), Text(), _side_by_side(look), Text(), _partitions(look)]
    if recent:
        parts += [Text(), _recent(recent)]
    return Group(*parts)


def _head(look: Mapping[str, Any]) -> Text:
    worker = look["worker"]
    text = Text(f"riffle {worker['address']}  up {worker['uptime_s']:,.0f} s  ")
    text.append("ready" if worker["ready"] else "not ready", style="bold green" if worker["ready"] else "bold red")
    text.append(f"  release {printable(worker['release'])}  {worker['items']:,} items  rules {worker['rules'] or 'none'}")
    for what in ("reasons", "warnings", "refused"):
        for name, why in worker[what].items():
            text.append(f"\n{what}: {printable(f'{name} {why}')}", style="yellow")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for n, name in enumerate(columns):
        table.add_column(Text(name, style="dim"), justify="left" if n == 0 else "right", no_wrap=True)
    return table


def _curves(samples: Mapping[str, Sequence[Any]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for key, name in CURVES:
        values = samples.get(key, ())
        table.add_row(Text(name), Text(number(values[-1] if values else None), style="bold"), Text(bars(values), style="cyan"))
    return table


def _side_by_side(look: Mapping[str, Any]) -> Table:
    pipeline, totals = look["pipeline"], look["totals"]
    stages = _table("stage", "ms/batch")
    for stage in pipeline["stages"]:
        stages.add_row(stage["name"], number(stage["seconds"] / stage["batches"] * 1000 if stage["batches"] else None))
    sources = _table("source", "retrieved", "shown")
    for source in pipeline["sources"]:
        if source["retrieved"] or source["shown"]:
            sources.add_row(printable(source["name"]), number(source["retrieved"]), number(source["shown"]))
    sums = _table("since the start", "")
    kinds = (("requests", ""), ("degraded", "degraded: "), ("dead_letters", "dead letter: "), ("dropped", "dropped: "))
    for kind, before in kinds:
        for name, n in sorted(totals[kind].items(), key=lambda pair: -pair[1])[:6]:
            if n:
                sums.add_row(printable(before + name), number(n))
    whole = Table(box=None, pad_edge=False, show_header=False, padding=(0, 4, 0, 0))
    whole.add_row(stages, sources, sums)
    return whole


def _partitions(look: Mapping[str, Any]) -> Table:
    table = _table("partition", "here", "owner", "applied", "not durable", "lag")
    for row in look["partitions"]:
        held = "applied" in row
        lag = sum(row["lag"].values()) if held else None
        owner = "this worker" if held else printable(str(row["owner"] or "unknown"))
        behind = row["applied"] - row["durable"] if held else None
        table.add_row(str(row["partition"]), row["role"], owner, number(row.get("applied")), number(behind), number(lag))
    return table


def _recent(recent: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("newest requests", "user", "k", "ms", "outcome")
    for one in recent:
        at = datetime.fromtimestamp(one["at"] / 1000).astimezone().strftime("%H:%M:%S")
        table.add_row(at, printable(one["user_id"])[:24], str(one["k"]), number(one["ms"]), one["outcome"])
    return table
