"""Events per second of the whole feature update in one worker, beside the peers on the same broker.

ingest.py [--events 100000] [--users 20000] [--items 20000] [--keys zipf|even] [--peers PATH/ingest.py] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

from common import await_ready, fill, get, peers, stack, worker

APPLIED = re.compile(r'riffle_events_total\{outcome="applied"\} (\S+)')


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--events", type=int, default=100_000)
    options.add_argument("--users", type=int, default=20_000)
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--keys", choices=("zipf", "even"), default="zipf")
    options.add_argument("--peers", type=Path, help="script of the peers; without it only Riffle runs")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with stack() as settings:
        fill(settings, asked.events, asked.users, asked.items, asked.keys)
        with worker(settings):
            first: tuple[float, float] | None = None
            until = time.monotonic() + 300
            while time.monotonic() < until:
                found = APPLIED.search(get(settings, "/metrics"))
                applied = float(found.group(1)) if found else 0.0
                if applied and first is None:
                    first = (time.perf_counter(), applied)
                if applied >= asked.events:
                    break
                time.sleep(0.02)
            else:
                raise SystemExit("the events were not applied within 300 s")
            assert first is not None
            rate = (asked.events - first[1]) / (time.perf_counter() - first[0])
            await_ready(settings)
        figures: dict[str, object] = {"riffle": round(rate)}
        if asked.peers:
            counts = ("--events", str(asked.events), "--users", str(asked.users), "--keys", asked.keys)
            figures |= peers(asked.peers, settings, *counts)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, per_s in figures.items():
            ratio = f"  riffle is {rate / per_s:.2f} times this" if isinstance(per_s, int) and name != "riffle" else ""
            print(f"{name:12s} {per_s:>10} events/s{ratio}")


if __name__ == "__main__":
    main()
