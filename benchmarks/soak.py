"""Memory of a worker at full rate, for minutes: does it stay flat?

soak.py [--minutes 10] [--after 4] [--users 20000] [--items 20000] [--json]

Events come as fast as the worker applies them, with some 200,000 waiting. Prints resident memory every 15 s. The first
minutes fill rows and are not counted; of the others the smallest, the median and the largest sample, and the growth per
minute: the median over all pairs of samples (Sen 1968), because what is held swings by some hundred MB between flushes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time

import numpy as np
from common import await_ready, get, instance, resident_mb, stack, worker
from firehose import Firehose
from ingest import applied

from schemas.records import Item
from streams.kafka.produce import produce_items

ROUND, WAITING = 50_000, 200_000
EVERY_S = 15.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--after", type=float, default=4.0, help="minutes before them")
    options.add_argument("--users", type=int, default=20_000)
    options.add_argument("--items", type=int, default=20_000)
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    samples: list[tuple[float, float, int]] = []
    with stack() as running:
        settings = instance(running)
        asyncio.run(
            produce_items(settings, (Item(f"i{k}", f"title {k % 97}", categories=(f"c{k % 20}",)) for k in range(asked.items)))
        )
        hose = Firehose(settings, asked.users, asked.items)
        with worker(settings) as pid:
            await_ready(settings)
            started, next_sample = time.monotonic(), 0.0
            while (now := time.monotonic() - started) < (asked.after + asked.minutes) * 60:
                asyncio.run(hose.send(ROUND))
                while (done := applied([settings])) < hose.sent - WAITING:
                    time.sleep(0.02)
                if now >= next_sample:
                    samples.append((round(now, 1), round(resident_mb(pid), 1), int(done)))
                    next_sample = now + EVERY_S
                    if not asked.json:
                        print(f"{now:7.1f} s  {samples[-1][1]:8.1f} MB  {int(done):>10} events", flush=True)
            seconds = time.monotonic() - started
            total = applied([settings])
            assert get(settings, "/healthz")
    if sum(sample[0] >= asked.after * 60 for sample in samples) < 2:
        raise SystemExit(f"fewer than two samples after the first {asked.after} minutes: raise --minutes")
    counted = np.asarray([sample for sample in samples if sample[0] >= asked.after * 60])
    later, earlier = np.triu_indices(len(counted), 1)[::-1]
    slopes = (counted[later, 1] - counted[earlier, 1]) / (counted[later, 0] - counted[earlier, 0]) * 60
    out = {
        "events": int(total),
        "per_s": round(total / seconds),
        "minutes": asked.minutes,
        "mb": {
            name: round(float(of(counted[:, 1])), 1)
            for name, of in (("least", np.min), ("median", np.median), ("most", np.max))
        },
        "mb_per_minute": round(float(np.median(slopes)), 2),
    }
    print(json.dumps(out) if asked.json else out)


if __name__ == "__main__":
    main()
