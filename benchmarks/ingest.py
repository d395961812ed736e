"""Events per second of the whole feature update, compared with peers on the same broker, and the time of each part.

ingest.py [--events 100000] [--users 20000] [--items 20000] [--keys zipf|even] [--peers PATH/ingest.py] [--grow] [--json]

Riffle: Avro decode, duplicates, Bloom seen-set, history, affinities, counters, statistics, co-visits, RocksDB, changelog,
offsets.
--grow also measures 1, 2 and 4 partitions with as many workers, and 1,000 to 1,000,000 users, with even and with Zipf keys.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path

from common import fill, get, instance, peers, port, resident_mb, stack, worker

from schemas.settings import Settings

APPLIED = re.compile(r'riffle_events_total\{outcome="applied"\} (\S+)')
PART = re.compile(r'riffle_work_seconds_total\{part="([^"]+)"\} (\S+)')
PATIENCE_S = 300
WARMING = 100_000
"Number of warm-up events before the first measurement."


def applied(workers: list[Settings]) -> float:
    """Number of events applied by all workers."""
    found = [APPLIED.search(get(settings, "/metrics")) for settings in workers]
    return sum(float(match.group(1)) for match in found if match)


def measure(
    on: Settings, events: int, users: int, items: int, keys: str, workers: int = 1, partitions: int = 4
) -> dict[str, object]:
    """Measure events per second from the first to the last applied event, and seconds of work by part."""
    settings = instance(on, partitions)
    fill(settings, events, users, items, keys)
    all_of_them = [settings, *(replace(settings, home=settings.home / f"w{n}", web_port=port()) for n in range(1, workers))]
    with contextlib.ExitStack() as running:
        pids = [running.enter_context(worker(each)) for each in all_of_them]
        first: tuple[float, float] | None = None
        until = time.monotonic() + PATIENCE_S
        done = 0.0
        while done < events:
            if time.monotonic() > until:
                raise SystemExit(f"the events were not applied within {PATIENCE_S} s: {settings.home}/worker.log")
            time.sleep(0.1)  # polling costs the worker time
            done = applied(all_of_them)
            if done and first is None:
                first = (time.perf_counter(), done)
        assert first is not None
        seconds = time.perf_counter() - first[0]
        parts: dict[str, float] = {}
        for each in all_of_them:
            for name, value in PART.findall(get(each, "/metrics")):
                parts[name] = parts.get(name, 0.0) + float(value)
        memory = max(resident_mb(pid) for pid in pids)
    return {
        "per_s": round((events - first[1]) / max(seconds, 1e-9)),
        "us_per_event": {name: round(value / events * 1e6, 2) for name, value in sorted(parts.items(), key=lambda p: -p[1])},
        "resident_mb": round(memory),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=100_000)
    options.add_argument("--users", type=int, default=20_000)
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--keys", choices=("zipf", "even"), default="zipf")
    options.add_argument("--peers", type=Path, help="script of the peers; without it only Riffle runs")
    options.add_argument("--grow", action="store_true", help="how it grows with partitions, workers and people")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    grown: dict[str, object] = {}
    with stack() as running:
        # the peers run later, on a broker whose loops are already compiled: warm up for equal conditions
        measure(running, WARMING, asked.users, asked.items, asked.keys)
        mine = measure(running, asked.events, asked.users, asked.items, asked.keys)
        figures: dict[str, object] = {"riffle": mine["per_s"]}
        if asked.peers:
            counts = ("--events", str(asked.events), "--users", str(asked.users), "--keys", asked.keys)
            figures |= peers(asked.peers, running, *counts)
        if asked.grow:
            for n in (1, 2, 4):
                grown[f"{n} partitions, 1 worker"] = measure(running, asked.events, asked.users, asked.items, asked.keys, 1, n)[
                    "per_s"
                ]
            for n in (2, 4):
                grown[f"4 partitions, {n} workers"] = measure(running, asked.events, asked.users, asked.items, asked.keys, n)[
                    "per_s"
                ]
            for users in (1_000, 20_000, 1_000_000):
                for keys in ("zipf", "even"):
                    made = measure(running, asked.events, users, asked.items, keys)
                    grown[f"{users} people, {keys} keys"] = made["per_s"]
    if asked.json:
        print(json.dumps({**figures, "us_per_event": mine["us_per_event"], "resident_mb": mine["resident_mb"], "grown": grown}))
        return
    for name, per_s in figures.items():
        ratio = (
            f"  riffle is {int(str(figures['riffle'])) / per_s:.2f} times this"
            if isinstance(per_s, int) and name != "riffle"
            else ""
        )
        print(f"{name:12s} {per_s:>10} events/s{ratio}")
    print(f"\nwhere riffle's time goes, µs per event (memory {mine['resident_mb']} MB):")
    for name, value in dict(mine["us_per_event"]).items():  # type: ignore[call-overload]
        print(f"  {name:30s} {value:8.2f}")
    for name, per_s in grown.items():
        print(f"{name:30s} {per_s:>10} events/s")


if __name__ == "__main__":
    main()
