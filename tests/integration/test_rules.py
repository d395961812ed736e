"""Merchandising rules in a running worker: published, previewed, expired, cleared, and kept over a restart."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from schemas.records import Item
from schemas.settings import Settings
from streams.embedded.process import riffle as command
from streams.kafka.produce import produce_items
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration

SOON_S = 1.0
"Seconds within which published rules serve."


def riffle(settings: Settings, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        command("rules", *arguments, "--json"),
        env={**os.environ, **settings.environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


async def asked(settings: Settings, path: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{settings.web}{path}") as response:
        assert response.status == 200
        return dict(await response.json())


async def slate(settings: Settings) -> list[str]:
    return [item["item_id"] for item in (await asked(settings, "/v1/recommend/someone?k=5&deadline_ms=5000"))["items"]]


async def first_within(settings: Settings, item_id: str, within_s: float) -> None:
    """Wait until slates begin with this item."""
    async with asyncio.timeout(within_s):
        while (await slate(settings))[0] != item_id:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def written(tmp_path: Path, version: int, item_id: str, **more: Any) -> str:
    path = tmp_path / f"{version}.json"
    rule = {"name": "top", "kind": "pin", "pins": [{"item_id": item_id, "position": 0}], **more}
    path.write_text(json.dumps({"version": version, "rules": [rule]}))
    return str(path)


async def test_rules_serve_within_a_second_expire_are_cleared_and_outlive_a_restart(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    await ensure_topics(fresh)
    await produce_items(fresh, [Item(f"i{n}", f"thing {n}", categories=(f"c{n % 3}",)) for n in range(30)])
    worker = await asyncio.to_thread(worker_of(fresh).start)
    plain = await slate(fresh)
    pinned, later = [item_id for item_id in (f"i{n}" for n in range(30)) if item_id not in plain][:2]

    file = written(tmp_path, 1, pinned)
    tried = await asyncio.to_thread(riffle, fresh, "preview", file, "--user", "someone", "-k", "5")
    assert [item["item_id"] for item in tried["serving"]["items"]] == plain
    assert tried["proposed"]["items"][0]["item_id"] == pinned
    assert tried["proposed"]["items"][0]["explanation"]["rules"] == ["top"]
    assert await slate(fresh) == plain, "a preview publishes nothing"

    put = await asyncio.to_thread(riffle, fresh, "put", file)
    assert [(rule["name"], rule["matches"]) for rule in put["rules"]] == [("top", 1)]
    await first_within(fresh, pinned, SOON_S)
    assert (await asked(fresh, "/v1/rules"))["version"] == 1

    await asyncio.to_thread(worker.stop)
    worker = await asyncio.to_thread(worker_of(fresh).start)
    assert (await slate(fresh))[0] == pinned
    assert (await asked(fresh, "/v1/rules"))["version"] == 1

    ends = round(time.time() * 1000) + 4_000
    await asyncio.to_thread(riffle, fresh, "put", written(tmp_path, 2, later, until=ends))
    await first_within(fresh, later, SOON_S)
    await first_within(fresh, plain[0], 10)
    assert time.time() * 1000 >= ends
    assert await slate(fresh) == plain
    shown = await asyncio.to_thread(riffle, fresh, "show")
    assert (shown["version"], shown["expired"], shown["rules"][0]["state"]) == (2, 1, "expired")

    await asyncio.to_thread(riffle, fresh, "put", written(tmp_path, 3, pinned))
    await first_within(fresh, pinned, SOON_S)
    await asyncio.to_thread(riffle, fresh, "clear")
    await first_within(fresh, plain[0], SOON_S)
    assert await slate(fresh) == plain
    assert (await asked(fresh, "/v1/rules"))["rules"] == []
