"""Memory of a worker at full rate, for minutes: does it stay flat?

soak.py [--minutes 10] [--users 1000000] [--items 20000] [--json]

Events come as fast as the worker applies them, with at most 50,000 waiting. Prints resident memory every 15 s, and the growth
per minute over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import numpy as np
from common import get, instance, resident_mb, stack, worker
from ingest import applied

from schemas.records import Interaction, Item
from streams.produce import produce_events, produce_items

ROUND = 50_000
EVERY_S = 15.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--users", type=int, default=1_000_000)
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    rng = np.random.default_rng(5)
    samples: list[tuple[float, float, int]] = []
    with stack() as running:
        settings = instance(running)
        asyncio.run(
            produce_items(settings, (Item(f"i{k}", f"title {k % 97}", categories=(f"c{k % 20}",)) for k in range(asked.items)))
        )
        with worker(settings) as pid:
            started, sent, next_sample = time.monotonic(), 0, 0.0
            while (now := time.monotonic() - started) < asked.minutes * 60:
                who, what = rng.integers(0, asked.users, ROUND).tolist(), (rng.zipf(1.1, ROUND) % asked.items).tolist()
                events = (
                    Interaction(f"{sent + k:016x}", f"u{who[k]}", f"i{what[k]}", 1_700_000_000_000 + sent + k, "click")
                    for k in range(ROUND)
                )
                asyncio.run(produce_events(settings, events))
                sent += ROUND
                while (done := applied([settings])) < sent - ROUND:
                    time.sleep(0.05)
                if now >= next_sample:
                    samples.append((round(now, 1), round(resident_mb(pid), 1), int(done)))
                    next_sample = now + EVERY_S
                    if not asked.json:
                        print(f"{now:7.1f} s  {samples[-1][1]:8.1f} MB  {int(done):>10} events", flush=True)
            seconds = time.monotonic() - started
            total = applied([settings])
            assert get(settings, "/healthz")
    half = np.asarray(samples[len(samples) // 2 :])
    slope = float(np.polyfit(half[:, 0] / 60, half[:, 1], 1)[0]) if len(half) > 2 else 0.0
    out = {
        "events": int(total),
        "per_s": round(total / seconds),
        "peak_mb": max(s[1] for s in samples),
        "mb_per_minute": round(slope, 2),
    }
    print(json.dumps(out) if asked.json else out)


if __name__ == "__main__":
    main()
