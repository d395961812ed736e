from __future__ import annotations

import io
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from fakes import FakeService
from serving import Served

from agents.web.body import MAX_BODY_BYTES, MAX_JSON_DEPTH
from agents.web.routes import MAX_EVENTS, attach, build_app
from schemas.errors import ConfigError, DeadlineExceeded, NotReady, ReleaseRejected, StoreCorrupt
from schemas.records import After, Item

NOW_MS = 1_700_000_000_000
Client = TestClient[web.Request, web.Application]


@pytest.fixture
def service() -> FakeService:
    return FakeService(catalogue={f"i{n}": Item(f"i{n}", title=f"Item {n}") for n in range(20)})


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[Client]:
    async with TestClient(Served(build_app(service, now_ms=lambda: NOW_MS), service.metrics)) as client:
        yield client


def event(**changes: object) -> dict[str, object]:
    return {"user_id": "u", "item_id": "i1", "event_time": NOW_MS, **changes}


async def error_of(response: aiohttp.ClientResponse, status: int) -> dict[str, object]:
    assert response.status == status, await response.text()
    assert response.content_type == "application/json"
    error: dict[str, object] = (await response.json())["error"]
    assert set(error) == {"code", "message", "field"}
    assert error["code"]
    assert error["message"]
    assert "Traceback" not in await response.text()
    return error


# ---- events


async def test_an_event_is_stored_and_answered_with_its_token(client: Client, service: FakeService) -> None:
    response = await client.post("/v1/events", json=event())
    assert response.status == 202
    assert await response.json() == {"accepted": 1, "rejected": [], "tokens": [{"partition": 0, "offset": 0}]}
    assert service.events[0].event_time == NOW_MS


async def test_an_event_without_time_happens_now(client: Client, service: FakeService) -> None:
    body = event()
    del body["event_time"]
    assert (await client.post("/v1/events", json=body)).status == 202
    assert service.events[0].event_time == NOW_MS


async def test_bad_events_in_a_list_do_not_affect_their_neighbours(client: Client, service: FakeService) -> None:
    batch = [event(), event(user_id=""), 7, event(item_id="i2"), event(value="much"), event(colour="red"), None]
    response = await client.post("/v1/events", json=batch)
    body = await response.json()
    assert response.status == 202
    assert body["accepted"] == len(body["tokens"]) == 2
    assert [entry["index"] for entry in body["rejected"]] == [1, 2, 4, 5, 6]
    assert all(entry["error"]["code"] for entry in body["rejected"])
    assert [kept.item_id for kept in service.events] == ["i1", "i2"]


async def test_an_empty_list_is_accepted(client: Client) -> None:
    response = await client.post("/v1/events", json=[])
    assert response.status == 202
    assert (await response.json())["accepted"] == 0


async def test_a_single_bad_event_is_a_bad_request_that_names_the_field(client: Client, service: FakeService) -> None:
    response = await client.post("/v1/events", json={"user_id": "u"})
    body = await response.json()
    assert response.status == 400
    assert body["accepted"] == 0
    assert body["error"] == body["rejected"][0]["error"]
    assert body["error"]["field"] == "item_id"
    assert not service.events


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "empty_body"),
        (b"   ", "empty_body"),
        (b"{", "not_json"),
        (b"not json", "not_json"),
        (b'{"user_id": NaN}', "not_json"),
        (b"\xff\xfe\x00", "not_json"),
        (b'{"user_id": "\\ud800", "item_id": "i"}', "not_json"),
        (b'"text"', "invalid_body"),
        (b"null", "invalid_body"),
        (b"[" * 5_000 + b"]" * 5_000, "too_deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too_deep"),
        (b"[" * (MAX_JSON_DEPTH + 2) + b"]" * (MAX_JSON_DEPTH + 2), "too_deep"),
    ],
)
async def test_a_malformed_body_is_a_clear_error(client: Client, body: bytes, code: str) -> None:
    error = await error_of(await client.post("/v1/events", data=body), 400)
    assert error["code"] == code
    assert ("levels deep" in str(error["message"])) == (code == "too_deep")


async def test_a_body_is_bounded_in_bytes_and_events(client: Client) -> None:
    assert (await error_of(await client.post("/v1/events", data=io.BytesIO(b" " * (MAX_BODY_BYTES + 1))), 413))[
        "code"
    ] == "too_large"
    error = await error_of(await client.post("/v1/events", json=[event()] * (MAX_EVENTS + 1)), 400)
    assert error["code"] == "too_many_events"
    assert (await client.post("/v1/events", json=[event()] * MAX_EVENTS)).status == 202


async def test_a_body_is_bounded_after_decompression(client: Client) -> None:
    bomb = zlib.compress(b" " * (8 * MAX_BODY_BYTES))
    response = await client.post("/v1/events", data=bomb, headers={"Content-Encoding": "deflate"})
    assert (await error_of(response, 413))["code"] == "too_large"


async def test_a_chunked_body_is_bounded(client: Client) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    await error_of(await client.post("/v1/events", data=parts()), 413)


async def test_a_body_that_is_not_encoded_as_it_says_is_refused(client: Client) -> None:
    response = await client.post("/v1/events", data=b"plain", headers={"Content-Encoding": "gzip"})
    assert response.status == 400


async def test_writes_from_pages_of_another_origin_are_refused(client: Client, service: FakeService) -> None:
    response = await client.post("/v1/events", json=event(), headers={"Origin": "https://elsewhere.example"})
    assert (await error_of(response, 403))["code"] == "cross_origin"
    assert not service.events
    own = f"http://{client.host}:{client.port}"
    assert (await client.post("/v1/events", json=event(), headers={"Origin": own})).status == 202


# ---- recommendations


async def test_every_parameter_reaches_the_request(client: Client, service: FakeService) -> None:
    query = (
        "k=3&explain=1&repeats=1&exclude=i0,i1&exclude=i2&category=A&category=B,C&after=2:17&deadline_ms=900&context.device=tv"
    )
    response = await client.get(f"/v1/recommend/some%20one?{query}")
    assert response.status == 200
    request, deadline_ms = service.requests[0]
    assert (request.user_id, request.k, request.explain, request.repeats) == ("some one", 3, True, True)
    assert request.exclude == ("i0", "i1", "i2")
    assert request.categories == ("A", "B", "C")
    assert request.after == After(2, 17)
    assert request.context == {"device": "tv"}
    assert deadline_ms == 900
    slate = await response.json()
    assert [item["item_id"] for item in slate["items"]] == ["i3", "i4", "i5"]
    assert {"request_id", "user_id", "items", "release", "arm", "degraded", "as_of", "timings_ms"} <= set(slate)


async def test_a_plain_request_has_the_defaults_and_an_id_of_its_own(client: Client, service: FakeService) -> None:
    for _ in range(2):
        assert (await client.get("/v1/recommend/u")).status == 200
    (first, deadline_ms), (second, _) = service.requests
    assert (first.k, first.explain, first.after, first.candidates, deadline_ms) == (10, False, None, None, None)
    assert not first.repeats
    assert first.request_id
    assert first.request_id != second.request_id


async def test_a_body_asks_for_exactly_its_candidates(client: Client, service: FakeService) -> None:
    body = {"user_id": "u", "candidates": ["i7", "i5"], "k": 2}
    response = await client.post("/v1/recommend", json=body, headers={"deadline-ms": "50"})
    assert [item["item_id"] for item in (await response.json())["items"]] == ["i7", "i5"]
    assert service.requests[0][1] == 50


@pytest.mark.parametrize(
    "query",
    [
        "k=0",
        "k=501",
        "k=ten",
        "k=1.5",
        "k=-1",
        "k=1&k=2",
        "k=" + "9" * 300,
        "k=%D9%A1",
        "explain=perhaps",
        "repeats=perhaps",
        "after=1",
        "after=a:b",
        "after=-1:2",
        "after=1:",
        "deadline_ms=0",
        "deadline_ms=99999999",
        "categorie=A",
        "category=" + "x" * 300,
        "context.a=" + "x" * 5_000,
        "context.=tv",
    ],
)
async def test_a_bad_parameter_is_a_clear_error(client: Client, query: str) -> None:
    error = await error_of(await client.get(f"/v1/recommend/u?{query}"), 400)
    assert error["field"]


@pytest.mark.parametrize("body", [[], "u", {}, {"user_id": 1.5}, {"user_id": "u", "k": "many"}, {"user_id": "u", "x": 1}])
async def test_a_bad_request_body_is_a_clear_error(client: Client, body: object) -> None:
    await error_of(await client.post("/v1/recommend", json=body), 400)


@pytest.mark.parametrize("path", ["/v1/recommend/u", "/v1/similar/i1"])
@pytest.mark.parametrize("k", [0, 501, -1])
async def test_ranges_have_one_wording(client: Client, path: str, k: int) -> None:
    error = await error_of(await client.get(f"{path}?k={k}"), 400)
    assert error["message"] == f"k must lie in 1..500, is {k}"
    posted = await error_of(await client.post("/v1/recommend", json={"user_id": "u", "k": k}), 400)
    assert posted == error


@pytest.mark.parametrize(
    ("query", "after", "field"),
    [
        ("after=1:x", {"partition": 1, "offset": "x"}, "after.offset"),
        ("after=1:-2", {"partition": 1, "offset": -2}, "after.offset"),
        ("after=y:2", {"partition": "y", "offset": 2}, "after.partition"),
    ],
)
async def test_the_bad_part_of_a_token_is_named(client: Client, query: str, after: dict[str, object], field: str) -> None:
    asked = await error_of(await client.get(f"/v1/recommend/u?{query}"), 400)
    posted = await error_of(await client.post("/v1/recommend", json={"user_id": "u", "after": after}), 400)
    assert asked["field"] == field
    assert posted == asked
    assert str(asked["message"]).startswith(f"{field} must ")


async def test_similar_items(client: Client) -> None:
    response = await client.get("/v1/similar/i1?k=2")
    assert response.status == 200
    assert [item["item_id"] for item in (await response.json())["items"]] == ["i0", "i2"]
    assert (await error_of(await client.get("/v1/similar/nothing"), 404))["code"] == "not_found"
    await error_of(await client.get("/v1/similar/i1?k=0"), 400)


# ---- users and items


async def test_erasure_leaves_nothing(client: Client) -> None:
    await client.post("/v1/events", json=event())
    known = await (await client.get("/v1/users/u")).json()
    assert known["user_id"] == "u"
    assert known["events"] == 1
    assert (await client.delete("/v1/users/u")).status == 202
    assert (await error_of(await client.get("/v1/users/u"), 404))["code"] == "not_found"
    assert (await client.delete("/v1/users/u")).status == 202


async def test_what_get_answers_can_be_put_and_no_path_comes_in_that_way(client: Client, service: FakeService) -> None:
    service.catalogue["p"] = Item("p", "Print", image="/data/prints/p.png", attributes={"ink": "red"})
    answered = await (await client.get("/v1/items/p")).json()
    assert (await client.put("/v1/items/p", json={**answered, "title": 7})).status == 202
    assert service.catalogue["p"] == Item("p", "7", image="/data/prints/p.png", attributes={"ink": "red"})
    for item_id in ("p", "i1", "new"):
        error = await error_of(await client.put(f"/v1/items/{item_id}", json={"image": "/etc/passwd.png"}), 400)
        assert error["field"] == "image"
    error = await error_of(await client.put("/v1/items/i1", json={"image": "/data/prints/p.png"}), 400)
    assert error["field"] == "image"
    assert (await client.put("/v1/items/7", json={"item_id": 7})).status == 202


async def test_an_item_is_put_read_and_deleted(client: Client, service: FakeService) -> None:
    body = {"title": "New", "categories": ["A"], "price": 2.5, "attributes": {"year": "1999"}}
    response = await client.put("/v1/items/new%2Fone", json=body)
    assert response.status == 202
    assert service.catalogue["new/one"].title == "New"
    read = await (await client.get("/v1/items/new%2Fone")).json()
    assert read["item_id"] == "new/one"
    assert {name: read[name] for name in body} == body
    assert (await client.delete("/v1/items/new%2Fone")).status == 202
    await error_of(await client.get("/v1/items/new%2Fone"), 404)


@pytest.mark.parametrize(
    "body",
    [
        {"item_id": "other"},
        {"title": [5]},
        {"price": "free"},
        {"unheard_of": 1},
        [],
        {"title": "x" * 70_000},
        {"image": "/etc/x.png"},
        {"image": "../x.png"},
    ],
)
async def test_a_bad_item_is_a_clear_error(client: Client, service: FakeService, body: object) -> None:
    await error_of(await client.put("/v1/items/new", json=body), 400)
    assert "new" not in service.catalogue


@pytest.mark.parametrize("path", ["/v1/recommend/", "/v1/users/", "/v1/items/"])
async def test_an_id_is_bounded(client: Client, path: str) -> None:
    assert (await error_of(await client.get(path + "x" * 257), 400))["code"] == "invalid_field"
    await error_of(await client.get(path), 404)


async def test_an_image_comes_only_from_its_recorded_file(client: Client, service: FakeService, tmp_path: Path) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    recorded: dict[str, Path | str | None] = {
        "i1": picture,
        "i2": tmp_path / "gone.png",
        "i3": secret,
        "i4": "pages/p.png",
        "i5": None,
    }
    service.catalogue = {name: Item(name, image=None if path is None else str(path)) for name, path in recorded.items()}
    response = await client.get("/v1/items/i1/image")
    assert response.status == 200
    assert response.content_type == "image/png"
    assert await response.read() == b"\x89PNG"
    for item_id in ("i2", "i3", "i4", "i5", "i6", "..%2F..%2Fetc%2Fpasswd"):
        await error_of(await client.get(f"/v1/items/{item_id}/image"), 404)


# ---- operations and errors


async def test_readiness_follows_the_worker_and_health_does_not(client: Client, service: FakeService) -> None:
    assert (await client.get("/readyz")).status == 200
    service.is_ready = False
    response = await client.get("/readyz")
    assert response.status == 503
    assert await response.json() == {
        "ready": False,
        "reasons": {"catalogue": "being read"},
        "warnings": {},
        "release": "none",
        "refused": {},
    }
    assert (await client.get("/healthz")).status == 200


async def test_metrics_count_requests_by_route_and_events_by_outcome(client: Client) -> None:
    await client.post("/v1/events", json=[event(), event(user_id=7.5)])
    await client.get("/v1/users/unheard")
    await client.get("/nowhere/at/all")
    text = await (await client.get("/metrics")).text()
    assert 'riffle_http_events_total{outcome="accepted"} 1' in text
    assert 'riffle_http_events_total{outcome="rejected"} 1' in text
    assert 'riffle_http_requests_total{method="GET",route="/v1/users/{user_id}",status="404"} 1' in text
    assert 'riffle_http_requests_total{method="GET",route="unknown",status="404"} 1' in text
    assert "unheard" not in text


async def test_unknown_paths_and_methods_are_json_errors(client: Client) -> None:
    assert (await error_of(await client.get("/v2/anything"), 404))["code"] == "not_found"
    response = await client.delete("/v1/events")
    assert (await error_of(response, 405))["code"] == "method_not_allowed"
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (DeadlineExceeded("deadline_exceeded", "too late"), 504, "deadline_exceeded"),
        (NotReady("not_ready", "restoring"), 503, "not_ready"),
        (RuntimeError("a secret of the house"), 500, "internal"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get("/v1/recommend/u"),
        lambda client: client.get("/v1/similar/i1"),
        lambda client: client.get("/v1/users/u"),
        lambda client: client.delete("/v1/users/u"),
        lambda client: client.post("/v1/events", json=event()),
        lambda client: client.put("/v1/items/i", json={}),
        lambda client: client.delete("/v1/items/i"),
        lambda client: client.get("/v1/items/i"),
        lambda client: client.get("/v1/items/i/image"),
    ],
)
async def test_every_view_turns_failures_into_statuses(
    client: Client,
    service: FakeService,
    failure: Exception,
    status: int,
    code: str,
    call: Callable[[Client], Awaitable[aiohttp.ClientResponse]],
) -> None:
    service.failure = failure
    response = await call(client)
    assert (await error_of(response, status))["code"] == code
    assert "secret" not in await response.text()


async def test_it_mounts_on_an_application_that_has_views_of_its_own(service: FakeService) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response("other")

    app = web.Application()
    attach(app, service)
    app.router.add_get("/other", other)
    async with TestClient(Served(app, service.metrics)) as client:
        assert json.loads(await (await client.get("/other")).text()) == "other"
        assert (await client.get("/v1/recommend/u")).status == 200
        await error_of(await client.get("/nowhere"), 404)


async def test_a_worker_that_stands_still_says_so(client: Client, service: FakeService) -> None:
    service.standing_still["riffle.interactions-3"] = 61.5
    response = await client.get("/healthz")
    assert response.status == 503
    assert await response.json() == {"status": "stuck", "stuck": {"riffle.interactions-3": 61.5}}


async def test_tables_are_listed_and_hashed_only_when_asked(client: Client) -> None:
    plain = (await (await client.get("/v1/tables")).json())["tables"]
    assert plain == [{"table": "users", "partition": 0, "role": "owner", "position": 7}]
    assert (await (await client.get("/v1/tables?digests=1")).json())["tables"] == [{**plain[0], "hash": "0"}]


# ---- rules


async def test_rules_are_shown_and_tried_without_serving(client: Client, service: FakeService) -> None:
    pin = {"name": "top", "kind": "pin", "pins": [{"item_id": "i3", "position": 0}]}
    shown = await (await client.get("/v1/rules")).json()
    assert shown == {"format": 1, "version": 0, "rules": [], "expired": 0, "refused": None}
    response = await client.post("/v1/rules/preview", json={"rules": {"rules": [pin]}, "request": {"user_id": "u", "k": 2}})
    answer = await response.json()
    assert response.status == 200
    assert answer["rules"] == [pin]
    assert len(answer["serving"]["items"]) == len(answer["proposed"]["items"]) == 2
    counted = await (await client.post("/v1/rules/preview", json={"rules": {"rules": [pin]}})).json()
    assert counted["serving"] is counted["proposed"] is None
    assert service.serving_rules.rules == ()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "rules"),
        ({"rules": {"rules": [{"name": "a", "kind": "boost", "factor": 1, "where": {"items": ["x"]}}]}}, "rules[0].factor"),
        ({"rules": {"rules": []}, "request": {"user_id": "u", "k": 0}}, "k"),
        ({"rules": {"rules": []}, "user": "u"}, "user"),
    ],
)
async def test_bad_rules_are_a_bad_request_that_names_the_field(client: Client, body: dict[str, object], field: str) -> None:
    error = await error_of(await client.post("/v1/rules/preview", json=body), 400)
    assert error["field"] == field


async def test_an_error_that_its_sender_need_not_understand_is_internal(
    service: FakeService, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    for failure in (
        StoreCorrupt("damaged", "a block"),
        ConfigError("invalid_setting", "a file"),
        ReleaseRejected("gate", "no"),
    ):
        service.failure = failure
        async with client.get("/v1/users/ann") as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (500, "internal")
        assert failure.message not in error["message"]
        assert failure.message in caplog.text


async def test_the_id_of_an_item_may_be_null_in_the_body(service: FakeService, client: Client) -> None:
    for given, status in ((None, 202), ("i9", 202), ("other", 400), ("", 400)):
        async with client.put("/v1/items/i9", json={"item_id": given}) as response:
            assert response.status == status, given
    assert service.catalogue["i9"].item_id == "i9"
