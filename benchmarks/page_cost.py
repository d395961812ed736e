"""The cost of the web page for a worker: CPU time of what it adds, in this process, and with a worker's address at a real one.

    .venv/bin/python benchmarks/page_cost.py [--web http://127.0.0.1:6066 --pid PID]

With a worker, requests run one after another while the page is polled for, or not, in turns; the CPU time of the worker's
process per answered request is compared. Share of a core: what the page's part takes of one second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from agents.metrics import Metrics
from agents.requests.recent import Recent
from agents.samples import KEPT, WINDOW, Samples
from agents.web.error_replies import encoded
from schemas.records import Request, Slate

TURN_S, TURNS = 8.0, 8
TICKS = os.sysconf("SC_CLK_TCK")


def used_us(work: Callable[[], object], times: int) -> float:
    """CPU time of one call in microseconds: the median of five runs of `times` calls."""
    runs = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(times):
            work()
        runs.append((time.thread_time() - began) / times * 1e6)
    return statistics.median(runs)


def parts() -> dict[str, float]:
    metrics = Metrics()
    for outcome in ("slate", "degraded", "deadline_exceeded", "not_ready"):
        metrics.requests.add(outcome=outcome)
        for interface in ("http", "kafka"):
            metrics.answer_seconds.observe(0.01, interface=interface, outcome=outcome)
    for outcome in ("applied", "duplicate", "dead_letter", "shown", "replayed"):
        metrics.events.add(outcome=outcome)
    for partition in range(4):
        for topic in ("interactions", "requests", "covisits"):
            metrics.lag.set(1, topic=topic, partition=str(partition))
    samples, recent = Samples(metrics), Recent()
    for _ in range(KEPT + WINDOW):
        samples.take()
    request, slate = Request("r", "u"), Slate("r", "u", (), "none", "default", timings_ms={"rank": 1.0})

    def answer() -> None:
        metrics.answer_seconds.observe(0.01, interface="http", outcome="slate")
        recent.note(request, "http", 0.01, slate)

    return {
        "a sample": used_us(samples.take, 50),
        "a poll": used_us(lambda: encoded(samples.since(samples._taken - 1)), 200),
        "opening the page": used_us(lambda: encoded(samples.since(0)), 10),
        "an answer": used_us(answer, 5_000),
        "a chunk": used_us(lambda: metrics.event_visible_seconds.observe(0.01), 5_000),
    }


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def turn(web: str, pid: int, *, polled: bool) -> float:
    """CPU milliseconds of the worker for one request."""
    began, until, next_poll, answered, since = cpu_s(pid), time.monotonic() + TURN_S, 0.0, 0, 0
    while time.monotonic() < until:
        if polled and time.monotonic() >= next_poll:
            with urllib.request.urlopen(f"{web}/v1/live?since={since}") as response:
                since = json.load(response)["samples"]["next"]
            next_poll = time.monotonic() + 1.0
        with urllib.request.urlopen(f"{web}/v1/recommend/u{answered % 1000:04d}") as response:
            response.read()
        answered += 1
    return (cpu_s(pid) - began) / answered * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--web")
    parser.add_argument("--pid", type=int)
    asked = parser.parse_args()
    found = parts()
    for name, us in found.items():
        print(f"{name:18} {us:8.1f} µs")
    share = (found["a sample"] + found["a poll"] + 200 * found["an answer"] + 100 * found["a chunk"]) / 1e6
    print(f"share of a core with one open page, 200 answers and 100 chunks a second: {share:.3%}")
    if asked.web and asked.pid:
        pairs = [(turn(asked.web, asked.pid, polled=False), turn(asked.web, asked.pid, polled=True)) for _ in range(TURNS)]
        without, polled = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = sorted(two / one for one, two in pairs)
        print(f"CPU a request: {without:.3f} ms without, {polled:.3f} ms with the page; ratios {[round(r, 3) for r in ratios]}")


if __name__ == "__main__":
    main()
