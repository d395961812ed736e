"""Latency and limits of requests over Kafka and HTTP, with a trained release, beside an echo on the same broker.

serve.py DATASET [--release FOLDER|none] [--peers FOLDER] [--rates 100 200 400] [--seconds 8] [--only PART ...] [--json]

DATASET is a dataset folder; without --release, one is trained on it first (`riffle train --quick`). Broker, Redis, one worker,
the clients and a producer of events are processes of their own. Requests ask for 10 items with a deadline of 1 s, open loop:
latency counts from the time at which a request was due. The parts:

  kafka, http  one request in flight, then each rate, then 300 a second beside 1,000 events a second
  saturation   the highest rate with a p99 below 250 ms and no refusal, over both
  rerank       300 candidates over HTTP, all of which are returned: one in flight, 50 and 200 a second
  freshness    from the send of an event to a slate that reflects it, beside 1,000 events a second
  overload     three times the saturation over Kafka for 10 s, deadlines of 250 ms, and the time until latency is as before
  burst        300 simultaneous requests with deadlines of 250 ms right after a worker's start, three times
  remote       RIFFLE_RANKING=remote with one ranking process, and the same worker without it, by turns
  peers        FOLDER/echo.py: an echo of aiokafka (raw) and of stock Faust

In `burst` and `overload` time runs from the broker's stamp of a request to its stamp of the answer; `late` counts answers of
any kind that are stamped after the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import await_ready, get, instance, peers, port, stack, worker
from serving.clients import Clients, clients
from serving.events import events
from serving.remote import remote
from serving.sample import Sampler

from agents.cli.release import promote, run_training
from models.dataset.folder import Dataset
from models.release.source import take
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_events, produce_items

PARTS = ("kafka", "http", "saturation", "rerank", "freshness", "overload", "burst", "remote", "peers")
BESIDE, EVENTS = 300, 1_000
"Requests a second that are measured beside this many events a second."
DEADLINE_MS = 250
STEP_S, NEAR = 6, 1.1
"Duration of a step of the search for the saturation, and the ratio of passed to failed at which it ends."
STARTS = 3
NO_RELEASE = "none"
APPLIED = re.compile(r'riffle_events_total\{outcome="\w+"\} (\S+)')

Figures = dict[str, Any]


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(settings: Settings, folder: Path, sample: Path) -> int:
    """Produce the dataset, as `riffle load` does, and keep a sample of it; returns the number of events."""
    dataset = Dataset.open(folder)
    dataset.check()
    items = list(dataset.items())
    asyncio.run(produce_items(settings, items))
    sampler = Sampler([item.item_id for item in items])
    asyncio.run(produce_events(settings, sampler.through(dataset.events(int(time.time() * 1e3)))))
    sampler.sample().save(sample)
    return sampler.count


def released(settings: Settings, dataset: Path, folder: str) -> str:
    """Import the release, or train one, and promote it; returns its name."""
    if folder == NO_RELEASE:
        return NO_RELEASE
    name = take(settings.releases_dir, folder).name if folder else trained(settings, dataset)
    promote(settings, name, force=True)  # small data may not pass the gate, which is no matter of speed
    return name


def trained(settings: Settings, dataset: Path) -> str:
    started = time.monotonic()
    name = str(run_training(settings, [str(dataset), "--against", "none", "--quick"])["release"])
    note(f"trained {name} in {time.monotonic() - started:.0f} s")
    return name


def await_served(settings: Settings, name: str) -> None:
    if not wait_until(lambda: json.loads(get(settings, "/readyz") or "{}").get("release") == name, 60):
        raise SystemExit(f"the worker does not serve {name}: {get(settings, '/readyz')}")


def await_applied(settings: Settings, count: int) -> None:
    def done() -> bool:
        return sum(float(n) for n in APPLIED.findall(get(settings, "/metrics"))) >= count

    if not wait_until(done, 60 + count / 1_000):
        raise SystemExit("the worker does not apply the dataset's events")


def timed(client: Clients, over: str, rate: float, seconds: int) -> Figures:
    """Figures at a rate, at 0 with one request in flight; only the latter with the stages."""
    figures = client.measure(over, rate=rate, seconds=seconds)
    stages = figures.pop("stages")
    note(f"{over} {rate or 'one in flight'}: {figures}")
    return figures if rate else {**figures, "stages": stages}


def rates(
    client: Clients, over: str, wanted: list[int], seconds: int, beside: Callable[[], AbstractContextManager[None]]
) -> Figures:
    """One in flight, each rate, and one rate beside events."""
    out = {str(rate or 1): timed(client, over, rate, seconds) for rate in (0, *wanted)}
    with beside():
        out[f"{BESIDE} beside events"] = timed(client, over, BESIDE, seconds)
    return out


def sustains(client: Clients, over: str, rate: float) -> bool:
    """Whether latency and refusals stay within limits. A second try decides close cases, because of noise."""
    for _ in range(2):
        figures = timed(client, over, rate, STEP_S)
        refused = sum(figures["refused"].values())
        if not refused and figures["p99"] < DEADLINE_MS:
            return True
        if refused > 0.02 * figures["requests"] or figures["p50"] > DEADLINE_MS:
            return False
    return False


def saturation(client: Clients, over: str, start: float = 100) -> int:
    """Highest rate that is sustained: doubled until one is not, then bisected."""
    passed, failed = 0.0, 0.0
    rate = start
    while not failed:
        if sustains(client, over, rate):
            passed, rate = rate, rate * 2
        else:
            failed = rate
    while failed > NEAR * passed and failed > 10:
        rate = (passed + failed) / 2
        if sustains(client, over, rate):
            passed = rate
        else:
            failed = rate
    return round(passed)


def rerank(client: Clients, seconds: int) -> Figures:
    return {str(rate or 1): timed(client, "rerank", rate, seconds) for rate in (0, 50, 200)}


def serving(settings: Settings, sample: Path, client: Clients, asked: argparse.Namespace) -> Figures:
    """All parts that need no restart of the worker."""
    out: Figures = {"kafka": {}, "http": {}}

    def beside() -> AbstractContextManager[None]:
        return events(settings, sample, EVENTS)

    for over in ("kafka", "http"):
        client.measure(over, rate=0, seconds=3)  # to warm up
        client.measure(over, rate=100, seconds=3)
        if over in asked.only:
            out[over] = rates(client, over, asked.rates, asked.seconds, beside)
    if "rerank" in asked.only:
        out["rerank"] = rerank(client, asked.seconds)
    if "freshness" in asked.only:
        with beside():
            out["freshness"] = client.measure("freshness", times=200)
    for over in ("kafka", "http"):
        if "saturation" in asked.only or (over == "kafka" and "overload" in asked.only):
            out[over]["saturation"] = saturation(client, over)
    if "overload" in asked.only:
        usual = max(out["kafka"]["saturation"], 10)
        out["overload"] = client.measure("overload", usual=usual, seconds=10, deadline_ms=DEADLINE_MS)
    return out


def first_burst(settings: Settings, sample: Path, release: str) -> Figures:
    """300 requests at once, the first of a fresh worker."""
    with worker(settings):
        await_ready(settings)
        await_served(settings, release)
        with clients(settings, sample) as client:
            return client.measure("burst", number=300, deadline_ms=DEADLINE_MS)


def remotely(settings: Settings, sample: Path, release: str, asked: argparse.Namespace) -> Figures:
    """Remote ranking beside local."""
    settings = replace(settings, ranking="remote", rank_port=port())
    with worker(settings):
        await_ready(settings)
        await_served(settings, release)
        with clients(settings, sample) as client:
            client.measure("http", rate=100, seconds=3)  # to warm up
            return remote(settings, client, asked.rates, asked.seconds, note)


def measure(asked: argparse.Namespace) -> Figures:
    with stack() as running:
        settings = instance(running)
        sample = settings.home / "sample.json"
        count = load(settings, asked.dataset, sample)
        name = released(settings, asked.dataset, asked.release)
        with worker(settings):
            await_ready(settings)
            await_applied(settings, count)
            await_served(settings, name)
            with clients(settings, sample) as client:
                mine = serving(settings, sample, client, asked)
        if "burst" in asked.only:
            mine["burst"] = [first_burst(settings, sample, name) for _ in range(STARTS)]
        if "remote" in asked.only:
            mine["remote"] = remotely(settings, sample, name, asked)
        figures: Figures = {"riffle": mine}
        if asked.peers and "peers" in asked.only:
            figures |= peers(asked.peers / "echo.py", settings)
    one = mine["kafka"].get("1") or mine["http"].get("1") or {}
    return {**figures, "pipeline_ms": one.get("stages", {})}


def table(figures: Figures, name: str = "") -> None:
    """Print each group of figures as a row."""
    if "p50" in figures or "requests" in figures:
        numbers = {k: v for k, v in figures.items() if k not in {"p50", "p99", "stages"} and v not in ({}, None)}
        more = ", ".join(f"{k} {v}" for k, v in numbers.items())
        print(f"{name:34s} {figures.get('p50', '–')!s:>8} {figures.get('p99', '–')!s:>8}  {more}")
        return
    for key, value in figures.items():
        rows = dict(enumerate(value, 1)) if isinstance(value, list) else value
        if isinstance(rows, dict):
            table(rows, f"{name} {key}".strip())
        else:
            print(f"{f'{name} {key}'.strip():34s} {rows!s:>8}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("dataset", type=Path, help="dataset folder")
    options.add_argument("--release", default="", help="folder of a release, or `none`; without it one is trained")
    options.add_argument("--peers", type=Path, help="folder of the peers' scripts; without it only Riffle runs")
    options.add_argument("--rates", type=int, nargs="+", default=[100, 200, 400], help="requests a second")
    options.add_argument("--seconds", type=int, default=8, help="duration of each measurement")
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="measure only these parts")
    options.add_argument("--json", action="store_true", help="one line of JSON")
    asked = options.parse_args()
    figures = measure(asked)
    if asked.json:
        print(json.dumps(figures))
        return
    print(f"{'':34s} {'p50 ms':>8} {'p99 ms':>8}")
    table(figures)


if __name__ == "__main__":
    main()
