"""The costs from which `riffle size` computes, measured at three sizes, and its forecasts beside what was measured.

sizing.py [--small 20000] [--sizes 1 3 9] [--json]

Size n has n times --small events, a quarter as many users and a twentieth as many items. The forecast for each size uses the
costs that `riffle size` holds (`agents/sizing/costs.toml`), so that three sizes show whether they are straight lines, and
whether the file still holds. CPU is the worker's own, of all its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import redis
from aiokafka import AIOKafkaConsumer, TopicPartition
from common import await_ready, fill, get, instance, resident_mb, stack, worker
from ingest import PATIENCE_S, applied
from recover import RESTORED

from agents.sizing.costs import COSTS
from models.items.store import ItemStore
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction
from schemas.settings import Settings
from streams.kafka.assignor import OWNER, STANDBY, place

FLUSHES = re.compile(r'riffle_flush_duration_seconds_count\{table="users"\} (\S+)')
QUIET_S, SPREAD_S, TRICKLE = 8.0, 12.0, 200
TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process (proc(5), utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def flushes(settings: Settings) -> float:
    return sum(float(n) for n in FLUSHES.findall(get(settings, "/metrics")))


async def ends(settings: Settings, name: str) -> int:
    """Sum of a topic's end offsets."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        topic = settings.topic(name)
        partitions = [TopicPartition(topic, n) for n in range(settings.partitions if name != "item-stats" else 1)]
        return sum((await consumer.end_offsets(partitions)).values())
    finally:
        await consumer.stop()


def folder_bytes(folder: Path) -> int:
    """Bytes on disk below a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def topic_bytes(on: Settings, settings: Settings, name: str) -> int:
    """Bytes of a topic's segments on the broker's disk."""
    held = on.data_dir.rglob(f"{settings.topic(name)}-[0-9]*/*.log")
    return sum(path.stat().st_size for path in held)


def until_applied(settings: Settings, count: int) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while applied([settings]) < count:
        if time.monotonic() > ends_at:
            raise SystemExit(f"the events were not applied within {PATIENCE_S} s: {settings.home}/worker.log")
        time.sleep(0.2)


def measure(on: Settings, events: int) -> dict[str, float]:
    """Run a worker over a catalogue and events; returns totals."""
    users, items = events // 4, events // 20
    settings = instance(on)
    with worker(settings) as pid:
        await_ready(settings)
        start = cpu_s(pid)
        idle_mb = resident_mb(pid)
        time.sleep(QUIET_S)
        idle = (cpu_s(pid) - start) / QUIET_S
    store = redis.Redis(port=on.redis_port)
    held, others = store.info("memory")["used_memory"], store.dbsize()
    asyncio.run(_items(settings, items))
    with worker(settings) as pid:
        await_ready(settings)
        catalogue = cpu_s(pid) - start
    fill_events(settings, events, users, items)
    with worker(settings) as pid:
        await_ready(settings)
        until_applied(settings, events)
        spent, flushed = cpu_s(pid), flushes(settings)
        time.sleep(2.0)
        resident = resident_mb(pid)
        statistics, quiet, before = asyncio.run(ends(settings, "item-stats")), cpu_s(pid), flushes(settings)
        asyncio.run(_trickle(settings, users, items))
        until_applied(settings, events + int(SPREAD_S * TRICKLE))
        time.sleep(2.0)
        summaries, mirrored = store.info("memory")["used_memory"] - held, store.dbsize() - others
        trickled, many = cpu_s(pid) - quiet, flushes(settings) - before
    tables = settings.data_dir / "tables"
    disk = folder_bytes(tables)
    log = settings.home / "worker.log"
    shutil.rmtree(tables)
    written = log.stat().st_size
    with worker(settings):
        await_ready(settings)
        found = RESTORED.findall(log.read_bytes()[written:].decode(errors="replace"))
    return {
        "events": events,
        "users": users,
        "items": items,
        "idle_cores": idle,
        "idle_mb": idle_mb,
        "catalogue_cpu_s": catalogue,
        "events_cpu_s": spent - start - catalogue,
        "flushes": flushed,
        "resident_mb": resident,
        "redis_bytes": summaries,
        "redis_users": mirrored,
        "item_stats_records": statistics,
        "tables_bytes": disk,
        "interactions_bytes": topic_bytes(on, settings, "interactions"),
        "changelog_bytes": topic_bytes(on, settings, "users-changelog"),
        "trickle_cpu_s": trickled - idle * (SPREAD_S + 2.0),
        "trickle_flushes": many,
        "recovery_records": sum(int(n) for n, _ in found),
        "recovery_s": max((float(s) for _, s in found), default=0.0),
    }


async def _items(settings: Settings, items: int) -> None:
    from schemas.records import Item
    from streams.kafka.produce import produce_items

    await produce_items(settings, (Item(f"i{k}", f"title {k % 97}", categories=(f"c{k % 20}",)) for k in range(items)))


def fill_events(settings: Settings, events: int, users: int, items: int) -> None:
    fill(settings, events, users, items, "even")


async def _trickle(settings: Settings, users: int, items: int) -> None:
    """Produce a few events a second, so that flushes cost more than events do."""
    from streams.kafka.produce import produce_events

    rng = np.random.default_rng(3)
    for second in range(int(SPREAD_S)):
        who, what = rng.integers(0, users, TRICKLE), rng.integers(0, items, TRICKLE)
        now = int(time.time() * 1e3)
        made = (Interaction(f"t{second}-{n}", f"u{who[n]}", f"i{what[n]}", now, "click") for n in range(TRICKLE))
        since = time.monotonic()
        await produce_events(settings, made)
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - since)))


def rows(lengths: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)) -> dict[int, int]:
    """Bytes of a user's record by the number of its events, on a million items by a Zipf law."""
    rng, found = np.random.default_rng(0), {}
    for length in lengths:
        users = max(2_000 // length, 2)
        table = UserTable(ItemStore(), lambda keys: [None] * len(keys))
        base = 1_700_000_000_000
        made = [
            Interaction(f"e{u}-{e}", f"u{u}", f"i{rng.zipf(1.1) % 1_000_000}", base + 1_000 * e, "click")
            for e in range(length)
            for u in range(users)
        ]
        for k in range(0, len(made), 4_000):
            table.apply(EventColumns.of(made[k : k + 4_000], range(len(made[k : k + 4_000]))))
        found[length] = round(float(np.mean([len(row) for row in table.take().values() if row])))
    return found


def placing(members: tuple[int, ...] = (500, 2_000, 8_000)) -> dict[int, float]:
    """Seconds that the leader of a group takes to place partitions when one of as many members is lost."""
    found = {}
    for n in members:
        names = {f"m{k:05d}": dict[int, int]() for k in range(n)}
        first = place(range(n), names, 1)
        held = {m: {**dict.fromkeys(first.standby[m], STANDBY), **dict.fromkeys(first.owned[m], OWNER)} for m in names}
        del held["m00003"]
        since = time.process_time()
        place(range(n), held, 1)
        found[n] = round(time.process_time() - since, 4)
    return found


def forecast(one: dict[str, float]) -> dict[str, float]:
    """What the costs of `riffle size` say for a measured size."""
    c, per_user = COSTS, one["events"] / one["users"]
    return {
        "catalogue_cpu_s": one["items"] * c.item_decode_s,
        "events_cpu_s": one["events"] * c.event_s + one["flushes"] * c.flush_s,
        "trickle_cpu_s": SPREAD_S * TRICKLE * c.event_s + one["trickle_flushes"] * c.flush_s,
        "redis_bytes": one["redis_users"] * c.summary_bytes,
        "interactions_bytes": one["events"] * c.event_bytes,
        "tables_bytes": one["users"] * c.row_bytes(per_user) * c.table_overhead,
        "recovery_s": c.restore_open_s + one["recovery_records"] * c.restore_s,
        "resident_mb": (c.process_bytes + one["items"] * c.item_memory(4) + one["users"] * c.row_bytes(per_user)) / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 9])
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: list[dict[str, Any]] = []
    with stack() as running:
        for n in asked.sizes:
            one = measure(running, n * asked.small)
            said = forecast(one)
            ratios = {name: round(one[name] / max(value, 1e-9), 2) for name, value in said.items()}
            measured = {name: round(value, 4) for name, value in one.items()}
            found.append({"measured": measured, "measured_by_forecast": ratios})
            print(json.dumps(found[-1]) if asked.json else json.dumps(found[-1], indent=1), flush=True)
    print(json.dumps({"row_bytes": rows(), "placing_s": placing()}), flush=True)


if __name__ == "__main__":
    main()
