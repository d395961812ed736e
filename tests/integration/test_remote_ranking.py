"""Ranking by processes of their own: the same answers, and none is lost or doubled whatever these processes do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from conftest import free_port
from ranking_stack import count, filled, ranking, remotely

from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.client import RiffleClient
from training.release.learned import Learned

pytestmark = pytest.mark.integration
DEADLINE_MS = 5_000
USERS = [f"u{n}" for n in range(12)]


async def answered_remotely(settings: Settings, client: RiffleClient, outcome: str = "answered") -> None:
    """Ask until a ranking process answers."""
    async with asyncio.timeout(60):
        while not count(settings, "riffle_rank_tasks_total", outcome=outcome):
            assert "error" not in await client.ask({"user_id": "u0"}, DEADLINE_MS)


async def test_remote_answers_are_local_answers(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any]
) -> None:
    release = await filled(fresh, learned)
    settings = remotely(fresh)
    async with ranking(settings, 1, release) as (process,):
        worker = worker_of(settings)
        await asyncio.to_thread(worker.start)
        async with RiffleClient(settings) as client:
            await answered_remotely(settings, client)
            body = [{"user_id": user, "k": 7, "explain": True} for user in USERS]
            remote = [await client.ask(one, DEADLINE_MS) for one in body]
            assert count(settings, "riffle_rank_tasks_total", outcome="answered") > 1
        assert process.state()["provider"] == "CPUExecutionProvider"
        await asyncio.to_thread(worker.stop)
    local = replace(fresh, web_port=free_port())
    await asyncio.to_thread(worker_of(local).start)
    async with RiffleClient(local) as client:
        here = [await client.ask(one, DEADLINE_MS) for one in body]
    for there, mine in zip(remote, here, strict=True):
        assert [item["item_id"] for item in there["items"]] == [item["item_id"] for item in mine["items"]]
        for one, other in zip(there["items"], mine["items"], strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert one["sources"] == other["sources"]
            assert one["explanation"].keys() == other["explanation"].keys()
            assert one["explanation"]["dropped"] == other["explanation"]["dropped"]
        assert {there["release"], mine["release"]} == {release}
        assert there["degraded"] == mine["degraded"] == []
        assert there["as_of"] == mine["as_of"]
        assert there["timings_ms"].keys() == mine["timings_ms"].keys()


def waits(check: Callable[[], bool], seconds: float = 60.0) -> bool:
    return bool(wait_until(check, seconds))
