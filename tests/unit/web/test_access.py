"""Tokens, scopes, rates and TLS of the HTTP interface, on real servers."""

from __future__ import annotations

import asyncio
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from certificates import Authority
from click.testing import CliRunner
from fakes import FakeService
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from agents.cli import asking
from agents.cli.token import token as token_command
from agents.health.broker import BrokerProbe
from agents.metrics import Metrics
from agents.ranker.app import RankerApp, assemble
from agents.web.access import CONSOLE, WRITE, Gate, Page, Sender, scope_of
from agents.web.caller import Caller
from agents.web.peers import PeerAway, Peers
from agents.web.routes import build_app, routes
from agents.web.server_tls import server_context
from agents.web.tokens import GRANTED, Grant, Scope, digest_of, find, line_of, new_token, rate_of, read_grants
from schemas.errors import BadRequest, ConfigError, NotReady, RateLimited
from schemas.http_settings import HttpSettings
from schemas.records import Item, Request
from schemas.settings import Settings

TOKENS = {scope: new_token() for scope in GRANTED}
WORKER = new_token()
PATHS = [(route.method, route.path.replace(":[^/]+", "")) for route in routes(FakeService())]  # type: ignore[attr-defined]
SCOPES = {
    "/v1/events": Scope.EVENTS,
    "/v1/recommend": Scope.RECOMMEND,
    "/v1/similar": Scope.RECOMMEND,
    "/v1/workers/recommend": Scope.RECOMMEND,
    "/v1/workers/rules": Scope.OPERATE,
    "/v1/users": Scope.USERS,
    "/v1/items": Scope.ITEMS,
    "/v1/rules": Scope.OPERATE,
    "/v1/tables": Scope.OPERATE,
    "/v1/live": Scope.OPERATE,
    "/v1/recent": Scope.OPERATE,
    "/v1/pipeline": Scope.OPERATE,
    "/v1/letters": Scope.OPERATE,
    "/v1/explain": Scope.OPERATE,
    "/v1/workers/explain": Scope.OPERATE,
    "/v1/releases": Scope.OPERATE,
    "/v1/trainings": Scope.OPERATE,
    "/metrics": Scope.METRICS,
    "/": Scope.OPEN,
    "/page": Scope.OPEN,
    "/openapi.json": Scope.OPEN,
    "/healthz": Scope.OPEN,
    "/readyz": Scope.OPEN,
}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines() -> str:
    worker = line_of("worker", [Scope.RECOMMEND, Scope.OPERATE], "-", WORKER)
    return "\n".join(["# tokens", "", *(line_of(scope, [scope], "-", TOKENS[scope]) for scope in GRANTED), worker]) + "\n"


@pytest.fixture
def http(tmp_path: Path) -> HttpSettings:
    file = tmp_path / "tokens"
    file.write_text(lines())
    return HttpSettings(tokens_file=str(file))


@pytest.fixture
def service() -> FakeService:
    return FakeService(catalogue={"i1": Item("i1")})


@asynccontextmanager
async def client_of(service: FakeService, gate: Gate | None) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async with TestClient(Served(build_app(service, gate=gate), service.metrics)) as client:
        yield client


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# ---- the route table


def test_every_route_has_exactly_the_scope_of_its_path() -> None:
    found = {(route.method, route.path): scope_of(route.handler) for route in routes(FakeService())}  # type: ignore[attr-defined]
    assert None not in found.values(), "a route without a scope"
    for (_, path), scope in found.items():
        expected = {wanted for begin, wanted in SCOPES.items() if path == begin or path.startswith(f"{begin}/")}
        assert expected == {scope}, path


def test_every_route_of_a_ranking_process_has_a_scope(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    app: RankerApp = RankerApp.create(settings)
    table = assemble(settings, app).status.routes()
    found = {route.path: scope_of(route.handler) for route in table}  # type: ignore[attr-defined]
    assert found == {"/healthz": Scope.OPEN, "/readyz": Scope.OPEN, "/metrics": Scope.METRICS}
    assert BrokerProbe(settings).found is not None


async def test_a_route_without_a_scope_is_refused(service: FakeService) -> None:
    async def forgotten(_request: web.Request) -> web.Response:
        raise AssertionError("it was reached")

    app = build_app(service, gate=Gate(HttpSettings(), service.metrics))
    app.router.add_get("/forgotten", forgotten)
    async with TestClient(Served(app, service.metrics)) as client:
        assert (await client.get("/forgotten")).status == 500


# ---- admission


@pytest.mark.parametrize(("method", "path"), PATHS)
async def test_a_route_admits_the_tokens_of_its_scope_only(
    service: FakeService, http: HttpSettings, method: str, path: str
) -> None:
    url = path.replace("{user_id}", "u").replace("{item_id}", "i1").replace("{name}", "app.js")
    scope = next(scope for begin, scope in SCOPES.items() if path == begin or path.startswith(f"{begin}/"))
    admitted = {scope, Scope.OPERATE} if scope is Scope.METRICS else {scope}
    async with client_of(service, Gate(http, service.metrics)) as client:
        for given_scope, token in TOKENS.items():
            answer = await client.request(method, url, headers=bearing(token))
            if scope is Scope.OPEN or given_scope in admitted:
                assert answer.status not in {401, 403}, await answer.text()
                continue
            assert answer.status == 403
            error = (await answer.json())["error"]
            assert (error["code"], error["field"]) == ("forbidden", "Authorization")
            assert given_scope in error["message"]
            assert token not in await answer.text()
        answer = await client.request(method, url)
        assert answer.status == 200 if scope is Scope.OPEN else answer.status == 401
        if scope is not Scope.OPEN:
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
            assert set((await answer.json())["error"]) == {"code", "message", "field"}
    assert not service.events
    refused = service.metrics.http_refused
    assert refused.value(reason="token_required") == (0 if scope is Scope.OPEN else 1)
    assert sum(refused.value(reason="forbidden", token=name) for name in GRANTED) == (
        0 if scope is Scope.OPEN else len(GRANTED) - len(admitted)
    )


@pytest.mark.parametrize(
    "sent",
    [
        f"Bearer {new_token()}",
        "Bearer ",
        "Bearer",
        f"Basic {TOKENS[Scope.EVENTS]}",
        TOKENS[Scope.EVENTS],
        f"Bearer {TOKENS[Scope.EVENTS]}x",
        f"Bearer {TOKENS[Scope.EVENTS][:-1]}",
        f"Bearer {digest_of(TOKENS[Scope.EVENTS]).hex()}",
        "Bearer " + "a" * 10_000,
        "Bearer \u00e9",
    ],
)
def test_what_is_no_token_is_refused(http: HttpSettings, sent: str) -> None:
    with pytest.raises(BadRequest) as caught:
        Gate(http, Metrics()).admit(Sender((sent,)), Scope.EVENTS)
    assert caught.value.code == "wrong_token"
    assert sent.partition(" ")[2][:20] not in caught.value.message or not sent.partition(" ")[2]


def test_two_headers_are_refused_and_the_kind_is_spelled_in_any_case(http: HttpSettings) -> None:
    gate, token = Gate(http, Metrics()), TOKENS[Scope.EVENTS]
    gate.admit(Sender((f"bearer  {token}",)), Scope.EVENTS)
    with pytest.raises(BadRequest):
        gate.admit(Sender((f"Bearer {token}",) * 2), Scope.EVENTS)


async def test_without_a_file_everything_is_admitted(service: FakeService) -> None:
    async with client_of(service, Gate(HttpSettings(), service.metrics)) as client:
        assert (await client.get("/v1/rules")).status == 200
        assert "reasons" in await (await client.get("/readyz")).json()


async def test_probes_need_no_token_and_see_no_details(service: FakeService, http: HttpSettings) -> None:
    service.standing_still = {"secret-topic-0": 99.0}
    async with client_of(service, Gate(http, service.metrics)) as client:
        for headers in ({}, bearing("wrong"), bearing(TOKENS[Scope.EVENTS])):
            assert await (await client.get("/readyz", headers=headers)).json() == {"ready": True}
            assert await (await client.get("/healthz", headers=headers)).json() == {"status": "stuck"}
        found = await (await client.get("/readyz", headers=bearing(TOKENS[Scope.OPERATE]))).json()
        assert {"ready", "reasons", "warnings", "release"} <= set(found)


async def test_unknown_paths_are_answered_as_before(service: FakeService, http: HttpSettings) -> None:
    async with client_of(service, Gate(http, service.metrics)) as client:
        assert (await client.get("/nothing")).status == 404
        assert (await client.put("/v1/events")).status == 405


# ---- the page, with and without tokens

HOME = "token-of-the-home"
SHOP = "https://shop.example"
SENDERS = st.builds(
    Sender,
    authorization=st.sampled_from([(), *((f"Bearer {token}",) for token in (HOME, "wrong", WORKER, *TOKENS.values()))]),
    origins=st.sampled_from([(), (SHOP,), ("https://evil.example",), (SHOP, "https://evil.example")]),
    remote=st.sampled_from(["127.0.0.1", "::1", "10.0.0.7", ""]),
    host=st.sampled_from(["127.0.0.1:6066", "localhost", "[::1]:1", "evil.example", "10.0.0.7:6066", "["]),
    browser=st.booleans(),
)


def outcome(gate: Gate, sender: Sender, scope: Scope, kind: str) -> str:
    try:
        gate.admit(sender, scope, kind)
    except BadRequest as error:
        return error.code
    return "admitted"


@given(SENDERS, st.sampled_from(list(Scope)), st.sampled_from(["ordinary", WRITE, CONSOLE]))
def test_with_tokens_one_of_them_is_needed_or_the_homes_from_this_machine(sender: Sender, scope: Scope, kind: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.write(lines())
        file.flush()
        gate = Gate(HttpSettings(tokens_file=file.name), Metrics(), Page(HOME, frozenset({SHOP})))
        found, details = outcome(gate, sender, scope, kind), gate.shows_details(sender)
    token = "".join(sender.authorization).removeprefix("Bearer ")
    here = sender.remote in {"127.0.0.1", "::1"} and sender.host in {"127.0.0.1:6066", "localhost", "[::1]:1"}
    scopes = {one for one, of in TOKENS.items() if of == token} | (
        {Scope.RECOMMEND, Scope.OPERATE} if token == WORKER else set()
    )
    scopes |= {Scope.METRICS} if Scope.OPERATE in scopes else set()
    scopes |= set(GRANTED) if token == HOME and here else set()
    if scope is Scope.OPEN or scope in scopes:
        assert found == "admitted"
    else:
        assert found == ("token_required" if not token else "forbidden" if scopes else "wrong_token")
    assert details == (Scope.OPERATE in scopes)


@given(SENDERS, st.sampled_from(list(Scope)), st.sampled_from(["ordinary", WRITE, CONSOLE]))
def test_without_tokens_only_pages_need_one(sender: Sender, scope: Scope, kind: str) -> None:
    gate = Gate(HttpSettings(), Metrics(), Page(HOME, frozenset({SHOP})))
    near, named = sender.remote in {"127.0.0.1", "::1"}, sender.host in {"127.0.0.1:6066", "localhost", "[::1]:1"}
    here = near and named
    rebound = near and not named and bool(sender.browser or sender.origins)
    needs = rebound or (kind == WRITE and set(sender.origins) - {SHOP}) or (kind == CONSOLE and not here)
    found = outcome(gate, sender, scope, kind)
    if scope is Scope.OPEN or not needs or sender.authorization == (f"Bearer {HOME}",):
        assert found == "admitted"
    else:
        assert found == ("wrong_token" if sender.authorization else "token_required")
    assert gate.shows_details(sender) == (not rebound or sender.authorization == (f"Bearer {HOME}",))


async def test_the_page_is_used_with_the_homes_token_where_tokens_are_needed(service: FakeService, http: HttpSettings) -> None:
    event = {"user_id": "u", "item_id": "i1"}
    async with client_of(service, Gate(http, service.metrics, Page(HOME))) as client:
        origin = {"Origin": f"http://127.0.0.1:{client.port}"}
        assert (await client.get("/")).status == 200
        for headers, status in ((bearing(HOME), 202), ({}, 401), (bearing("wrong"), 403), (bearing(TOKENS[Scope.ITEMS]), 403)):
            assert (await client.post("/v1/events", json=event, headers={**origin, **headers})).status == status
        # a page elsewhere whose name resolves to this machine has no token of this home, and could not use one
        rebound = {"Origin": "http://evil.example", "Host": "evil.example"}
        assert (await client.post("/v1/events", json=event, headers={**rebound, **bearing(HOME)})).status == 403
        for path in ("/v1/live", "/v1/recent", "/v1/explain/u", "/v1/items", "/v1/releases", "/v1/users/u", "/v1/rules"):
            assert (await client.get(path, headers=bearing(HOME))).status in {200, 404}, path
            assert (await client.get(path, headers={**bearing(HOME), "Host": "riffle.example"})).status == 403, path


# ---- rates


@given(
    per_s=st.floats(0.1, 100),
    burst=st.integers(1, 50),
    steps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_more_than_the_burst_and_the_rate_pass(per_s: float, burst: int, steps: list[float]) -> None:
    clock, token = Clock(), TOKENS[Scope.EVENTS]
    gate = Gate(HttpSettings(), Metrics(), clock=clock)
    grants = (replace(_grant_of(token), per_s=per_s, burst=float(burst)),)
    gate._grants = _Fixed(grants)  # type: ignore[assignment]
    passed, began = 0, clock.now
    for step in steps:
        clock.now += step
        try:
            gate.admit(Sender((f"Bearer {token}",)), Scope.EVENTS)
            passed += 1
        except RateLimited as error:
            assert error.retry_after_s >= 1
            clock.now += error.retry_after_s
            gate.admit(Sender((f"Bearer {token}",)), Scope.EVENTS)  # after the time that the answer names
            passed += 1
    assert passed <= burst + per_s * (clock.now - began) + 1e-6


class _Fixed:
    def __init__(self, grants: object) -> None:
        self._grants = grants

    def value(self) -> object:
        return self._grants


def _grant_of(token: str) -> Grant:
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as file:
        file.write(line_of("t", [Scope.EVENTS], "1", token))
        file.flush()
        return read_grants(file.name)[0]


async def test_a_limited_token_gets_429_and_others_do_not(service: FakeService, tmp_path: Path) -> None:
    file, limited, other = tmp_path / "tokens", new_token(), new_token()
    made = [line_of("slow", [Scope.ITEMS], "1/2", limited), line_of("other", [Scope.ITEMS], "-", other)]
    file.write_text("\n".join(made))
    gate = Gate(HttpSettings(tokens_file=str(file)), service.metrics, clock=Clock())
    async with client_of(service, gate) as client:
        found = [await client.get("/v1/items/i1", headers=bearing(limited)) for _ in range(3)]
        assert [answer.status for answer in found] == [200, 200, 429]
        assert found[2].headers["Retry-After"] == "1"
        assert (await found[2].json())["error"]["code"] == "rate_limited"
        assert (await client.get("/v1/items/i1", headers=bearing(other))).status == 200
    assert service.metrics.http_refused.value(reason="rate_limited", token="slow") == 1


# ---- the file


@given(st.sampled_from(["-", "1", "0.5/1", "200/400", "1e3"]), st.sets(st.sampled_from(GRANTED), min_size=1))
def test_a_line_is_read_as_it_was_made(rate: str, scopes: set[Scope]) -> None:
    token = new_token()
    with tempfile.NamedTemporaryFile("w") as file:
        line = line_of("shop", scopes, rate, token)
        file.write(line)
        file.flush()
        (grant,) = read_grants(file.name)
    assert token not in line
    assert (grant.name, set(grant.scopes), (grant.per_s, grant.burst)) == ("shop", scopes, rate_of(rate))
    assert find([grant], token) == grant
    assert find([grant], new_token()) is None


GOOD = line_of("a", [Scope.ITEMS], "-", "t")


@pytest.mark.parametrize(
    "text",
    [
        "a items -",
        "a items - riffle_abc",
        f"a items - sha256:{'0' * 63}",
        f"a nothing - sha256:{'0' * 64}",
        f"a open - sha256:{'0' * 64}",
        f"a items 0 sha256:{'0' * 64}",
        f"a items nan sha256:{'0' * 64}",
        f"a items 5/0.5 sha256:{'0' * 64}",
        f"a/b items - sha256:{'0' * 64}",
        f"{GOOD}\n{GOOD}",
        f"{GOOD}\n{GOOD.replace('a ', 'b ', 1)}",
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_not_quoted(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_grants(str(file))
    assert "line " in caught.value.message
    assert "0" * 20 not in caught.value.message
    assert "riffle_abc" not in caught.value.message


def test_a_changed_file_counts_at_once_and_a_broken_one_changes_nothing(http: HttpSettings) -> None:
    metrics = Metrics()
    gate, file, added = Gate(http, metrics), Path(http.tokens_file), new_token()
    with pytest.raises(BadRequest):
        gate.admit(Sender((f"Bearer {added}",)), Scope.USERS)
    file.write_text(lines() + line_of("new", [Scope.USERS], "-", added))
    gate.admit(Sender((f"Bearer {added}",)), Scope.USERS)
    file.write_text("broken")
    for _ in range(3):
        gate.admit(Sender((f"Bearer {added}",)), Scope.USERS)
    assert metrics.http_reloads_failed.value(what="tokens") == 1
    file.unlink()
    gate.admit(Sender((f"Bearer {added}",)), Scope.USERS)
    file.write_text("")
    with pytest.raises(BadRequest):
        gate.admit(Sender((f"Bearer {added}",)), Scope.USERS)


def test_the_command_makes_a_token_that_its_line_admits(tmp_path: Path) -> None:
    arguments = ["shop", "--scope", "events", "--scope", "recommend", "--rate", "5/10", "--json"]
    found = json.loads(CliRunner().invoke(token_command, arguments).output)
    (tmp_path / "tokens").write_text(found["line"])
    gate = Gate(HttpSettings(tokens_file=str(tmp_path / "tokens")), Metrics())
    gate.admit(Sender((f"Bearer {found['token']}",)), Scope.EVENTS)
    with pytest.raises(BadRequest):
        gate.admit(Sender((f"Bearer {found['token']}",)), Scope.USERS)
    for wrong in (["a b", "--scope", "events"], ["a"], ["a", "--scope", "open"], ["a", "--scope", "items", "--rate", "no"]):
        assert CliRunner().invoke(token_command, wrong).exit_code == 2


# ---- where tokens are required


@pytest.mark.parametrize(
    ("host", "required"),
    [("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False)]
    + [(host, True) for host in ("0.0.0.0", "::", "10.1.2.3", "worker-1.riffle", "203.0.113.1")],
)
def test_tokens_are_required_away_from_loopback(http: HttpSettings, host: str, required: bool) -> None:
    http.require_tokens(host)
    HttpSettings(without_tokens="yes").require_tokens(host)
    if required:
        with pytest.raises(ConfigError, match="RIFFLE_HTTP_TOKENS_FILE"):
            HttpSettings().require_tokens(host)
    else:
        HttpSettings().require_tokens(host)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"http_key_file": "/k"}, "RIFFLE_HTTP_KEY_FILE"),
        ({"http_without_tokens": "true"}, "RIFFLE_HTTP_WITHOUT_TOKENS"),
        ({"http_without_tokens": "yes", "http_tokens_file": "/t"}, "RIFFLE_HTTP_WITHOUT_TOKENS"),
        ({"http_token": "t", "http_token_file": "/t"}, "RIFFLE_HTTP_TOKEN"),
        ({"http_token": "two words"}, "RIFFLE_HTTP_TOKEN"),
        ({"http_server_name": "https://h"}, "RIFFLE_HTTP_SERVER_NAME"),
    ],
)
def test_contradictory_settings_are_refused_by_name(values: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Settings(**values)  # type: ignore[arg-type]


# ---- TLS, and the calls of workers and commands


@asynccontextmanager
async def tls_server(service: FakeService, http: HttpSettings) -> AsyncIterator[str]:
    context = server_context(http, service.metrics)
    assert context is not None
    server = Served(build_app(service, gate=Gate(http, service.metrics)), service.metrics)
    await server.start_server(ssl=context)
    try:
        yield f"{server.host}:{server.port}"
    finally:
        await server.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def secured(http: HttpSettings, authority: Authority, tmp_path: Path) -> HttpSettings:
    """TLS with one certificate for all workers, and tokens."""
    certificate = authority.sign(tmp_path / "server.pem", "workers.riffle")
    (tmp_path / "token").write_text(f"{WORKER}\n")
    return replace(
        http,
        cert_file=str(certificate),
        ca_file=str(authority.file),
        server_name="workers.riffle",
        token_file=str(tmp_path / "token"),
    )


async def test_workers_ask_each_other_over_tls_with_their_token(service: FakeService, secured: HttpSettings) -> None:
    async with tls_server(service, secured) as address:
        peers = Peers(service.metrics, Caller(secured))
        try:
            slate = await peers.ask(address, Request("r", "ann", 1), 5.0)
            assert [item.item_id for item in slate.items] == ["i1"]
        finally:
            await peers.stop()


@pytest.mark.parametrize("change", ["another authority", "another name", "plain text"])
async def test_a_worker_that_cannot_be_verified_gives_no_answer(
    service: FakeService, secured: HttpSettings, tmp_path: Path, change: str
) -> None:
    if change == "another authority":
        mine = replace(secured, ca_file=str(Authority(tmp_path, "other").file))
    elif change == "another name":
        mine = replace(secured, server_name="elsewhere.riffle")
    else:
        mine = replace(secured, cert_file="")
    async with tls_server(service, secured) as address:
        peers = Peers(service.metrics, Caller(mine))
        try:
            with pytest.raises(PeerAway):
                await peers.ask(address, Request("r", "ann", 1), 5.0)
        finally:
            await peers.stop()
    assert not service.requests


@pytest.mark.parametrize("token", ["", TOKENS[Scope.EVENTS]])
async def test_a_worker_whose_token_is_refused_looks_elsewhere(service: FakeService, secured: HttpSettings, token: str) -> None:
    mine = replace(secured, token_file="", token=token)
    async with tls_server(service, secured) as address:
        peers = Peers(service.metrics, Caller(mine))
        try:
            with pytest.raises(NotReady):
                await peers.ask(address, Request("r", "ann", 1), 5.0)
        finally:
            await peers.stop()
    failed = service.metrics.peers_failed
    assert failed.value(reason="forbidden" if token else "token_required") == 1


async def test_commands_verify_and_send_their_token(service: FakeService, secured: HttpSettings) -> None:
    async with tls_server(service, secured) as address:

        def asked(caller: Caller) -> asking.Answer:
            return asking.ask(f"https://{address}/v1/rules", 5.0, caller=caller)

        assert (await asyncio.to_thread(asked, Caller(secured))).status == 200
        assert (await asyncio.to_thread(asked, Caller(replace(secured, token_file="")))).status == 401
        with pytest.raises(NotReady, match="certificate"):
            await asyncio.to_thread(asked, Caller(replace(secured, ca_file="")))


async def test_a_renewed_certificate_serves_the_next_connection(
    service: FakeService, secured: HttpSettings, authority: Authority, tmp_path: Path
) -> None:
    context = ssl.create_default_context(cafile=str(authority.file))

    async def serial(address: str) -> bytes | None:
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="workers.riffle")
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found

    async with tls_server(service, secured) as address:
        first = await serial(address)
        assert await serial(address) == first
        authority.sign(tmp_path / "server.pem", "workers.riffle")
        second = await serial(address)
        assert second != first
        (tmp_path / "server.pem").write_text("half a cert")
        assert await serial(address) == second
        assert service.metrics.http_reloads_failed.value(what="certificate") == 1


async def test_plain_text_gets_no_answer_on_a_tls_port(service: FakeService, secured: HttpSettings) -> None:
    async with tls_server(service, secured) as address, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address}/healthz")


@pytest.mark.parametrize("text", ["", "no certificate"])
def test_a_certificate_that_cannot_be_read_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cert.pem"
    if text:
        file.write_text(text)
    with pytest.raises(ConfigError, match="RIFFLE_HTTP_CERT_FILE"):
        server_context(HttpSettings(cert_file=str(file)), Metrics())


def test_a_clients_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    caller: Callable[[], dict[str, str]] = Caller(HttpSettings(token_file=str(file))).headers
    assert caller() == bearing("one")
    file.write_text("second")
    assert caller() == bearing("second")
    file.write_text("no token\n")
    with pytest.raises(ConfigError) as caught:
        caller()
    assert "no token\n" not in caught.value.message
