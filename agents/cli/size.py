"""`riffle size`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from agents.cli.screen import plain_console, print_table
from agents.sizing.costs import COSTS, described
from agents.sizing.plan import Load, Plan, plan
from schemas.click_types import Number, Whole

__all__ = ["size"]

MOST = 1e12
"Largest number of users, items, and events and requests a second."
NUMBER = Number(0, MOST)
PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@click.command()
@click.option("--users", type=NUMBER, default=1e6, show_default="1,000,000", help="Users with a record, active or not.")
@click.option("--items", type=NUMBER, default=1e5, show_default="100,000", help="Items of the catalogue.")
@click.option("--events", "events_per_s", type=NUMBER, default=1e3, show_default="1,000", help="Events a second at most.")
@click.option("--requests", "requests_per_s", type=NUMBER, default=100.0, show_default="100", help="Requests a second at most.")
@click.option("--history", type=NUMBER, default=200.0, show_default="200", help="Events of one user so far.")
@click.option("--days", type=Number(0, 36_500), default=30.0, show_default="30", help="Days that Kafka keeps events.")
@click.option("--standbys", type=Whole(0, 10), default=1, show_default="1", help="RIFFLE_STANDBYS.")
@click.option("--costs", "show_costs", is_flag=True, help="Print the costs instead, each with its unit and source.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON.")
def size(*, show_costs: bool, as_json: bool, **load: Any) -> None:
    """Forecast how large a deployment must be for a load: workers, memory, volumes, partitions, Kafka, the store of summaries,
    the times of a rebalance, a recovery and a start, and what limits it, the worst first.

    The forecast is computed from measured costs (--costs), most of them of small runs on two cores. It connects to nothing. The
    status is 1 if a limit is exceeded: then the load cannot be served as planned.

    Example: riffle size --users 1e9 --items 1e8 --events 1e6 --requests 1e5
    """
    if show_costs:
        _costs(as_json=as_json)
        return
    found = plan(Load(**load))
    if as_json:
        click.echo(json.dumps(as_json_of(found)))
    else:
        _print(found)
    if not found.fits:
        raise click.exceptions.Exit(1)


def as_json_of(found: Plan) -> dict[str, Any]:
    """The plan as JSON: names end in their unit."""
    parts = {name: asdict(getattr(found, name)) for name in ("load", "workers", "kafka", "store", "times")}
    limits = [{**asdict(limit), "share": limit.share} for limit in found.limits]
    return {**parts, "limits": limits, "fits": found.fits}


def digits(value: float) -> str:
    """A number with three digits, or all of those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def spelled(value: float, unit: str) -> str:
    """A number with three digits and its unit: `1.23 GB`, `3.5 min`, `40 %`."""
    if unit == "s":
        for size_s, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min")):
            if value >= 2 * size_s:
                return f"{digits(value / size_s)} {name}"
        return f"{value:.3g} s"
    for factor, prefix in PREFIXES:
        if value >= factor:
            return f"{digits(value / factor)} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def share_of(share: float) -> str:
    """A used part of a limit: percent up to the limit, then times."""
    return f"{share:.0%}" if share <= 1 else f"{share:,.2f} times" if share < 10 else f"{share:,.0f} times"


def _print(found: Plan) -> None:
    console, workers, kafka, times = plain_console(), found.workers, found.kafka, found.times
    loop = f"{workers.busy_cores:.0%} of a core" if workers.busy_cores < 10 else f"{workers.busy_cores:,.0f} cores"
    memory, disk = spelled(workers.memory_bytes, "B"), spelled(workers.volume_bytes, "B")
    pod = f"{workers.cores:.3g} cores, {memory} of memory, {disk} of disk"
    traffic = f"writes {spelled(kafka.write_bytes_per_s, 'B/s')}, reads {spelled(kafka.read_bytes_per_s, 'B/s')}"
    read = spelled(times.statistics_s, "s")
    rows = [
        ("workers", f"{workers.count:,}, each {pod}"),
        ("event loop of a worker", loop),
        ("partitions", f"{workers.partitions:,} (RIFFLE_PARTITIONS)"),
        ("Kafka", f"{kafka.brokers:,} brokers, {kafka.replicas:,} replicas, {spelled(kafka.retained_bytes, 'B')}, {traffic}"),
        ("store of summaries", f"{spelled(found.store.bytes, 'B')}, {found.store.writes_per_s:,.0f} writes/s"),
        ("rebalance", spelled(times.rebalance_s, "s")),
        (
            "a worker is lost",
            f"{spelled(times.lost_worker_s, 's')} until its partitions have an owner; copies answer meanwhile",
        ),
        ("a volume is lost", f"{spelled(times.lost_volume_s, 's')} until its rows are read again"),
        ("a machine's first start", f"{spelled(times.catalogue_s, 's')} for the catalogue, {read} for statistics"),
        ("a later start", f"{spelled(times.mapped_catalogue_s, 's')} for the catalogue, {read} for statistics"),
    ]
    print_table(console, ("what", "forecast"), rows, fold=("forecast",), header=False)
    console.print()
    used = [(one.name, share_of(one.share), f"{one.used:.3g} of {one.most:.3g} {one.unit}", one.remedy) for one in found.limits]
    print_table(console, ("limit", "used", "figures", "remedy"), used, fold=("remedy",), right=("used",))
    worst = found.limits[0]
    verdict = "fits" if found.fits else f"does not fit: {sum(limit.share > 1 for limit in found.limits)} limits are exceeded"
    console.print(f"\nThe load {verdict}. What breaks first: {worst.name}.")


def _costs(*, as_json: bool) -> None:
    entries: Mapping[str, Any] = described()
    if as_json:
        click.echo(json.dumps({"costs": {name: asdict(cost) for name, cost in entries.items()}, "rows": COSTS.rows}))
        return
    rows = [(name, f"{c.value:.4g}", c.unit, "measured" if c.measured else "assumed", c.by) for name, c in entries.items()]
    print_table(plain_console(), ("cost", "value", "unit", "how", "source"), rows, fold=("source",), right=("value",))
