"""A worker serves HTTP over TLS with tokens: scopes admit and refuse, rates hold, changed files count, and the page works."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from certificates import Authority
from click.testing import CliRunner
from conftest import WorkerProcess

from agents.cli.operate import status
from agents.cli.recommend import recommend
from agents.web.caller import Caller
from agents.web.page_token import page_token
from agents.web.tokens import GRANTED, Scope, line_of, new_token
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka.produce import produce_events, produce_items

pytestmark = pytest.mark.integration

CHROMIUM = os.environ.get("RIFFLE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
TOKENS: dict[Scope, str] = {scope: new_token() for scope in GRANTED}
WORKER, SLOW = new_token(), new_token()
EVENT = {"user_id": "ann", "item_id": "i01", "action": "view"}
CALLS: Mapping[Scope, tuple[tuple[str, str, object], ...]] = {
    Scope.RECOMMEND: (
        ("GET", "/v1/recommend/ann", None),
        ("POST", "/v1/recommend", {"user_id": "ann"}),
        ("GET", "/v1/similar/i01", None),
    ),
    Scope.EVENTS: (("POST", "/v1/events", EVENT), ("POST", "/v1/events", [EVENT])),
    Scope.ITEMS: (
        ("GET", "/v1/items/i01", None),
        ("PUT", "/v1/items/new", {"title": "new"}),
        ("DELETE", "/v1/items/new", None),
        ("GET", "/v1/items?q=print", None),
    ),
    Scope.USERS: (("GET", "/v1/users/ann", None), ("GET", "/v1/users?partition=0", None), ("DELETE", "/v1/users/nobody", None)),
    Scope.OPERATE: (
        ("GET", "/v1/rules", None),
        ("GET", "/v1/tables", None),
        ("GET", "/v1/live", None),
        ("GET", "/v1/recent", None),
    ),
    Scope.METRICS: (("GET", "/metrics", None),),
}
"A call or more of each scope: method, path and body."
WIDER = {Scope.METRICS: (Scope.OPERATE,)}
"Scopes that include another one."


def lines(*scopes: Scope) -> str:
    held = [line_of(scope, [scope], "-", TOKENS[scope]) for scope in scopes]
    return "\n".join([*held, line_of("worker", GRANTED, "-", WORKER), line_of("slow", [Scope.RECOMMEND], "0.01/3", SLOW)])


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def secured_http(fresh: Settings, authority: Authority, tmp_path: Path) -> AsyncIterator[Settings]:
    """A worker with data."""
    (tmp_path / "tokens").write_text(lines(*GRANTED))
    (tmp_path / "token").write_text(f"{WORKER}\n")
    settings = replace(
        fresh,
        http_cert_file=str(authority.sign(tmp_path / "server.pem", "127.0.0.1")),
        http_ca_file=str(authority.file),
        http_tokens_file=str(tmp_path / "tokens"),
        http_token_file=str(tmp_path / "token"),
        partitions=1,
    )
    worker = WorkerProcess(settings)
    await asyncio.to_thread(worker.start)
    try:
        await produce_items(settings, [Item(f"i{n:02d}", f"Print no. {n}") for n in range(20)])
        await produce_events(
            settings, [Interaction(f"e{n}", "ann", f"i{n:02d}", 1_700_000_000_000 + n, "like") for n in range(5)]
        )
        async with session_of(settings) as session:
            for _ in range(200):
                async with session.get("/v1/recommend/ann", headers=bearing(WORKER)) as response:
                    if response.status == 200 and (await response.json())["items"]:
                        break
                await asyncio.sleep(0.05)
        yield settings
    finally:
        await asyncio.to_thread(worker.stop)
    log = worker.log.read_text()
    assert "Traceback" not in log
    assert not any(token in log for token in (WORKER, SLOW, *TOKENS.values(), page_token(settings)))


def session_of(settings: Settings) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=Caller(settings.http).context())
    return aiohttp.ClientSession(settings.web, connector=connector)


async def code_of(session: aiohttp.ClientSession, method: str, path: str, body: object, token: str) -> tuple[int, str]:
    headers = bearing(token) if token else {}
    async with session.request(method, path, json=body, headers=headers) as response:
        found = await response.json() if response.content_type == "application/json" else {}
        return response.status, found.get("error", {}).get("code", "")


async def test_a_worker_admits_each_token_to_its_scope_only(secured_http: Settings) -> None:
    async with session_of(secured_http) as session:
        for scope, calls in CALLS.items():
            for method, path, body in calls:
                for held, token in TOKENS.items():
                    found = await code_of(session, method, path, body, token)
                    expected = found[0] in {200, 202} if held in {scope, *WIDER.get(scope, ())} else found == (403, "forbidden")
                    assert expected, (held, method, path, found)
                assert await code_of(session, method, path, body, "") == (401, "token_required")
                assert await code_of(session, method, path, body, new_token()) == (403, "wrong_token")
        async with session.get("/readyz") as response:
            assert await response.json() == {"ready": True}
        async with session.get("/metrics", headers=bearing(TOKENS[Scope.OPERATE])) as response:
            text = await response.text()
        assert 'riffle_http_refused_total{reason="forbidden",token="events"}' in text
        with pytest.raises(aiohttp.ClientError):
            await session.get(secured_http.web.replace("https", "http") + "/healthz")


async def test_rates_hold_and_changed_files_count_at_once(secured_http: Settings, authority: Authority, tmp_path: Path) -> None:
    async with session_of(secured_http) as session:
        statuses = []
        for _ in range(4):
            async with session.get("/v1/recommend/ann", headers=bearing(SLOW)) as response:
                statuses.append((response.status, response.headers.get("Retry-After")))
        assert [status for status, _ in statuses] == [200, 200, 200, 429]
        assert 1 <= int(statuses[-1][1] or 0) <= 100
        assert await code_of(session, "GET", "/v1/users/ann", None, TOKENS[Scope.USERS]) == (200, "")
        (tmp_path / "tokens").write_text(lines(*(scope for scope in GRANTED if scope is not Scope.USERS)))
        assert await code_of(session, "GET", "/v1/users/ann", None, TOKENS[Scope.USERS]) == (403, "wrong_token")
        (tmp_path / "tokens").write_text("no line of a token")
        assert await code_of(session, "GET", "/v1/items/i01", None, TOKENS[Scope.ITEMS]) == (200, "")
    before = (tmp_path / "server.pem").read_bytes()
    authority.sign(tmp_path / "server.pem", "127.0.0.1")
    assert (tmp_path / "server.pem").read_bytes() != before
    async with session_of(secured_http) as session, session.get("/readyz", headers=bearing(WORKER)) as response:
        assert response.status == 200
        assert "reasons" in await response.json()


async def test_commands_use_their_token(secured_http: Settings, tmp_path: Path) -> None:
    environment = secured_http.environment(secrets=True)
    out = tmp_path / "slates.jsonl"
    (tmp_path / "users.csv").write_text("user_id\nann\nbea\n")
    arguments = ["--users", str(tmp_path / "users.csv"), "--out", str(out), "-k", "3", "--json"]
    done = await asyncio.to_thread(CliRunner().invoke, recommend, arguments, env=environment)
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["user_id"] for line in out.read_text().splitlines()] == ["ann", "bea"]
    (tmp_path / "token").write_text(TOKENS[Scope.EVENTS])
    done = await asyncio.to_thread(CliRunner().invoke, recommend, arguments, env=environment)
    assert done.exit_code != 0
    assert "lacks the scope recommend" in str(done.exception)
    assert TOKENS[Scope.EVENTS] not in done.output
    done = await asyncio.to_thread(CliRunner().invoke, status, ["--json"], env=environment)
    assert TOKENS[Scope.EVENTS] not in done.output


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: install Debian's chromium, or name one in RIFFLE_CHROMIUM")
async def test_the_page_works_over_tls_with_the_homes_token_or_with_one_of_the_file(secured_http: Settings) -> None:
    from playwright.async_api import Response, async_playwright, expect

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            for token in (page_token(secured_http), WORKER):
                context = await browser.new_context(ignore_https_errors=True)
                page = await context.new_page()
                answers: list[Response] = []

                def note(answer: Response, into: list[Response] = answers) -> None:
                    into.append(answer)

                page.on("response", note)
                await page.goto(f"{secured_http.web}/#token={token}")
                await expect(page.locator("#token")).to_have_text("Changes allowed", timeout=10_000)
                async with page.expect_response(lambda answer: "/v1/explain/ann" in answer.url, timeout=20_000) as seen:
                    await page.goto(f"{secured_http.web}/#/user/ann")
                assert (await seen.value).status == 200
                assert not [answer.url for answer in answers if answer.status >= 400]
                await context.close()
        finally:
            await browser.close()
