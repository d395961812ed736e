"""A running worker keeps the HTTP part of the contract."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from yarl import URL

from schemas.settings import Settings

pytestmark = pytest.mark.integration

START_MS = 1_700_000_000_000
PATIENCE_S = 60.0
BAD = 100


@pytest.fixture
async def http(worker: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(worker.web, timeout=aiohttp.ClientTimeout(total=30)) as session:
        for n in range(30):
            body = {"title": f"Title {n}", "categories": ["even" if n % 2 == 0 else "odd"]}
            async with session.put(f"/v1/items/item-{n}", json=body) as response:
                assert response.status == 202
        yield session


async def get(http: aiohttp.ClientSession, path: str, **params: Any) -> tuple[int, Any]:
    async with http.get(path, params={name: str(value) for name, value in params.items()}) as response:
        return response.status, await response.json()


async def slate_when(http: aiohttp.ClientSession, user_id: str, holds: Any, **params: Any) -> list[str]:
    """Return the items of the first slate that `holds` accepts. The catalogue has no token, so the requests are repeated."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status, slate = await get(http, f"/v1/recommend/{user_id}", deadline_ms=10_000, **params)
            found = [item["item_id"] for item in slate.get("items", ())]
            if status == 200 and holds(found):
                return found


def malformed(n: int) -> bytes:
    """The n-th malformed body: ten kinds, each body unique."""
    event = {"user_id": f"user-{n}", "item_id": "item-1", "event_time": START_MS}
    ways: list[bytes] = [
        b"{" * (n + 1),
        json.dumps(event).encode()[:-1],
        b"\xff" * (n + 1),
        b"",
        json.dumps({**event, "user_id": ""}).encode(),
        json.dumps({**event, "event_time": f"yesterday {n}"}).encode(),
        json.dumps({**event, "value": "NaN"}).encode(),
        json.dumps({**event, f"field{n}": 1}).encode(),
        json.dumps({**event, "item_id": "x" * (300 + n)}).encode(),
        json.dumps(f"text {n}").encode(),
    ]
    return ways[n % len(ways)]


async def test_an_event_changes_the_next_slate(http: aiohttp.ClientSession) -> None:
    found = await slate_when(http, "ann", lambda items: len(items) == 5, k=5)
    for n in range(3):
        touched = found[0]
        body = {"user_id": "ann", "item_id": touched, "event_time": START_MS + n}
        async with http.post("/v1/events", json=body) as response:
            assert response.status == 202
            token = (await response.json())["tokens"][0]
        after = f"{token['partition']}:{token['offset']}"
        status, slate = await get(http, "/v1/recommend/ann", k=5, after=after, deadline_ms=10_000)
        assert status == 200
        found = [item["item_id"] for item in slate["items"]]
        assert "stale" not in slate["degraded"]
        assert touched not in found
        assert slate["as_of"]["offset"] >= token["offset"]
    status, known = await get(http, "/v1/users/ann")
    assert (status, known["events"]) == (200, 3)


async def test_an_excluded_or_deleted_item_is_never_in_a_slate(http: aiohttp.ClientSession) -> None:
    found = await slate_when(http, "bob", lambda items: len(items) == 10, k=10)
    _, slate = await get(http, "/v1/recommend/bob", k=10, exclude=",".join(found[:4]), deadline_ms=10_000)
    assert not {item["item_id"] for item in slate["items"]} & set(found[:4])
    _, slate = await get(http, "/v1/recommend/bob", k=30, category="even", deadline_ms=10_000)
    assert all(int(item["item_id"].split("-")[1]) % 2 == 0 for item in slate["items"])
    async with http.delete(f"/v1/items/{found[0]}") as response:
        assert response.status == 202
    await slate_when(http, "bob", lambda items: items and found[0] not in items, k=30)
    assert (await get(http, f"/v1/items/{found[0]}"))[0] == 404


async def test_an_event_from_the_future_is_rejected(http: aiohttp.ClientSession) -> None:
    event = {"user_id": "bob", "item_id": "item-1", "event_time": int(time.time() * 1_000_000)}
    async with http.post("/v1/events", json=[event]) as response:
        body = await response.json()
    assert body["accepted"] == 0
    assert body["rejected"][0]["error"]["code"] == "future_event_time"


async def test_an_item_that_was_only_shown_is_not_met(http: aiohttp.ClientSession) -> None:
    found = await slate_when(http, "flo", lambda items: len(items) == 30, k=30)
    told: list[dict[str, Any]] = [
        {"user_id": "flo", "item_id": item, "event_time": START_MS, "action": "impression", "request_id": "r", "position": n}
        for n, item in enumerate(found[:3])
    ]
    told.append({"user_id": "flo", "item_id": found[1], "event_time": START_MS})
    async with http.post("/v1/events", json=told) as response:
        token = (await response.json())["tokens"][-1]
    after = f"{token['partition']}:{token['offset']}"
    _, slate = await get(http, "/v1/recommend/flo", k=30, after=after, deadline_ms=10_000)
    assert "stale" not in slate["degraded"]
    assert {item["item_id"] for item in slate["items"]} == set(found) - {found[1]}
    _, known = await get(http, "/v1/users/flo")
    assert known["events"] == 1


async def test_similar_items_are_known_items(http: aiohttp.ClientSession) -> None:
    await slate_when(http, "cat", lambda items: len(items) == 30, k=30)
    status, body = await get(http, "/v1/similar/item-1", k=5)
    assert status == 200
    similar = [item["item_id"] for item in body["items"]]
    assert similar
    assert "item-1" not in similar
    status, body = await get(http, "/v1/similar/unheard-of")
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_erasure_forgets_the_person(http: aiohttp.ClientSession) -> None:
    async with http.post("/v1/events", json={"user_id": "dan", "item_id": "item-2"}) as response:
        token = (await response.json())["tokens"][0]
    after = f"{token['partition']}:{token['offset']}"
    await get(http, "/v1/recommend/dan", after=after, deadline_ms=10_000)
    assert (await get(http, "/v1/users/dan"))[0] == 200
    async with http.delete("/v1/users/dan") as response:
        assert response.status == 202
        token = (await response.json())["token"]
    after = f"{token['partition']}:{token['offset']}"
    await get(http, "/v1/recommend/dan", after=after, deadline_ms=10_000)
    status, body = await get(http, "/v1/users/dan")
    assert (status, body["error"]["code"]) == (404, "not_found")


async def test_malformed_bodies_are_clear_errors_and_good_ones_between_them_are_stored(
    http: aiohttp.ClientSession,
) -> None:
    accepted = 0
    token: dict[str, int] = {}
    for n in range(BAD):
        async with http.post("/v1/events", data=malformed(n)) as response:
            assert response.status == 400, malformed(n)
            error = (await response.json())["error"]
            assert error["code"]
            assert error["message"]
            assert "Traceback" not in await response.text()
        body = {"user_id": "eve", "item_id": f"item-{n}", "event_time": START_MS + n}
        async with http.post("/v1/events", json=body) as response:
            assert response.status == 202
            answer = await response.json()
            accepted += answer["accepted"]
            token = answer["tokens"][0]
    assert accepted == BAD
    mixed = [{"user_id": "eve", "item_id": "a"}, 1, {"item_id": "b"}, {"user_id": "eve", "item_id": "c"}]
    async with http.post("/v1/events", json=mixed) as response:
        assert response.status == 202
        answer = await response.json()
    assert answer["accepted"] == len(answer["tokens"]) == 2
    assert [entry["index"] for entry in answer["rejected"]] == [1, 2]
    token = answer["tokens"][-1]
    after = f"{token['partition']}:{token['offset']}"
    _, slate = await get(http, "/v1/recommend/eve", after=after, deadline_ms=10_000)
    assert "stale" not in slate["degraded"]
    _, known = await get(http, "/v1/users/eve")
    assert known["events"] == BAD + 2
    async with http.get("/metrics") as response:
        text = await response.text()
    assert counter(text, 'riffle_http_events_total{outcome="accepted"}') == BAD + 2


async def test_unknown_paths_methods_and_parameters_are_json_errors(http: aiohttp.ClientSession) -> None:
    for method, path, status in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/page/nothing", 404),
        ("GET", "/table/users", 404),
        ("DELETE", "/v1/events", 405),
        ("GET", "/v1/recommend/ann?k=0", 400),
        ("GET", "/v1/recommend/ann?unknown=1", 400),
    ]:
        async with http.request(method, path) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"]


def counter(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_a_worker_refuses_on_every_path_as_the_contract_says(http: aiohttp.ClientSession, worker: Settings) -> None:
    async def answer(sent: bytes) -> tuple[bytes, dict[str, Any]]:
        reader, writer = await asyncio.open_connection(worker.web_host, worker.web_port)
        writer.write(sent)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        return head.split(b"\r\n")[0], json.loads(body)["error"]

    line, error = await answer(b"FOO /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
    assert line == b"HTTP/1.1 400 Bad Request"
    assert error["code"] == "bad_request"
    body = gzip.compress(bytes(64 << 20))
    headers = f"Host: h\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    line, error = await answer(b"POST /v1/events HTTP/1.1\r\n" + headers.encode() + body)
    assert line.startswith(b"HTTP/1.1 413 ")
    assert error["code"] == "too_large"
    for path, status in (("/router/riffle/1/", 404), ("/table/riffle/", 404), ("/healthz?verbose=1", 400), ("//healthz", 404)):
        async with http.get(URL(worker.web + path, encoded=True)) as response:
            assert response.status == status, path
            assert (await response.json())["error"]["code"]
