"""Isolated stack for a benchmark: free ports, a temporary home, one worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.process import wait_until
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def stack() -> Iterator[Settings]:
    """Start a broker and a Redis. Topics are created by `instance`."""
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(
            home=Path(home), kafka_port=port(), controller_port=port(), redis_port=port(), web_port=port(), archive="off"
        ).resolved()
        kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
        try:
            kafka.start()
            redis.start()
            yield settings
        finally:
            redis.stop()
            kafka.stop()


def instance(on: Settings, partitions: int = 4) -> Settings:
    """Settings with topics, group and folder of their own on a running stack."""
    name = uuid.uuid4().hex[:8]
    home = on.home / name
    home.mkdir()
    settings = replace(
        on, home=home, bootstrap=on.bootstrap_servers, topic_prefix=f"b{name}.", app_id=f"b{name}", partitions=partitions
    )
    asyncio.run(ensure_topics(settings))
    return settings


@contextlib.contextmanager
def worker(settings: Settings) -> Iterator[int]:
    """Run a worker process; yields its pid."""
    settings.home.mkdir(exist_ok=True)
    log = (settings.home / "worker.log").open("ab")
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.worker"], env={**os.environ, **settings.environment()}, stdout=log, stderr=log
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB (proc(5), VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS"))


def get(settings: Settings, path: str) -> str:
    try:
        with urllib.request.urlopen(settings.web + path, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


def await_ready(settings: Settings) -> None:
    if not wait_until(lambda: json.loads(get(settings, "/readyz") or "{}").get("ready") is True, 60):
        raise SystemExit((settings.home / "worker.log").read_text()[-3000:])


def fill(settings: Settings, n: int, users: int, items: int, keys: str) -> None:
    """Publish the items, then `n` synthetic events of `users` users on `items` items, with Zipf or uniform users."""
    rng = np.random.default_rng(7)
    who = rng.zipf(1.2, n) % users if keys == "zipf" else rng.integers(0, users, n)
    what = rng.zipf(1.1, n) % items
    asyncio.run(produce_items(settings, (Item(f"i{k}", f"title {k % 97}", categories=(f"c{k % 20}",)) for k in range(items))))
    base = 1_700_000_000_000
    events = (Interaction(f"{k:016x}", f"u{who[k]}", f"i{what[k]}", base + k, "click") for k in range(n))
    asyncio.run(produce_events(settings, events))


def peers(script: Path, settings: Settings, *options: str) -> dict[str, object]:
    """Run a peers' script on the same broker and return its JSON output."""
    command = [sys.executable, str(script), "--bootstrap", settings.bootstrap_servers, *options, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(ran.stdout.strip().splitlines()[-1]))
