"""Requests that the server refuses before any view, and malformed or misleading bodies."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import FakeService
from serving import Answer, Served, answers_on, answers_to, open_to, raw

from agents.web.body import MAX_BODY_BYTES, MAX_VALUES, STEP_BYTES, unpacked
from agents.web.query import MANY
from agents.web.routes import build_app, routes, takes_of
from agents.web.server import LINGER_BYTES, MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES
from schemas.errors import BadRequest, NotReady, RiffleError
from schemas.records import Item

NOW_MS = 1_700_000_000_000
EVENT = json.dumps({"user_id": "u", "item_id": "i1", "event_time": NOW_MS}).encode()


@pytest.fixture
def service() -> FakeService:
    return FakeService(catalogue={f"i{n}": Item(f"i{n}", title=f"Item {n}") for n in range(5)})


@pytest.fixture
async def server(service: FakeService) -> AsyncIterator[Served]:
    async with Served(build_app(service, now_ms=lambda: NOW_MS), service.metrics) as server:
        assert isinstance(server, Served)
        yield server


def posted(*headers: str, body: bytes = EVENT, target: str = "/v1/events") -> bytes:
    return raw(target, *headers, f"Content-Length: {len(body)}", method="POST", body=body)


async def only(server: Served, sent: bytes) -> Answer:
    (answer,) = await answers_to(server, sent)
    assert answer.version == "HTTP/1.1"
    return answer


async def error(server: Served, sent: bytes, status: int, code: str) -> dict[str, str | None]:
    answer = await only(server, sent)
    assert (answer.status, answer.error()["code"]) == (status, code), answer
    assert "b'" not in answer.error()["message"], "a Python representation"
    found: dict[str, str | None] = answer.error()
    return found


def bomb(megabytes: int = 900) -> bytes:
    """Create a gzip stream of zeros, about 1 kB for each MiB: the same block repeated."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = pack.compress(bytes(1 << 20)) + pack.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * megabytes


def chunked(body: bytes, size: int = 50_000) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


# ---- compressed bodies


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_no_more_is_unpacked_than_a_body_may_hold_and_other_tasks_get_their_turn(encoding: str) -> None:
    sent = bomb()[0 if encoding == "gzip" else 10 :]
    assert len(sent) < MAX_BODY_BYTES
    turns, gave, pieces = 0, 0, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(sent), STEP_BYTES):
            yield sent[at : at + STEP_BYTES]

    async def unpack() -> None:
        nonlocal gave, pieces
        async for piece in unpacked(parts(), encoding):
            assert len(piece) <= STEP_BYTES
            gave, pieces = gave + len(piece), pieces + 1

    task = asyncio.create_task(others())
    with pytest.raises(BadRequest, match="larger than"):
        await unpack()
    task.cancel()
    assert gave <= MAX_BODY_BYTES
    assert turns >= pieces >= MAX_BODY_BYTES // STEP_BYTES


@pytest.mark.parametrize("how", ["length", "chunked"])
async def test_a_compressed_body_that_grows_too_large_is_refused_while_others_are_served(server: Served, how: str) -> None:
    sent = bomb()
    if how == "length":
        asked = raw(
            "/v1/events", "Content-Encoding: gzip", f"Content-Length: {len(sent)}", close=False, body=sent, method="POST"
        )
    else:
        asked = raw(
            "/v1/events", "Content-Encoding: gzip", "Transfer-Encoding: chunked", close=False, body=chunked(sent), method="POST"
        )
    refused = asyncio.create_task(only(server, asked))
    healthy = 0
    while not refused.done():
        healthy += (await only(server, raw("/healthz"))).status == 200
    answer = await refused
    assert (answer.status, answer.error()["code"], answer.headers["connection"]) == (413, "too_large", "close")
    assert healthy


async def test_the_connection_of_a_refused_body_is_closed_however_much_is_still_sent(
    server: Served, service: FakeService
) -> None:
    _, writer = await open_to(server)
    writer.write(
        raw("/v1/events", "Content-Encoding: gzip", "Transfer-Encoding: chunked", close=False, body=b"", method="POST")
    )
    writer.write(b"ffffffff\r\n" + bomb())
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 4 * LINGER_BYTES:
            writer.write(bytes(1 << 20))
            sent += 1 << 20
            await writer.drain()
    assert sent < 4 * LINGER_BYTES
    assert not service.events
    writer.close()


async def test_what_follows_a_refused_body_is_not_answered(server: Served, service: FakeService) -> None:
    body = gzip.compress(bytes(2 * MAX_BODY_BYTES))
    first = raw("/v1/events", "Content-Encoding: gzip", f"Content-Length: {len(body)}", close=False, body=body, method="POST")
    assert [answer.status for answer in await answers_to(server, first + posted())] == [413]
    assert not service.events


async def test_bodies_are_read_in_every_encoding_that_is_listed(server: Served, service: FakeService) -> None:
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bodies = [
        ("identity", EVENT),
        ("IDENTITY", EVENT),
        ("gzip", gzip.compress(EVENT)),
        ("GZip", gzip.compress(EVENT[:10]) + gzip.compress(EVENT[10:])),
        ("deflate", zlib.compress(EVENT)),
        ("deflate", bare.compress(EVENT) + bare.flush()),
        ("gzip", gzip.compress(EVENT + b" " * (MAX_BODY_BYTES - len(EVENT)))),
    ]
    for encoding, body in bodies:
        assert (await only(server, posted(f"Content-Encoding: {encoding}", body=body))).status == 202
    assert len(service.events) == len(bodies)


@pytest.mark.parametrize("encoding", ["br", "zstd", "x-gzip", "snappy", "gzip, gzip", "identity, gzip", "gzip;q=1", "\udcff"])
async def test_another_encoding_is_refused(server: Served, service: FakeService, encoding: str) -> None:
    found = await error(server, posted(f"Content-Encoding: {encoding}"), 415, "unsupported_encoding")
    assert found["field"] == "Content-Encoding"
    twice = posted("Content-Encoding: gzip", "Content-Encoding: gzip", body=gzip.compress(gzip.compress(EVENT)))
    await error(server, twice, 415, "unsupported_encoding")
    await error(
        server,
        raw("/v1/events", "Transfer-Encoding: gzip, chunked", body=chunked(EVENT), method="POST"),
        415,
        "unsupported_encoding",
    )
    assert not service.events


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", b"plain"),
        ("gzip", gzip.compress(EVENT)[:-9]),
        ("gzip", gzip.compress(EVENT) + b"more"),
        ("gzip", zlib.compress(EVENT)),
        ("gzip", gzip.compress(b"") * 2_000),
        ("deflate", zlib.compress(EVENT)[:-1]),
        ("deflate", zlib.compress(EVENT) + b"more"),
        ("deflate", b"\xff"),
    ],
)
async def test_a_body_that_is_not_encoded_as_it_says_is_refused(server: Served, encoding: str, body: bytes) -> None:
    await error(server, posted(f"Content-Encoding: {encoding}", body=body), 400, "unreadable_body")


@pytest.mark.parametrize(
    "value",
    [
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "text/plain",
        ";;;",
        "a/b; charset*=u''x",
        "\udcff",
    ],
)
async def test_the_content_type_does_not_matter(server: Served, value: str) -> None:
    assert (await only(server, posted(f"Content-Type: {value}"))).status == 202


async def test_a_charset_other_than_utf_8_is_refused(server: Served) -> None:
    found = await error(server, posted("Content-Type: application/json; charset=latin-1"), 415, "unsupported_encoding")
    assert found["field"] == "Content-Type"


async def test_a_byte_order_mark_is_skipped_and_the_last_of_two_keys_counts(server: Served, service: FakeService) -> None:
    assert (await only(server, posted(body=b"\xef\xbb\xbf" + EVENT))).status == 202
    assert (await only(server, posted(body=EVENT[:-1] + b', "item_id": "i2"}'))).status == 202
    assert [event.item_id for event in service.events] == ["i1", "i2"]
    await error(server, posted(body="[]".encode("utf-16")), 400, "not_json")


@pytest.mark.parametrize("part", [b"[],", b"0,", b"{},", b'"",', b'"\\"",'])
async def test_values_in_a_body_are_bounded(server: Served, part: bytes) -> None:
    within, beyond = (b"[" + part * n + b"0]" for n in (MAX_VALUES - 1, MAX_VALUES))
    await error(server, posted(body=within), 400, "too_many_events")
    await error(server, posted(body=beyond), 413, "too_large")


async def test_commas_in_strings_are_no_values(server: Served, service: FakeService) -> None:
    text = ',"\\,' * 15_000
    body = json.dumps({"title": text, "text": text}).encode()
    assert body.count(b",") > MAX_VALUES
    sent = raw("/v1/items/commas", f"Content-Length: {len(body)}", method="PUT", body=body)
    assert (await only(server, sent)).status == 202
    assert service.catalogue["commas"].text == text


@pytest.mark.parametrize("part", [b'\\"', b'"\\', b",\\", b'"'])
async def test_strings_that_are_never_closed_are_scanned_once(server: Served, part: bytes) -> None:
    body = b'["' + part * (900_000 // len(part)) + b"," * (MAX_VALUES + 1)
    assert (await only(server, posted(body=body))).status in {400, 413}


# ---- bodies that differ from their headers


async def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent(server: Served) -> None:
    for target in ("/v1/events", "/v1/items/i1"):
        sent = raw(target, "Expect: 100-continue", f"Content-Length: {MAX_BODY_BYTES + 1}", method="POST")
        await error(server, sent, 413, "too_large")
    await error(server, raw("/healthz", f"Content-Length: {1 << 40}"), 413, "too_large")


async def test_a_body_that_breaks_off_in_its_chunks_is_answered_once(server: Served, service: FakeService) -> None:
    for target, status, code in [("/v1/events", 400, "unreadable_body"), ("/nowhere", 404, "not_found")]:
        reader, writer = await open_to(server)
        writer.write(raw(target, "Expect: 100-continue", "Transfer-Encoding: chunked", close=False, method="POST"))
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"zz\r\n" + raw("/healthz"))
        found = await answers_on(reader)
        writer.close()
        assert [(answer.status, answer.error()["code"]) for answer in found] == [(status, code)]
    assert not service.events


async def test_a_body_that_does_not_arrive_in_time_is_refused(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agents.web.body.BODY_TIMEOUT_S", 0.05)
    await error(server, raw("/v1/events", "Content-Length: 500", close=False, body=EVENT, method="POST"), 408, "body_timeout")


async def test_a_request_whose_client_leaves_is_counted(service: FakeService) -> None:
    async with Served(build_app(service), service.metrics) as server:
        reader, writer = await open_to(server)
        writer.write(raw("/v1/events", "Expect: 100-continue", "Content-Length: 500", method="POST"))
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert 'method="POST",route="/v1/events",status="499"} 1' in service.render_metrics()
    assert not service.events


# ---- requests that the parser refuses


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (raw("/healthz", method="FOO"), 400, "bad_request"),
        (raw("/healthz", method="get"), 400, "bad_request"),
        (raw("/healthz", "no colon"), 400, "bad_request"),
        (raw("/healthz", "na me: x"), 400, "bad_request"),
        (raw("/healthz", "X: a\0b"), 400, "bad_request"),
        (raw("/healthz", "Host: second"), 400, "bad_request"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/9.9\r\nHost: h\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz HTTP/2.0\r\nHost: h\r\n\r\n", 400, "bad_request"),
        (b"GET /healthz\r\n\r\n", 400, "bad_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"{}\r\n\r\n", 400, "bad_request"),
        (raw("http://[/healthz"), 400, "bad_request"),
        (raw("/v1/items/€"), 400, "bad_request"),
        (raw("/v1/items/\udcff"), 400, "bad_request"),
        (raw("/v1/events", "Content-Length: x", method="POST"), 400, "bad_request"),
        (raw("/v1/events", "Content-Length: -1", method="POST"), 400, "bad_request"),
        (raw("/v1/events", "Content-Length: +2", body=b"[]", method="POST"), 400, "bad_request"),
        (raw("/v1/events", "Content-Length: 2", "Content-Length: 3", body=b"[]", method="POST"), 400, "bad_request"),
        (raw("/v1/events", "Content-Length: " + "9" * 30, method="POST"), 400, "bad_request"),
        (
            raw("/v1/events", "Transfer-Encoding: chunked", "Content-Length: 2", body=chunked(b"[]"), method="POST"),
            400,
            "bad_request",
        ),
        (raw("/v1/events", "Transfer-Encoding: chunked", body=b"zz\r\n", method="POST"), 400, "bad_request"),
        (raw("/v1/events", "Transfer-Encoding: chunked, gzip", method="POST"), 400, "bad_request"),
        (raw("/" + "x" * MAX_URL_BYTES), 414, "too_long"),
        (raw("/healthz", "X: " + "x" * (MAX_HEADER_BYTES + 1)), 431, "header_too_large"),
        (raw("/healthz", "x" * (MAX_HEADER_BYTES + 1) + ": x"), 431, "header_too_large"),
        (raw("/healthz", *[f"X{n}: x" for n in range(MAX_HEADERS)]), 431, "header_too_large"),
        (raw("/healthz", "Expect: the impossible"), 417, "expectation_failed"),
        (raw("/nowhere", "Expect: \udcff"), 417, "expectation_failed"),
        (raw("h:80", method="CONNECT"), 404, "not_found"),
        (raw("*", method="OPTIONS"), 404, "not_found"),
        (raw("/healthz", method="OPTIONS"), 405, "method_not_allowed"),
        (raw("/healthz", method="PURGE"), 405, "method_not_allowed"),
    ],
)
async def test_a_request_that_is_refused_before_any_view_is_answered_like_any_other(
    server: Served, service: FakeService, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, code: str
) -> None:
    with caplog.at_level(logging.INFO):
        await error(server, sent, status, code)
    assert f'status="{status}"}} 1' in service.render_metrics()
    assert not caplog.records


async def test_what_is_within_the_limits_is_served(server: Served, service: FakeService) -> None:
    ids = ",".join(f"{n:036d}" for n in range(300))
    assert (await only(server, raw(f"/v1/recommend/u?exclude={ids}"))).status == 200
    assert len(service.requests[0][0].exclude) == 300
    target = "/v1/recommend/u?exclude="
    assert (await only(server, raw(target + "xxxxxxx," * ((MAX_URL_BYTES - len(target)) // 8)))).status == 200
    assert (await only(server, raw("/healthz", "X: " + "x" * (MAX_HEADER_BYTES - 10)))).status == 200
    assert (await only(server, raw("/healthz", *[f"X{n}: x" for n in range(MAX_HEADERS - 2)]))).status == 200
    assert (await only(server, raw("http://elsewhere/healthz"))).status == 200


async def test_a_request_behind_others_is_refused_after_their_answers(server: Served) -> None:
    reader, writer = await open_to(server)
    writer.write(raw("/healthz", close=False))
    first = await reader.readuntil(b'{"status":"ok"}')
    writer.write(b"nonsense\r\n\r\n" + raw("/healthz"))
    second = await answers_on(reader)
    writer.close()
    assert b" 200 " in first
    assert [answer.status for answer in second] == [400]


async def test_a_refused_client_can_read_its_answer_while_it_still_sends(server: Served) -> None:
    reader, writer = await open_to(server)
    writer.write(raw("/healthz", "X: " + "x" * (LINGER_BYTES // 2)))
    (answer,) = await answers_on(reader)
    writer.close()
    assert answer.error()["code"] == "header_too_large"


# ---- headers


@pytest.mark.parametrize(
    "origin", ["http://[", "http://]", "null", "", "http://h:x", "//", "\udcff", "http://h\t.evil", "h", "http://h]"]
)
async def test_an_origin_that_cannot_be_read_is_another_one(server: Served, service: FakeService, origin: str) -> None:
    await error(server, posted(f"Origin: {origin}"), 403, "cross_origin")
    await error(server, posted("Origin: http://h", f"Origin: {origin}"), 403, "cross_origin")
    assert not service.events
    assert (await only(server, posted("Origin: http://h"))).status == 202


@pytest.mark.parametrize("value", ["", "x", "+5", "2_50", "1e3", "0", "60001", "5.0", "-1", "\udcd9\udca1", "5, 6", "9" * 30])
async def test_a_deadline_that_cannot_be_read_is_refused(server: Served, service: FakeService, value: str) -> None:
    for sent in (
        raw("/v1/recommend/u", f"deadline-ms: {value}"),
        raw("/v1/recommend/u?deadline_ms=5", f"deadline-ms: {value}"),
    ):
        found = await error(server, sent, 400, "invalid_field")
        assert found["field"] == "deadline-ms"
    await error(server, raw("/v1/recommend/u", "deadline-ms: 5", "deadline-ms: 6"), 400, "invalid_field")
    assert not service.requests


@pytest.mark.parametrize("host", ["[", "]", "h h", "\udcff", "", ":", "h:99999999", "//"])
@pytest.mark.parametrize("value", ["x", "\udcff", "bytes=9-1", "bytes=-", '"', "W/", "Sun, 99 Xxx 9999 99:99:99 GMT", "*"])
async def test_headers_that_mean_nothing_here_change_nothing(
    server: Served, service: FakeService, tmp_path: Path, value: str, host: str
) -> None:
    picture = tmp_path / "p.png"
    picture.write_bytes(b"\x89PNG")
    service.catalogue["p"] = Item("p", image=str(picture))
    names = (
        "Range",
        "If-Range",
        "If-Match",
        "If-None-Match",
        "If-Modified-Since",
        "If-Unmodified-Since",
        "Cookie",
        "Accept",
        "Via",
    )
    headers = [f"{name}: {value}" for name in names]
    for target in ("/v1/items/p/image", "/v1/items/p", "/healthz"):
        sent = raw(target, *headers).replace(b"Host: h", b"Host: " + host.encode("utf-8", "surrogateescape"))
        assert (await only(server, sent)).status == 200


# ---- queries and paths


def every_route() -> list[tuple[str, str, frozenset[str]]]:
    return [(route.method, route.path.replace(":[^/]+", ""), takes_of(route)) for route in routes(FakeService())]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("method", "path", "takes"), every_route())
async def test_every_route_refuses_parameters_that_it_does_not_take(
    server: Served, service: FakeService, method: str, path: str, takes: frozenset[str]
) -> None:
    target = path.replace("{item_id}", "i1").replace("{user_id}", "u")
    for query in ("foo=1", "=1", "K=1", "k%20=1", "context=1", *(() if "k" in takes else ("k=3",))):
        answer = await only(server, raw(f"{target}?{query}", "Content-Length: 2", method=method, body=b"{}"))
        assert (answer.status, answer.error()["code"]) == (400, "invalid_field"), query
    for name in {f"{name}x" if name.endswith(".") else name for name in takes - MANY}:
        found = await error(
            server, raw(f"{target}?{name}=1&{name}=1", "Content-Length: 2", method=method, body=b"{}"), 400, "invalid_field"
        )
        assert found["field"] == name
    assert not service.requests
    assert not service.events


@pytest.mark.parametrize(
    ("target", "field"),
    [
        (f"{target}{value}", target[target.index("?") + 1 : -1])
        for target in ("/v1/similar/i1?k=", "/v1/recommend/u?k=", "/v1/recommend/u?deadline_ms=")
        for value in ("%205", "+5", "%2B5", "5%20", "1_0", "%D9%A3", "5.0", "0x5", "", "1e1", "9" * 25, "-0x1", "%005")
    ]
    + [
        ("/v1/tables?digests=maybe", "digests"),
        ("/v1/tables?digests=1%20", "digests"),
        ("/v1/recommend/u?explain=2", "explain"),
        ("/v1/recommend/u?after=1:+2", "after.offset"),
        ("/v1/recommend/u?after=1:2:3", "after.offset"),
        ("/v1/recommend/u?after=", "after"),
        ("/v1/recommend/u?after=99999999:1", "after.partition"),
        ("/v1/recommend/u?request_id=" + "x" * 300, "request_id"),
        ("/v1/recommend/u?k=%", "URL"),
        ("/v1/recommend/u?k=%f", "URL"),
        ("/v1/recommend/%ff", "URL"),
        ("/v1/recommend/u?exclude=%ED%A0%80", "URL"),
        ("/v1/users/%c0%af", "URL"),
        ("/nowhere/%ff", "URL"),
        ("/v1/items/i1#2", "URL"),
        ("/v1/recommend/u?exclude=i#1", "URL"),
    ],
)
async def test_a_value_that_does_not_parse_is_refused(server: Served, service: FakeService, target: str, field: str) -> None:
    found = await error(server, raw(target), 400, "invalid_field")
    assert found["field"] == field
    assert not service.requests


async def test_flags_have_one_spelling_everywhere(server: Served, service: FakeService) -> None:
    for text, value in (("yes", True), ("ON", True), ("", True), ("no", False), ("0", False)):
        assert ("hash" in (await only(server, raw(f"/v1/tables?digests={text}"))).body.decode()) == value
        assert (await only(server, raw(f"/v1/recommend/u?explain={text}"))).status == 200
        assert service.requests[-1][0].explain == value


@pytest.mark.parametrize(
    ("path", "item_id"),
    [
        ("a%2Fb", "a/b"),
        ("a%2fb", "a/b"),
        ("a%00b", "a\0b"),
        ("a%0Ab", "a\nb"),
        ("%7Ba%7D", "{a}"),
        ("a.b", "a.b"),
        (".", "."),
        ("%2E%2E", ".."),
        ("a%2525", "a%25"),
        ("a+b", "a+b"),
        ("a;b", "a;b"),
        ("i%231", "i#1"),
        ("%20", " "),
        ("%E2%82%AC", "€"),
        ("%F0%9F%8D%90", "🍐"),
    ],
)
async def test_an_id_in_a_path_may_hold_any_characters(server: Served, service: FakeService, path: str, item_id: str) -> None:
    assert (await only(server, raw(f"/v1/items/{path}", "Content-Length: 2", method="PUT", body=b"{}"))).status == 202
    assert service.catalogue[item_id].item_id == item_id
    assert json.loads((await only(server, raw(f"/v1/items/{path}"))).body)["item_id"] == item_id
    assert (await only(server, raw(f"/v1/items/{path}", method="DELETE"))).status == 202
    assert item_id not in service.catalogue


@pytest.mark.parametrize(
    "path", ["/v1/items/i1/", "//v1/items/i1", "/v1//items/i1", "/v1/items/x/../i1", "/v1/items//i1", "/V1/items/i1", "//[/"]
)
async def test_another_spelling_of_a_path_is_another_path(server: Served, path: str) -> None:
    await error(server, raw(path), 404, "not_found")


async def test_the_part_of_a_token_that_is_unknown_is_named(server: Served) -> None:
    sent = posted(body=b'{"user_id": "u", "after": {"partition": 1, "offset": 2, "x": 3}}', target="/v1/recommend")
    found = await error(server, sent, 400, "invalid_field")
    assert found["message"] == "unknown field 'after.x'; known: after.offset, after.partition"
    assert found["field"] == "after.x"


async def test_a_long_name_of_a_field_is_not_sent_back_whole(server: Served) -> None:
    body = json.dumps([{"x" * 60_000: 1}] * 10).encode()
    assert len((await only(server, posted(body=body))).body) < 10_000


async def test_a_number_may_be_a_request_id(server: Served, service: FakeService) -> None:
    assert (await only(server, posted(body=b'{"user_id": "u", "request_id": 0}', target="/v1/recommend"))).status == 200
    assert service.requests[0][0].request_id == "0"
    await error(server, posted(body=b'{"user_id": "u", "request_id": false}', target="/v1/recommend"), 400, "invalid_field")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "/" + "x" * 300 + ".png", "/a\0b.png", "/dev/null", "/tmp"])
async def test_an_image_that_cannot_be_read_is_not_there(server: Served, service: FakeService, name: str) -> None:
    service.catalogue["p"] = Item("p", image=name)
    await error(server, raw("/v1/items/p/image"), 404, "not_found")


async def test_head_is_answered_wherever_get_is(server: Served) -> None:
    for target, status in (("/healthz", 200), ("/v1/items/i1", 200), ("/v1/items/none", 404), ("/nowhere", 404)):
        (answer,) = await answers_to(server, raw(target, method="HEAD"), head=True)
        assert (answer.status, answer.body) == (status, b"")


@pytest.mark.parametrize(
    ("failure", "status"), [(NotReady("internal", "ranking failed"), 500), (NotReady("not_ready", "restoring"), 503)]
)
async def test_a_failure_of_the_worker_is_no_invitation_to_try_again(
    server: Served, service: FakeService, failure: RiffleError, status: int
) -> None:
    service.failure = failure
    await error(server, raw("/v1/recommend/u"), status, failure.code)
