"""Latency of recommendation requests over Kafka, beside an echo on the same broker.

serve.py [--items 10000] [--events 50000] [--peers PATH/echo.py] [--json]

One request in flight, then open loop at 50 and 100 requests a second for 5 s: latency counts from the moment a request was due.
Then 300 requests at once with 250 ms each: how many got a slate, how many were told that there is no time, how many answers
came after the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
from common import await_ready, fill, instance, peers, stack, worker

from schemas.errors import RiffleError
from streams.client import RiffleClient
from streams.settings import Settings


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1e3, 2) for p in (50, 99)}


async def measure(settings: Settings, users: int) -> dict[str, object]:
    client = RiffleClient(settings)
    await client.start()
    rng = np.random.default_rng(3)
    failed = 0

    async def one(due: float | None = None) -> float:
        nonlocal failed
        start = due or time.perf_counter()
        try:
            answer = await client.ask({"user_id": f"u{rng.integers(users)}", "k": 10}, 5_000)
            failed += "error" in answer
        except RiffleError:
            failed += 1
        return time.perf_counter() - start

    for _ in range(50):
        await one()
    out: dict[str, object] = {"sequential": percentiles([await one() for _ in range(300)])}
    for rate in (50, 100):
        tasks, start = [], time.perf_counter()
        for k in range(rate * 5):
            due = start + k / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(due)))
        out[f"{rate}/s"] = percentiles(list(await asyncio.gather(*tasks)))
    out["burst of 300, 250 ms each"] = await burst(client, users)
    await client.stop()
    return {**out, "failed": failed}


async def burst(client: RiffleClient, users: int, count: int = 300, deadline_ms: int = 250) -> dict[str, int]:
    """All at once. `late`: answers that came when the client had given up; `unanswered`: requests it gave up on."""
    before = Counter(client.counters)
    found = {"slates": 0, "refused": 0}

    async def one(n: int) -> None:
        try:
            await client.ask({"user_id": f"u{n % users}", "k": 10}, deadline_ms)
            found["slates"] += 1
        except RiffleError:
            found["refused"] += 1

    await asyncio.gather(*(one(n) for n in range(count)))
    await asyncio.sleep(2)
    gave_up = client.counters["deadline"] - before["deadline"]
    found["refused"] -= gave_up
    return {**found, "unanswered": gave_up, "late": client.counters["late"] - before["late"]}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--items", type=int, default=10_000)
    options.add_argument("--events", type=int, default=50_000)
    options.add_argument("--peers", type=Path, help="script of the echo peers; without it only Riffle runs")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with stack() as running:
        settings = instance(running)
        fill(settings, asked.events, 2_000, asked.items, "zipf")
        with worker(settings):
            await_ready(settings)
            figures: dict[str, object] = {"riffle": asyncio.run(measure(settings, 2_000))}
        if asked.peers:
            figures |= peers(asked.peers, settings)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, values in figures.items():
            print(name, values)


if __name__ == "__main__":
    main()
