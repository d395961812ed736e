"""Two workers: an HTTP request to either is answered by the one that owns the user's partition."""

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


def post(settings: Settings, path: str, body: Any) -> Any:
    request = urllib.request.Request(settings.web + path, json.dumps(body).encode(), method="POST")
    with urllib.request.urlopen(request, timeout=15) as response:
        return json.load(response)


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
            # the group becomes stable: partitions move when the second worker joins, and others' rows may answer meanwhile
            assert wait_until(lambda path=path, settings=settings: get(settings, path)[1].get("degraded") == [], 30)  # type: ignore[misc]
            slate = get(settings, path)[1]
            assert slate["user_id"] == user
            assert len(slate["items"]) == 5
            assert not {"i0", "i1", "i2"} & {item["item_id"] for item in slate["items"]}, "what they have seen"
    for settings in both:
        listed: list[str] = []
        for number in range(settings.partitions):
            after: str | None = ""
            while after is not None:
                status, page = get(settings, f"/v1/users?partition={number}&limit=2&after={after}")
                assert (status, page["partition"], page["partitions"]) == (200, number, settings.partitions)
                assert len(page["users"]) <= 2
                listed += page["users"]
                after = page["next"]
        assert sorted(listed) == sorted(people), "each once, from either worker"
        body = [{"user_id": user, "k": 5} for user in people] + [{"user_id": "u1", "k": 0}]
        answers = post(settings, "/v1/recommend?deadline_ms=10000", body)["answers"]
        assert [answer.get("user_id") for answer in answers] == [*people, None]
        assert all(len(answer["items"]) == 5 for answer in answers[:-1])
        assert (answers[-1]["status"], answers[-1]["error"]["field"]) == (400, "k")
        document = {"format": 1, "rules": [{"name": "hide", "kind": "bury", "where": {"items": ["i5"]}, "factor": 0.5}]}
        for user in people:
            preview = post(settings, "/v1/rules/preview", {"rules": document, "request": {"user_id": user, "k": 5}})
            assert [preview[name]["user_id"] for name in ("serving", "proposed")] == [user, user], "from the owner"
    assert forwarded(fresh) > 0
    assert forwarded(other) > 0
