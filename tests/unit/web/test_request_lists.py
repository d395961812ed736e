"""A list of requests is answered as its requests would be alone, in order, on a real server."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from aiokafka.errors import KafkaError
from fakes import FakeService
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from agents.web.body import MAX_BODY_BYTES
from agents.web.protocol import Wanted, always
from agents.web.request_lists import MAX_REQUESTS
from agents.web.routes import build_app
from schemas.errors import BadRequest, DeadlineExceeded, NotReady
from schemas.records import Interaction, Item, Request, Slate

FAILURES: dict[str, Exception] = {
    "late": DeadlineExceeded("deadline_exceeded", "too late"),
    "restoring": NotReady("not_ready", "being restored"),
    "misplaced": BadRequest("key_mismatch", "another's", "key"),
    "broker": KafkaError("away"),
    "bug": ArithmeticError("the ranker"),
    "gone": ConnectionResetError("a part of the worker lost its connection"),
}


class Moody(FakeService):
    """Fails for some users, and answers others only after further requests have come."""

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        if request.user_id in FAILURES:
            raise FAILURES[request.user_id]
        if request.user_id.startswith("slow"):
            await asyncio.sleep(0)
        return await super().recommend(request, deadline_ms, wanted)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    logging.disable(logging.CRITICAL)  # bugs are logged with their stack trace
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        yield loop
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def service() -> Moody:
    events = [Interaction("e", "u1", "i2", 5), Interaction("f", "slow", "i1", 5)]
    return Moody(catalogue={f"i{n}": Item(f"i{n}") for n in range(9)}, events=events)


@pytest.fixture(scope="module")
def client(loop: asyncio.AbstractEventLoop, service: Moody) -> Iterator[TestClient[Any, Any]]:
    async def made() -> TestClient[Any, Any]:
        client = TestClient(Served(build_app(service), service.metrics))
        await client.start_server()
        return client

    client = loop.run_until_complete(made())
    yield client
    loop.run_until_complete(client.close())


async def ask(client: TestClient[Any, Any], body: object, **headers: str) -> tuple[int, Any]:
    async with client.post("/v1/recommend", data=io.BytesIO(json.dumps(body).encode()), headers=headers) as response:
        return response.status, await response.json()


users = st.sampled_from(["u1", "u2", "u1", "slow", "slower", "unheard-of", *FAILURES, 7, "", None, "x" * 300])
sound = st.fixed_dictionaries(
    {"user_id": users},
    optional={
        "k": st.integers(-1, 12),
        "exclude": st.lists(st.sampled_from(["i1", "i2", "gone"]), max_size=3),
        "categories": st.lists(st.sampled_from(["a", 5]), max_size=2),
        "candidates": st.lists(st.sampled_from(["i1", "i3"]), max_size=2),
        "after": st.sampled_from([None, {"partition": 0, "offset": 1}, {"partition": 0}, "0:1"]),
        "request_id": st.sampled_from(["r1", "r2", ""]),
        "repeats": st.booleans(),
        "colour": st.just("red"),
    },
)
asked: st.SearchStrategy[Any] = sound | st.sampled_from([None, 5, "u1", [], {}, [{"user_id": "u1"}], {"requests": []}])


def without_new_ids(request: Any, answer: Any) -> Any:
    """An answer without the `request_id` that the server made up."""
    named = isinstance(request, dict) and request.get("request_id")
    return answer if named or "request_id" not in answer else {**answer, "request_id": "new"}


@given(st.lists(asked, min_size=1, max_size=20))
def test_a_list_is_answered_as_its_requests_are_alone(
    loop: asyncio.AbstractEventLoop, client: TestClient[Any, Any], requests: list[Any]
) -> None:
    async def scene() -> None:
        status, body = await ask(client, requests)
        assert (status, set(body), len(body["answers"])) == (200, {"answers"}, len(requests))
        for request, answer in zip(requests, body["answers"], strict=True):
            if isinstance(request, list):  # alone it would be a list
                assert answer["error"]["code"] == "invalid_body"
                continue
            status, single = await ask(client, request)
            if not isinstance(request, dict):
                assert (answer["status"], answer["error"]["code"]) == (400, single["error"]["code"])
            elif status == 200:
                assert without_new_ids(request, answer) == without_new_ids(request, single)
            else:
                assert answer == {**single, "status": status}

    loop.run_until_complete(scene())


def test_answers_are_in_the_order_of_requests_however_long_each_takes(
    loop: asyncio.AbstractEventLoop, client: TestClient[Any, Any]
) -> None:
    named = [{"user_id": "slow" if n % 3 == 0 else "u2", "request_id": f"r{n}"} for n in range(MAX_REQUESTS)]
    status, body = loop.run_until_complete(ask(client, named))
    assert status == 200
    assert [answer["request_id"] for answer in body["answers"]] == [request["request_id"] for request in named]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ([], 400, "empty_list"),
        ([{"user_id": "u"}] * (MAX_REQUESTS + 1), 400, "list_too_long"),
        ({"requests": [{"user_id": "u"}]}, 400, "invalid_field"),
        ("u", 400, "invalid_body"),
        (None, 400, "invalid_body"),
        ([{"user_id": "u" * (MAX_BODY_BYTES // 50)}] * 51, 413, "too_large"),
    ],
)
def test_a_malformed_list_is_refused_as_a_whole(
    loop: asyncio.AbstractEventLoop, client: TestClient[Any, Any], service: Moody, body: object, status: int, code: str
) -> None:
    service.requests.clear()
    found, answer = loop.run_until_complete(ask(client, body))
    assert (found, answer["error"]["code"]) == (status, code)
    assert not service.requests


def test_the_deadline_applies_to_each_request(
    loop: asyncio.AbstractEventLoop, client: TestClient[Any, Any], service: Moody
) -> None:
    service.requests.clear()
    requests = [{"user_id": "u1"}, {"user_id": "u2"}]
    assert loop.run_until_complete(ask(client, requests, **{"deadline-ms": "700"}))[0] == 200
    assert [budget for _, budget in service.requests] == [700, 700]
    status, body = loop.run_until_complete(ask(client, requests, **{"deadline-ms": "0"}))
    assert (status, body["error"]["field"]) == (400, "deadline-ms")


def test_requests_of_lists_are_counted_by_what_they_came_to() -> None:
    async def scene() -> str:
        service = Moody()
        async with TestClient(Served(build_app(service), service.metrics)) as client:
            await ask(client, [{"user_id": "u1"}, {"user_id": "late"}, {"user_id": "u1"}, {"user_id": ""}])
        return service.render_metrics()

    text = asyncio.run(scene())
    for outcome, n in (("slate", 2), ("deadline_exceeded", 1), ("invalid_field", 1)):
        assert f'riffle_http_list_requests_total{{outcome="{outcome}"}} {n}.0' in text
