"""Slates of many users over HTTP: alone, and in lists as `riffle recommend` asks for them, beside users who are served.

lists.py [--items 5000] [--users 4000] [--json]

Each way is measured in turn, `--rounds` times; the median is printed. Meanwhile other requests come at 10 a second with the
default deadline, and their rejections are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from common import await_ready, fill, instance, stack, worker

from agents.cli.slate_lists import SlateLists
from schemas.settings import Settings

WAYS = {
    "alone, 8 in flight": (1, 0),
    "lists of 50, 1 in flight": (50, 1),
    "lists of 50, 2 in flight": (50, 2),
    "lists of 100, 1 in flight": (100, 1),
    "lists of 100, 2 in flight": (100, 2),
    "lists of 100, 4 in flight": (100, 4),
}
"Size of lists, and number of lists in flight."


async def alone(settings: Settings, users: list[str], in_flight: int = 8) -> int:
    """Ask for each slate by a request of its own; returns the number of refusals, after which a request is sent again."""
    left, refused = iter(users), 0

    async def some(session: aiohttp.ClientSession) -> None:
        nonlocal refused
        for user in left:
            while True:
                async with session.post("/v1/recommend?deadline_ms=10000", json={"user_id": user, "k": 10}) as response:
                    if response.status == 200:
                        await response.json()
                        break
                refused += 1

    async with aiohttp.ClientSession(settings.web) as session:
        await asyncio.gather(*(some(session) for _ in range(in_flight)))
    return refused


async def listed(settings: Settings, users: list[str], size: int, parallel: int) -> int:
    lists = SlateLists(settings.web, {"k": 10}, 10_000, size, parallel)
    found = [answer async for batch in lists.slates(users) for answer in batch]
    assert len(found) == len(users)
    return lists.counts["refused"]


async def beside(settings: Settings, work: Callable[[], Awaitable[int]]) -> dict[str, Any]:
    """Run `work` while other users are served, one every 0.1 s."""
    waited: list[float] = []
    rejected = 0

    async def serve(session: aiohttp.ClientSession, n: int) -> None:
        nonlocal rejected
        started = time.perf_counter()
        async with session.get(f"/v1/recommend/u{n}") as response:
            await response.read()
            rejected += response.status != 200
        waited.append(time.perf_counter() - started)

    async with aiohttp.ClientSession(settings.web) as session:
        task, started, served = asyncio.ensure_future(work()), time.perf_counter(), []
        while not task.done():
            served.append(asyncio.create_task(serve(session, len(served))))
            await asyncio.wait({task}, timeout=0.1)
        seconds = time.perf_counter() - started
        await asyncio.gather(*served)
    slow = sorted(waited)[int(0.95 * (len(waited) - 1))]
    return {
        "seconds": seconds,
        "refused": task.result(),
        "others": len(waited),
        "others rejected": rejected,
        "others' p95 ms": slow * 1e3,
    }


async def measure(settings: Settings, users: list[str], rounds: int) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in WAYS}
    await listed(settings, users[:500], 100, 1)
    for _ in range(rounds):
        for name, (size, parallel) in WAYS.items():
            work = (lambda s=size, p=parallel: listed(settings, users, s, p)) if parallel else (lambda: alone(settings, users))
            found[name].append(await beside(settings, work))
    out: dict[str, Any] = {}
    for name, results in found.items():
        middle = {key: statistics.median(result[key] for result in results) for key in results[0]}
        out[name] = {
            "slates_per_s": round(len(users) / middle["seconds"]),
            "sent_again": round(middle["refused"]),
            "others_rejected_%": round(100 * middle["others rejected"] / middle["others"], 1),
            "others_p95_ms": round(middle["others' p95 ms"]),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--users", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with stack() as on:
        settings = instance(on)
        fill(settings, 10 * asked.users, asked.users, asked.items, "uniform")
        with worker(settings):
            await_ready(settings)
            found = asyncio.run(measure(settings, [f"u{n}" for n in range(asked.users)], asked.rounds))
    if asked.json:
        print(json.dumps(found))
    else:
        for name, figures in found.items():
            print(name, ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
