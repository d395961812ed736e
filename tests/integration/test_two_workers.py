"""Two workers: whichever is asked over HTTP, a person's answer comes from the one that has their partition."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port

from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


def get(settings: Settings, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(settings.web + path, timeout=15) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_either_worker_answers_for_everybody(fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]) -> None:
    asyncio.run(ensure_topics(fresh))
    asyncio.run(produce_items(fresh, [Item(f"i{n}", f"thing {n}") for n in range(30)]))
    people = [f"u{n}" for n in range(12)]
    events = [Interaction(f"{user}-{n}", user, f"i{n}", 1_000_000 + n) for n in range(3) for user in people]
    tokens = asyncio.run(produce_events(fresh, events))
    assert len(tokens) > 1, "the people are on several partitions"
    other = replace(fresh, home=tmp_path / "other", web_port=free_port())
    other.home.mkdir()
    both = [fresh, other]
    workers = [worker_of(settings) for settings in both]
    for worker in workers:
        worker.start()

    def forwarded(settings: Settings) -> float:
        with urllib.request.urlopen(f"{settings.web}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("riffle_requests_forwarded_total"))

    for settings in both:
        for user in people:
            path = f"/v1/recommend/{user}?k=5&deadline_ms=5000"
            # the group settles: partitions move once the second worker joins, and others' rows may answer meanwhile
            assert wait_until(lambda path=path, settings=settings: get(settings, path)[1].get("degraded") == [], 30)  # type: ignore[misc]
            slate = get(settings, path)[1]
            assert slate["user_id"] == user
            assert len(slate["items"]) == 5
            assert not {"i0", "i1", "i2"} & {item["item_id"] for item in slate["items"]}, "what they have seen"
    assert forwarded(fresh) > 0
    assert forwarded(other) > 0
