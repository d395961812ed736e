"""The web page where a worker is lost: what it shows stays true."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browsing import CHROMIUM, MISSING, Watched, watching
from conftest import free_port
from playwright.async_api import Page, expect

from schemas.kernels import partition_of
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not CHROMIUM, reason=MISSING)]
USERS = [f"u{n}" for n in range(12)]
PATIENCE_S = 90.0


async def rows_of(page: Page) -> dict[int, tuple[str, str]]:
    """Role and owner by partition, as the page shows them."""
    rows = page.get_by_role("region", name="Partitions").locator("tbody tr")
    texts = await rows.evaluate_all("rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))")
    return {int(cells[0]): (cells[1], cells[2]) for cells in texts}


async def wanted_of(watched: Watched) -> dict[int, tuple[str, str]]:
    """The same, from the interface."""
    found = (await watched.get("/v1/live"))["partitions"]
    own = {"owner", "restoring"}
    return {
        one["partition"]: (one["role"], "this worker" if one["role"] in own else one["owner"] or "unknown") for one in found
    }


async def until_roles(watched: Watched, page: Page, check: Callable[[dict[int, tuple[str, str]]], bool]) -> None:
    """Wait until interface and page both show partitions that pass the check, and the same ones."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            wanted = await wanted_of(watched)
            if check(wanted) and await rows_of(page) == wanted == await wanted_of(watched):
                return
            await asyncio.sleep(0.2)


async def test_the_page_names_what_is_lost_with_a_worker(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    alive = replace(fresh, session_timeout_s=10.0)
    await ensure_topics(alive)
    await produce_items(alive, [Item(f"i{n}", f"Print no. {n}") for n in range(30)])
    await produce_events(alive, [Interaction(f"{user}-{n}", user, f"i{n}", 1_000 + n) for user in USERS for n in range(3)])
    lost = replace(alive, home=tmp_path / "lost", web_port=free_port())
    lost.home.mkdir()
    one, other = worker_of(alive), worker_of(lost)
    for worker in (one, other):
        await asyncio.to_thread(worker.start)
    address = lost.web.partition("//")[2]
    async with watching(alive) as watched, watched.page("#/live") as live, watched.page("#/health") as health:
        there = await (await watched.browser.new_context()).new_page()
        await there.goto(f"{lost.web}/#/live")
        await until_roles(watched, live, lambda found: {owner for _, owner in found.values()} == {"this worker", address})
        gone = {number for number, (_, owner) in (await wanted_of(watched)).items() if owner == address}
        await expect(there.locator(".pill").first).to_contain_text("ready")
        await asyncio.to_thread(other.kill)
        # the page of the lost worker says so, and keeps the last figures
        await expect(there.locator(".pill").first).to_have_text("no answer", timeout=30_000)
        await expect(there.get_by_role("alert")).to_contain_text("The figures below are from before")
        # answers for the lost worker's users come from copies, and both the API and the page name that
        theirs = [user for user in USERS if partition_of(user.encode(), alive.partitions) in gone]
        marks: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while "standby" not in marks:
                for user in theirs:
                    async with watched.http.get(f"/v1/recommend/{user}?k=5&deadline_ms=1000") as response:
                        marks |= set((await response.json()).get("degraded", []))
        panel = live.locator(".panel", has=live.get_by_role("heading", name="Degraded slates"))
        totals = (await watched.get("/v1/live"))["totals"]["degraded"]
        assert totals["standby"] > 0
        await expect(panel.locator(".bar", has_text="standby")).to_have_count(1)
        # the survivor takes over, and says so in both views
        for page in (live, health):
            await until_roles(watched, page, lambda found: set(found.values()) == {("owner", "this worker")})
        await expect(health.get_by_role("heading", name="Ready", exact=True)).to_be_visible(timeout=30_000)
        answered = await watched.get("/v1/live")
        shown = await panel.locator(".bar-label").all_text_contents()
        assert set(shown) == {name for name, n in answered["totals"]["degraded"].items() if n > 0}
