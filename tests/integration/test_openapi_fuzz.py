"""A running worker answers as its OpenAPI document says, whatever it is sent."""

from __future__ import annotations

import asyncio
import os

import aiohttp
import pytest
from api_fuzzing import fuzzed
from openapi import closed, described

from agents.web.page_token import page_token
from schemas.settings import Settings

pytestmark = pytest.mark.integration

MORE = int(os.environ.get("CONTRACT_CASES", "0"))
"Requests of each kind to each operation in `make contract`, other ones at each run; 0: a few, always the same ones."
ONLY = os.environ.get("CONTRACT_ROUTE", "")
START_MS = 1_700_000_000_000
KNOWN = {
    "user_id": ["ann", "bob", "cyd"],
    "item_id": [f"item-{n}" for n in range(5)],
    "name": ["index.html", "app.js", "page.css", "icon.svg"],
}
PATIENCE_S = 60.0


@pytest.fixture
async def shop(worker: Settings) -> Settings:
    """A worker with some items, users, rules and a dead letter."""
    async with aiohttp.ClientSession(worker.web) as http:
        for n in range(30):
            body = {"title": f"Title {n}", "categories": ["even" if n % 2 == 0 else "odd"], "price": n}
            async with http.put(f"/v1/items/item-{n}", json=body) as response:
                assert response.status == 202
        events = [
            {"user_id": user, "item_id": f"item-{n}", "event_time": START_MS + n, "action": "like", "value": 1.5}
            for user in KNOWN["user_id"]
            for n in range(10, 15)
        ]
        async with http.post("/v1/events", json=events) as response:
            assert (await response.json())["accepted"] == len(events)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with http.get("/v1/recommend/ann", params={"deadline_ms": "10000"}) as response:
                    if response.status == 200 and len((await response.json())["items"]) == 10:
                        break
    return worker


async def test_every_answer_is_described(shop: Settings) -> None:
    counts = await asyncio.to_thread(fuzzed, closed(described()), shop.web, page_token(shop), MORE, KNOWN, ONLY)
    assert {"positive 200", "positive 202", "positive 404", "negative 400"} <= set(counts) or ONLY, counts
