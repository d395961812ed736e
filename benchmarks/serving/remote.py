"""Ranking by a process of its own beside ranking in the worker, by turns, with the same worker."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from schemas.settings import Settings
from serving.clients import Clients

TURNS = 3
SETTLE_S = 60.0
ANSWERED = re.compile(r'riffle_rank_partitions\{state="answered"\} (\S+)')
HOP = re.compile(r"riffle_rank_seconds_(sum|count) (\S+)")

Figures = dict[str, Any]


def page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return str(response.read().decode())
    except OSError:
        return ""


@contextlib.contextmanager
def ranking(settings: Settings) -> Iterator[None]:
    """Run one ranking process, until it ranks by the announced release."""
    log = (settings.home / "ranking.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.worker", "--role", "ranking"],
        env={**os.environ, **settings.environment()},
        stdout=log,
        stderr=log,
    )
    until = time.monotonic() + SETTLE_S
    try:
        while not json.loads(page(f"http://127.0.0.1:{settings.rank_port}/readyz") or "{}").get("ready"):
            if time.monotonic() > until or process.poll() is not None:
                raise SystemExit((settings.home / "ranking.log").read_text()[-3_000:])
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)


def settle(settings: Settings, client: Clients, answered: int) -> None:
    """Ask until the worker hands requests over on that many partitions."""
    until = time.monotonic() + SETTLE_S
    while True:
        client.measure("kafka", rate=50, seconds=2)
        found = ANSWERED.search(page(f"{settings.web}/metrics"))
        if found is not None and float(found[1]) == answered:
            return
        if time.monotonic() > until:
            raise SystemExit(f"{found and found[1]} partitions are answered, not {answered}")


def hop_ms(settings: Settings) -> tuple[float, float]:
    """Sum and count of the milliseconds from a task to its result."""
    found = dict(HOP.findall(page(f"{settings.web}/metrics")))
    return float(found.get("sum", 0)) * 1e3, float(found.get("count", 0))


def remote(settings: Settings, client: Clients, rates: list[int], seconds: int, note: Callable[[str], None]) -> Figures:
    """Figures of each turn; `hop_ms` is the mean time from a task to its result, `handed` the number of these."""
    out: Figures = {}
    for turn in range(1, TURNS + 1):
        for where in ("remote", "local"):
            with ranking(settings) if where == "remote" else contextlib.nullcontext():
                settle(settings, client, settings.partitions if where == "remote" else 0)
                for over in ("kafka", "http"):
                    for rate in (0, *rates):
                        before = hop_ms(settings)
                        figures = client.measure(over, rate=rate, seconds=seconds)
                        figures.pop("stages")
                        passed, handed = (now - then for now, then in zip(hop_ms(settings), before, strict=True))
                        figures |= {"handed": int(handed), "hop_ms": round(passed / handed, 2) if handed else None}
                        note(f"{where} {over} {rate or 'one in flight'}: {figures}")
                        out.setdefault(where, {}).setdefault(f"{over} {rate or 1}", {})[str(turn)] = figures
    return out
