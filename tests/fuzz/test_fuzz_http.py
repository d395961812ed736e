"""Fuzzer of the HTTP interface: raw bytes and requests of every shape, on a real server with a second client."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import FakeService
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st
from serving import Answer, Served, open_to, raw, read_answer

from agents.web.body import MAX_BODY_BYTES
from agents.web.routes import build_app, routes, takes_of
from agents.web.server import MAX_HEADER_BYTES, MAX_URL_BYTES
from schemas.errors import DeadlineExceeded, NotReady, RiffleError
from schemas.records import Interaction, Item, Request

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "interface.md").read_text(encoding="utf-8")
LISTED = {
    int(status): set(re.findall(r"`([a-z_]+)`", text))
    for status, text in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE[PAGE.index("## Errors") :], re.MULTILINE)
}
"Error codes of the contract, by status."
TAKES = {
    (route.method, re.sub(r"\{[^}]+\}+", "ID", route.path)): takes_of(route)  # type: ignore[attr-defined]
    for route in routes(FakeService())
}
PLAIN = ("text/plain", "text/html", "text/css", "text/javascript", "image/svg+xml")
"Types of answers that are not JSON: metrics, and the files of the page."
FIRST_S, MORE_S = 10.0, 0.1
"Seconds that a client waits before it disconnects: for the answer to a complete request, and for further data."
WHOLE = re.compile(r"-?[0-9]{1,19}", re.ASCII)
FAILURES = (None, None, None, NotReady("not_ready", "restoring"), DeadlineExceeded("deadline_exceeded", "too late"))


@dataclass
class Case:
    """The data that one client sends, in parts, and what the test knows about it."""

    parts: list[bytes]
    method: str = ""
    target: str = ""
    must_answer: bool = False
    "It is a complete request, so that an answer must follow."
    failure: Exception | None = None

    def __repr__(self) -> str:
        return f"Case({b''.join(self.parts)[:3_000]!r}, in {len(self.parts)} parts, {self.failure!r})"


class Noting(logging.Handler):
    """Log handler that keeps warnings and errors."""

    def __init__(self, logged: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self._logged.append(record)


@dataclass(repr=False)
class Rig:
    """A server, and a client that polls its health over a separate connection."""

    serve: Callable[[web.Application, FakeService], TestServer]
    service: FakeService = field(default_factory=FakeService)
    longest_s: float = 0.0
    "Longest wait of the other client for an answer."
    asked: int = 0
    loop: asyncio.AbstractEventLoop = field(default_factory=uvloop.new_event_loop)
    logged: list[logging.LogRecord] = field(default_factory=list)

    def __repr__(self) -> str:
        return "Rig"

    def start(self) -> Rig:
        """Start the server."""
        self.loop.run_until_complete(self._start())
        handler = Noting(self.logged)
        logging.getLogger().addHandler(handler)
        self._handler = handler
        return self

    def stop(self) -> None:
        """Stop it."""
        logging.getLogger().removeHandler(self._handler)
        self._writer.close()
        self.loop.run_until_complete(self.server.close())
        self.loop.close()

    async def _start(self) -> None:
        self.server = self.serve(build_app(self.service), self.service)
        await self.server.start_server()
        self._reader, self._writer = await open_to(self.server)
        await self._healthy()

    async def _healthy(self) -> None:
        started = time.perf_counter()
        self._writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await read_answer(self._reader)
        assert answer is not None
        assert answer.status == 200
        self.asked += 1
        self.longest_s = max(self.longest_s, time.perf_counter() - started)

    def run(self, case: Case) -> tuple[list[Answer], bool]:
        """Send the case; returns the answers, and whether the server closed the connection by itself."""
        self.service.catalogue = {f"i{n}": Item(f"i{n}", title=f"Item {n}") for n in range(5)}
        self.service.events, self.service.requests, self.service.failure = [], [], case.failure
        return self.loop.run_until_complete(self._run(case))

    async def _run(self, case: Case) -> tuple[list[Answer], bool]:
        client = asyncio.ensure_future(self._client(case))
        while not client.done():
            await self._healthy()
        found = await client
        while len(self._connections()) > 1:  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(0)
        return found

    def _connections(self) -> list[Any]:
        assert self.server.runner is not None
        assert self.server.runner.server is not None
        return self.server.runner.server.connections

    async def _client(self, case: Case) -> tuple[list[Answer], bool]:
        reader, writer = await open_to(self.server)
        found: list[Answer] = []
        try:
            for part in case.parts:
                writer.write(part)
                await asyncio.sleep(0)
            async with asyncio.timeout(None) as patience:
                wait = FIRST_S if case.must_answer else MORE_S
                while True:
                    patience.reschedule(self.loop.time() + wait)
                    answer = await read_answer(reader, head=case.method == "HEAD")
                    if answer is None:
                        break
                    found.append(answer)
                    wait = FIRST_S if answer.status == 100 else MORE_S
        except TimeoutError:
            return found, False
        finally:
            writer.close()
        return found, True

    def counted(self) -> tuple[int, int]:
        """Return the numbers of requests counted as answered, and as abandoned by their clients."""
        lines = re.findall(r"^riffle_http_requests_total\{(.*)\} (\d+)\.0$", self.service.render_metrics(), re.MULTILINE)
        left = sum(int(n) for labels, n in lines if 'status="499"' in labels)
        return sum(int(n) for _, n in lines) - left, left


def every_answer_is_in_the_contract(rig: Rig, case: Case) -> None:
    counted, asked, logged = rig.counted()[0], rig.asked, len(rig.logged)
    answers, closed = rig.run(case)
    final = [answer for answer in answers if answer.status != 100]
    for answer in final:
        assert answer.version in {"HTTP/1.1", "HTTP/1.0"}, answer
        if case.method == "HEAD" or (answer.status == 200 and answer.headers["content-type"].startswith(PLAIN)):
            continue
        assert answer.headers["content-type"] == "application/json", answer
        value = json.loads(answer.body)
        assert answer.status in {200, 202} or answer.status in LISTED, answer
        if answer.status in LISTED and "error" in value:
            error = value["error"]
            assert set(error) == {"code", "message", "field"}, answer
            assert error["code"] in LISTED[answer.status], answer
            assert error["message"], answer
        else:
            assert answer.status in {200, 202}, answer
        for entry in value.get("rejected", ()):
            assert entry["error"]["code"] in LISTED[400], answer
        for entry in value.get("answers", ()):
            if "error" in entry:
                assert set(entry) == {"error", "status"}, answer
                assert entry["error"]["code"] in LISTED[entry["status"]], answer
                assert entry["status"] < 500 or case.failure is not None, answer
            else:
                assert "items" in entry, answer
        assert answer.status < 500 or case.failure is not None, answer
    if case.must_answer:
        assert final, "no answer"
    if final and final[0].status < 300 and case.target.startswith("/"):
        _understood(case)
    answered = rig.counted()[0] - counted - (rig.asked - asked)
    assert answered == len(final) or (not closed and answered > len(final)), f"{answered} counted, {len(final)} answered"
    assert len(rig.logged) == logged, [record.getMessage() for record in rig.logged[logged:]]


def _understood(case: Case) -> None:
    """Fail if a request was accepted whose query another parser refuses or reads differently."""
    path, _, query = case.target.partition("?")
    shape = re.sub(r"^(/v1/(?:recommend|similar|users|items|explain)/|/page/)[^/]+", r"\1ID", path)
    takes = TAKES.get(("GET" if case.method == "HEAD" else case.method, shape))
    assert takes is not None, path
    assert "#" not in case.target
    assert re.search(r"%(?![0-9A-Fa-f]{2})", case.target) is None, case.target
    unquote_to_bytes(case.target).decode()
    given = parse_qsl(query, keep_blank_values=True)
    for name, value in given:
        assert (name if not name.startswith("context.") else "context.") in takes, name
        if name in {"k", "deadline_ms", "limit", "partition", "since"}:
            assert WHOLE.fullmatch(value), value
    once = [name for name, _ in given if name not in {"exclude", "category", "id"}]
    assert len(once) == len(set(once)), once


# ---- generated requests

ODD_VALUES = """ ;,;5;+5;%205;5_0;%D9%A3;-1;0;501;1:2;1:;:1;1:+2;%;%ff;%00;..;a,b;true;é"""
NASTY = st.sampled_from(["", "9" * 30, *ODD_VALUES.split(";")])
VALUES = NASTY | st.text(max_size=12).map(lambda text: quote(text, safe="", errors="replace"))
NAMES = st.sampled_from(
    [
        *(
            "k",
            "explain",
            "exclude",
            "category",
            "after",
            "deadline_ms",
            "request_id",
            "context.device",
            "digests",
            "partition",
        ),
        *("limit", "since", "q", "id", "foo", "", "K"),
    ]
)
IDS = st.sampled_from(["i1", "u", "nobody", ".", "..", "a%2Fb", "%7Ba%7D", "x" * 300, "%ff", "%", "", "i1/", "a;b"]) | VALUES
PATHS = st.one_of(
    st.sampled_from(
        [
            *(
                "/v1/recommend",
                "/v1/events",
                "/v1/users",
                "/v1/users?partition=0",
                "/v1/tables",
                "/v1/live",
                "/v1/recent",
                "/v1/items",
                "/v1/items/i/history?per=minute",
                "/v1/releases",
                "/page/app.js",
                "/healthz",
                "/readyz",
                "/metrics",
            ),
            *("/", "//", "*", "/v1", "/nowhere"),
        ]
    ),
    st.builds(
        "/v1/{}/{}{}".format,
        st.sampled_from(["recommend", "similar", "users", "items", "explain"]),
        IDS,
        st.sampled_from(["", "", "", "/image", "/"]),
    ),
    st.sampled_from(["http://h/healthz", "http://[/", "//[/x", "h:80", "/" + "x" * MAX_URL_BYTES, "/\udcff", "/é", "/a b"]),
)
QUERIES = st.lists(
    st.tuples(NAMES, VALUES).map("=".join) | st.sampled_from(["k", "explain", "&", "#x", "=", "k=5&k=5"]), max_size=3
)
TARGETS = st.builds(lambda path, query: path + ("?" + "&".join(query) if query else ""), PATHS, QUERIES)
METHODS = st.sampled_from(
    [
        "GET",
        "GET",
        "GET",
        "POST",
        "POST",
        "PUT",
        "DELETE",
        "HEAD",
        "OPTIONS",
        "PATCH",
        "CONNECT",
        "TRACE",
        "FOO",
        "get",
        "",
        "QUERY",
    ]
)
ODD = st.sampled_from(
    ["", "x", "*", "[", "http://[", "null", "bytes=9-1", '"', "1", "+1", "2_5", "\udcff", "ü", "a, b", ";", ";;=", "a" * 9_000]
)
ORIGINS = st.sampled_from(["http://[", "http://]", "http://h", "null", "", "h", "\udcff"])
EXPECTED = st.sampled_from(["100-continue", "", "x", "\udcff"])
TYPES = st.sampled_from(["application/json", "text/plain; charset=latin-1", "; charset=", "a/b; charset*=u''x", "\udcff"])
UNREAD = st.sampled_from(["Range", "If-Match", "If-Modified-Since", "Cookie", "Accept", "Upgrade", "Authorization", "TE", "X"])
HEADERS = st.lists(
    st.one_of(
        st.tuples(st.just("Origin"), ORIGINS),
        st.tuples(st.just("deadline-ms"), NASTY | st.just("250")),
        st.tuples(st.just("Expect"), EXPECTED),
        st.tuples(st.just("Content-Type"), TYPES),
        st.tuples(UNREAD, ODD | st.sampled_from(["websocket", "x" * (MAX_HEADER_BYTES + 9)])),
    ),
    max_size=3,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
KNOWN = {**Interaction.__dataclass_fields__, **Item.__dataclass_fields__, **Request.__dataclass_fields__}
FIELDS = st.sampled_from([*KNOWN, "x"])
OBJECTS = st.dictionaries(FIELDS, JSON_VALUES | st.sampled_from(["u", "i1", 5, {"partition": 0, "offset": 1}]), max_size=5)
SOUND = st.sampled_from(
    [
        {"user_id": "u", "item_id": "i1", "event_time": 1_700_000_000_000},
        {"user_id": "u", "k": 3},
        [{"user_id": "u", "k": 3}, {"k": 3}, None],
        [{"user_id": "u"}] * 101,
        {"title": "t"},
        {},
    ]
)
BODIES = st.one_of(
    SOUND.map(lambda value: json.dumps(value).encode()),
    (OBJECTS | JSON_VALUES | st.lists(OBJECTS, max_size=3)).map(lambda value: json.dumps(value).encode("utf-8", "replace")),
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b" ", b"\xef\xbb\xbf{}", b"[" * 40, b"[" * 20 + b"]" * 20, b'{"user_id": NaN}', b" " * (MAX_BODY_BYTES + 1)]
    ),
)
ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": bytes,
    "x-gzip": gzip.compress,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
}
LAST = b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
BOMB = gzip.compress(bytes(4 * MAX_BODY_BYTES))


@st.composite
def requests(draw: st.DrawFn) -> Case:
    """Generate a request that is valid in most of its parts, so that an odd part is reached."""
    method, target = draw(METHODS), draw(TARGETS)
    lines = [f"{method} {target} HTTP/{draw(st.sampled_from(['1.1'] * 12 + ['1.0', '0.9', '2.0', '9']))}"]
    lines += ["Host: " + draw(ODD if draw(st.integers(0, 9)) == 0 else st.just("h"))]
    lines += [f"{name}: {value}" for name, value in draw(HEADERS)]
    body = draw(BODIES) if method in {"POST", "PUT"} or draw(st.integers(0, 9)) == 0 else b""
    if body and draw(st.integers(0, 3)) == 0:
        encoding = draw(st.sampled_from(sorted(ENCODERS)))
        lines.append(f"Content-Encoding: {encoding}")
        body = ENCODERS[encoding](body) if draw(st.integers(0, 3)) else draw(st.sampled_from([body, BOMB, body[:-1]]))
    framing = draw(st.sampled_from(["length"] * 6 + ["chunked"] * 3 + ["short", "long", "none", "both", "broken", "odd"]))
    if framing in {"length", "short", "long", "both"} and (body or framing != "length"):
        lines.append(f"Content-Length: {max(len(body) + {'short': -1, 'long': 5}.get(framing, 0), 0)}")
    if framing in {"chunked", "both", "broken"}:
        lines.append("Transfer-Encoding: chunked")
        size = draw(st.integers(1, 60)) if len(body) < 2_000 else 1 << 16
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + (
            b"zz\r\n" if framing == "broken" else b"0\r\n\r\n"
        )
    if framing == "odd":
        lines.append(f"Content-Length: {draw(ODD)}")
    closes = method == "HEAD" or draw(st.booleans())
    if closes:
        lines.append("Connection: close")
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
    if not closes:
        body += LAST
    at = draw(st.integers(0, len(head)))
    parts = [head[:at], head[at:], body] if draw(st.booleans()) else [head + body]
    return Case(parts, method, target, True, draw(st.sampled_from(FAILURES)))


WHOLE_REQUESTS = st.sampled_from(
    [
        b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b"GET /v1/recommend/u?k=3&exclude=i1 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        b'POST /v1/events HTTP/1.1\r\nHost: h\r\nContent-Length: 32\r\n\r\n{"user_id": "u","item_id": "i1"}',
        b'POST /v1/recommend HTTP/1.1\r\nHost: h\r\nContent-Length: 31\r\n\r\n[{"user_id": "u"}, {"k": 1}, 5]',
        b"POST /v1/events HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n0\r\n\r\n",
    ]
)


@st.composite
def bytes_on_a_wire(draw: st.DrawFn) -> Case:
    """Generate raw bytes, or requests with bytes replaced, removed, repeated and inserted."""
    sent = bytearray(
        draw(st.binary(max_size=60))
        if draw(st.integers(0, 3)) == 0
        else b"".join(draw(st.lists(WHOLE_REQUESTS, min_size=1, max_size=3)))
    )
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(sent)))
        end = min(len(sent), at + draw(st.integers(0, 4)))
        piece = draw(
            st.binary(max_size=4) | st.sampled_from([b"\r\n", b"\0", b"\r", b"\n", b":", b" ", b"\r\n\r\n", b"%", b"?"])
        )
        sent[at:end] = piece
    if bytes(sent).lstrip(b"\r\n").startswith(b"HEAD"):
        sent = bytearray(b"x")
    at = draw(st.integers(0, len(sent)))
    return Case([bytes(sent[:at]), bytes(sent[at:]) + b"\r\n\r\n" + LAST])


EVENT, ASKED = b'{"user_id": "u", "item_id": "i1"}', b'{"user_id": "u", "k": 3}'
LIST = b'[{"user_id": "u", "k": 3}, {"user_id": ""}, 5]'
ROUTES = [
    ("GET", "/v1/similar/i1", b""),
    ("GET", "/v1/recommend/u", b""),
    ("GET", "/v1/users", b""),
    ("POST", "/v1/recommend", ASKED),
    ("POST", "/v1/recommend", LIST),
    ("POST", "/v1/events", EVENT),
]


ODD_PARTS = ("query", "header", "body", "path", "line")


@st.composite
def nearly_sound(draw: st.DrawFn, parts: tuple[str, ...] = ODD_PARTS) -> Case:
    """Generate requests that are valid except for one of these parts."""
    method, target, body = draw(st.sampled_from(ROUTES))
    headers: list[str] = []
    match draw(st.sampled_from(parts)):
        case "query":
            names = sorted(TAKES.get((method, re.sub(r"/(u|i1)$", "/ID", target)), ()))
            target += "?" + "&".join(
                draw(st.lists(st.tuples(st.sampled_from([*names, "foo"]), VALUES).map("=".join), min_size=1, max_size=2))
            )
        case "header":
            headers = [f"{name}: {value}" for name, value in draw(HEADERS)]
        case "body":
            body = draw(BODIES)
        case "path":
            target = draw(PATHS)
        case _:
            headers = [draw(ODD)]
    return Case([raw(target, *headers, f"Content-Length: {len(body)}", method=method, body=body)], method, target, True)


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Shorten the timeouts for bodies that never arrive and clients that never disconnect."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.web.body.BODY_TIMEOUT_S", 0.05)
        patch.setattr("agents.web.server.LINGER_S", 0.05)
        yield


def served(app: web.Application, service: FakeService) -> TestServer:
    return Served(app, service.metrics)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    rig = Rig(served).start()
    yield rig
    rig.stop()
    print(f"another client asked {rig.asked} times and waited {rig.longest_s * 1e3:.0f} ms at most")  # noqa: T201


@fuzz
@given(requests() | nearly_sound())
def test_every_request_has_an_answer_of_the_contract(rig: Rig, case: Case) -> None:
    every_answer_is_in_the_contract(rig, case)


@fuzz
@given(bytes_on_a_wire())
def test_every_answer_to_any_bytes_is_in_the_contract(rig: Rig, case: Case) -> None:
    every_answer_is_in_the_contract(rig, case)


# ---- the fuzzer detects servers that are broken on purpose


def test_a_server_with_the_errors_of_aiohttp_is_found() -> None:
    broken = Rig(lambda app, service: TestServer(app)).start()
    try:
        must_find(every_answer_is_in_the_contract, broken, nearly_sound())
    finally:
        broken.stop()


@pytest.mark.parametrize(
    ("name", "instead", "part"),
    [
        ("agents.web.error_replies._netloc", lambda origin: urlsplit(origin).netloc, "header"),
        ("agents.web.query.whole_number", int, "query"),
        ("agents.web.views.check_parameters", lambda query, takes: None, "query"),
        ("agents.web.request_lists.status_of", lambda error: 418, "body"),
        ("agents.web.server._refusal", lambda exc: (400, RiffleError("http_error", str(exc))), "line"),
    ],
)
def test_a_broken_part_is_found(monkeypatch: pytest.MonkeyPatch, name: str, instead: Callable[..., object], part: str) -> None:
    monkeypatch.setattr(name, instead)
    broken = Rig(served).start()
    try:
        must_find(every_answer_is_in_the_contract, broken, nearly_sound((part,)))
    finally:
        broken.stop()
