"""A worker that is stopped under load ends by itself, and its successor counts each event once."""

from __future__ import annotations

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration
EVENTS = 60_000
USERS = 500


def counted(settings: Settings, outcome: str) -> int:
    try:
        with urllib.request.urlopen(f"{settings.web}/metrics", timeout=5) as response:
            found = re.search(rf'riffle_events_total\{{outcome="{outcome}"\}} (\S+)', response.read().decode())
    except OSError:
        return 0
    return int(float(found.group(1))) if found else 0


def kept(settings: Settings) -> int:
    """Return the number of events in the records of all users."""
    total = 0
    for user in range(USERS):
        try:
            response = urllib.request.urlopen(f"{settings.web}/v1/users/u{user}", timeout=5)
        except urllib.error.HTTPError:
            return 0
        with response:
            total += int(re.search(r'"events":\s*(\d+)', response.read().decode()).group(1))  # type: ignore[union-attr]
    return total


def test_a_worker_told_to_stop_under_load_ends_and_nothing_counts_twice(
    fresh: Settings, worker_of: Callable[[Settings], Any]
) -> None:
    asyncio.run(ensure_topics(fresh))
    asyncio.run(produce_items(fresh, (Item(f"i{n}") for n in range(100))))
    events = (Interaction(f"e{n}", f"u{n % USERS}", f"i{n % 97}", 1_700_000_000_000 + n) for n in range(EVENTS))
    asyncio.run(produce_events(fresh, events))
    # while it drains, a worker goes on applying events, and could come to their end
    worker = worker_of(replace(fresh, drain_s=0.001))
    for least in (1, 2_000):
        worker.start()
        assert wait_until(lambda: counted(fresh, "applied") >= least, 60)  # noqa: B023
        worker.process.terminate()
        assert worker.process.wait(30) == 0, worker.log.read_text()[-3000:]
    worker.start()
    assert wait_until(lambda: kept(fresh) == EVENTS, 60), kept(fresh)
    assert counted(fresh, "duplicate") == 0
