"""The files of the web page, their headers, and who may write from it."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from fakes import FakeService
from serving import Served

from agents.metrics import Metrics
from agents.web.access import CONSOLE, Gate, Page, Sender
from agents.web.page_files import HEADERS, page_files
from agents.web.page_token import page_token, page_url
from agents.web.routes import build_app
from agents.web.tokens import Scope
from models.pipeline.sources import SOURCES
from schemas.errors import BadRequest
from schemas.http_settings import HttpSettings
from schemas.records import Interaction, Item
from schemas.settings import Settings

Client = TestClient[web.Request, web.Application]
MAX_BYTES = 500_000
TOKEN = "a-token"
SHOP = "https://shop.example"
EVENT = {"user_id": "u", "item_id": "i1"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def service() -> FakeService:
    return FakeService(catalogue={f"i{n}": Item(f"i{n}", title=f"Item {n}") for n in range(3)})


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[Client]:
    app = build_app(service, gate=Gate(HttpSettings(), service.metrics, Page(TOKEN, frozenset({SHOP}))))
    async with TestClient(Served(app, service.metrics)) as client:
        yield client


def texts() -> dict[str, str]:
    return {name: file.body.decode() for name, file in page_files().items()}


def test_all_files_together_are_small() -> None:
    assert 0 < sum(len(file.body) for file in page_files().values()) < MAX_BYTES


def test_every_file_that_a_file_names_is_there_and_none_is_elsewhere() -> None:
    files = texts()
    for name, text in files.items():
        named = re.findall(r'(?:href|src)="/page/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert set(named) <= set(files), name
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}, name
    loaded = {found for text in files.values() for found in re.findall(r'(?:/page/|from "\./)([\w.-]+)"', text)}
    assert set(files) - loaded == {"index.html"}, "a file that nothing loads"


def test_every_source_has_a_colour_of_its_own_and_a_reason() -> None:
    charts = texts()["charts.js"]
    found = re.search(r"const ORDER = \[(.*?)\];", charts)
    reasons = re.search(r"const REASONS = \{(.*?)\};", charts, re.DOTALL)
    assert found is not None
    assert reasons is not None
    order, names = re.findall(r'"(\w+)"', found[1]), {source.name for source in SOURCES}
    assert len(order) == len(set(order))
    assert names <= set(order)
    assert names <= set(re.findall(r'(\w+): "', reasons[1]))
    colours = re.findall(r"--c(\d+): (#\w+);", texts()["page.css"])
    for n in range(len(order)):  # one in the light and one in the dark scheme
        assert len([colour for number, colour in colours if int(number) == n]) == 2
    assert len(colours) == len(set(colours)) == 2 * len(order)


def test_no_file_makes_markup_of_text() -> None:
    for name, text in texts().items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc", text), name
    index = texts()["index.html"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)


async def test_the_page_and_its_files_have_their_types_and_a_strict_policy(client: Client) -> None:
    for name, file in page_files().items():
        response = await client.get("/" if name == "index.html" else f"/page/{name}")
        assert response.status == 200
        assert await response.read() == file.body
        assert {key: response.headers[key] for key in HEADERS} == dict(HEADERS)
        assert response.headers["Content-Type"] == file.type
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy.pop("img-src") == "'self' blob:"
    assert {value for name, value in policy.items() if name.endswith("-src")} == {"'none'", "'self'"}


async def test_a_file_that_the_client_has_is_not_sent_again(client: Client) -> None:
    first = await client.get("/page/app.js")
    for known in (first.headers["ETag"], f'"other", {first.headers["ETag"]}', "*"):
        again = await client.get("/page/app.js", headers={"If-None-Match": known})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    changed = await client.get("/page/app.js", headers={"If-None-Match": '"other"'})
    assert changed.status == 200
    head = await client.head("/")
    assert (head.status, await head.read()) == (200, b"")


@pytest.mark.parametrize("path", ["/page/none.js", "/page/..%2Froutes.py", "/page/%2E%2E%2Findex.html", "/page/index.html%00"])
async def test_nothing_but_the_pages_files_is_sent(client: Client, path: str) -> None:
    response = await client.get(path)
    assert response.status == 404


@pytest.mark.parametrize("method", ["post", "put", "delete", "erase"])
async def test_a_page_writes_only_with_the_token(client: Client, service: FakeService, method: str) -> None:
    service.events.append(Interaction("e", "u", "i1", 1))
    calls = {"post": ("POST", "/v1/events"), "put": ("PUT", "/v1/items/i1"), "delete": ("DELETE", "/v1/items/i1")}
    verb, path = calls.get(method, ("DELETE", "/v1/users/u"))
    body = EVENT if method == "post" else {"title": "other"} if method == "put" else None

    async def status(headers: dict[str, str]) -> tuple[int, str]:
        response = await client.request(verb, path, json=body, headers=headers)
        found = await response.json()
        return response.status, found.get("error", {}).get("code", "")

    before = (list(service.events), dict(service.catalogue))
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    # the name of a page elsewhere may have been made to resolve to this machine
    rebound = {"Origin": "http://evil.example", "Host": "evil.example"}
    assert await status(own) == await status(rebound) == (401, "token_required")
    assert await status({**own, "Authorization": "Bearer other"}) == (403, "wrong_token")
    assert await status({**own, "Authorization": TOKEN}) == (403, "wrong_token")
    assert await status({"Origin": "http://evil.example", **BEARER}) == (403, "cross_origin")
    assert (list(service.events), dict(service.catalogue)) == before
    assert (await status({**own, **BEARER}))[0] == 202


async def test_programs_and_listed_origins_need_no_token(client: Client) -> None:
    assert (await client.post("/v1/events", json=EVENT)).status == 202
    proxied = {"Origin": SHOP, "Host": "shop.example"}
    assert (await client.post("/v1/events", json=EVENT, headers=proxied)).status == 202


PATHS = ["/v1/live", "/v1/pipeline", "/v1/recent", "/v1/explain/u", "/v1/items", "/v1/items/i1/history", "/v1/releases"]


@pytest.mark.parametrize("path", PATHS)
async def test_the_worker_is_shown_on_this_machine_under_its_own_name(client: Client, path: str) -> None:
    for host in ("localhost:1", "127.0.0.1", "[::1]:6066"):
        assert (await client.get(path, headers={"Host": host})).status == 200
    for host in ("evil.example", "10.0.0.7:6066", "[", "localhost.evil.example"):
        assert (await client.get(path, headers={"Host": host})).status == 401
        assert (await client.get(path, headers={"Host": host, **BEARER})).status == 200


READS = ["/v1/users", "/v1/users/u", "/v1/rules", "/v1/tables", "/metrics", "/v1/similar/i1", "/v1/recommend/u"]
BROWSERS = [
    {"Origin": "http://evil.example"},
    {"Accept-Language": "en"},
    {"Referer": "http://e/"},
    {"Sec-Fetch-Site": "same-origin"},
]


@pytest.mark.parametrize("browser", BROWSERS)
@pytest.mark.parametrize("path", READS)
async def test_a_page_whose_name_was_made_to_resolve_to_this_machine_reads_nothing(
    client: Client, path: str, browser: dict[str, str]
) -> None:
    rebound = {"Host": "evil.example:6066", **browser}
    assert (await client.get(path, headers=rebound)).status == 401
    own = {"Host": "localhost:6066"}, {"Host": "shop.example"}, {"Host": "127.0.0.1"}
    free = [*own, {**rebound, **BEARER}, {"Host": "evil.example"}]  # the last one is a program
    for headers in free:
        more = {} if headers == free[-1] else browser
        assert (await client.get(path, headers={**more, **headers})).status not in {401, 403}, headers


async def test_such_a_page_explains_nothing_and_sees_no_reasons(client: Client, service: FakeService) -> None:
    service.warned = {"archive": "details"}
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    body = {"request_id": "r", "user_id": "u"}
    assert (await client.post("/v1/workers/explain", json=body, headers=rebound)).status == 401
    assert (await client.post("/v1/workers/explain", json=body)).status == 200
    assert "details" not in await (await client.get("/readyz", headers=rebound)).text()
    assert "details" in await (await client.get("/readyz")).text()


@pytest.mark.parametrize("host", ["worker.lan", "worker.lan:6066", "WORKER.lan", "riffle.example"])
def test_a_browser_asks_under_the_workers_own_names(host: str) -> None:
    page = Page.of(Settings(web_advertised="Worker.lan:6066", http_server_name="riffle.example"), TOKEN)
    sender = Sender((), (), "127.0.0.1", host, browser=True)
    assert not page.is_rebound(sender)
    assert Page(TOKEN).is_rebound(sender)


ACTIONS = [
    ("GET", "/v1/letters", None),
    ("POST", "/v1/letters/replay", {"letters": [7]}),
    ("POST", "/v1/releases/r1/promote", None),
    ("POST", "/v1/releases/rollback", None),
]


@pytest.mark.parametrize(("verb", "path", "body"), ACTIONS)
async def test_an_operator_needs_the_token_also_from_a_program(
    client: Client, service: FakeService, verb: str, path: str, body: object
) -> None:
    async def status(headers: dict[str, str]) -> int:
        return (await client.request(verb, path, json=body, headers=headers)).status

    operator = service.operator
    proxied = {"Origin": SHOP, "Host": "shop.example"}
    assert await status({}) == await status(proxied) == await status({"Host": "localhost"}) == 401
    assert await status({"Authorization": "Bearer other"}) == 403
    assert (operator.replayed, operator.serving) == ([], ["none"])
    assert await status(BEARER) == (200 if verb == "GET" else 202)
    if verb != "GET":  # another page cannot read what it gets
        assert await status({**BEARER, "Origin": "http://evil.example"}) == 403


async def test_what_an_operator_asks_for_is_checked(client: Client, service: FakeService) -> None:
    async def asked(verb: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
        response = await client.request(verb, path, json=body, headers=BEARER)
        return response.status, await response.json()

    refused: tuple[object, ...] = (
        {},
        {"letters": []},
        {"letters": [1], "code": "x"},
        {"letters": [-1]},
        {"letters": [True]},
        {"letters": "1"},
        {"all": 1},
    )
    for bad in refused:
        assert (await asked("POST", "/v1/letters/replay", bad))[0] == 400, bad
    assert (await asked("POST", "/v1/letters/replay", {"letters": list(range(201))}))[0] == 400
    assert (await asked("GET", "/v1/letters?limit=201"))[0] == 400
    assert service.operator.replayed == []
    assert await asked("POST", "/v1/letters/replay", {"code": "not_json"}) == (202, {"sent": 1})
    status, body = await asked("POST", "/v1/releases/bad/promote")
    assert (status, body["error"]["code"]) == (400, "release_refused")  # type: ignore[index]
    for path in ("/v1/releases/r1/promote", "/v1/releases/rollback"):
        for bad in ({"expected": 1}, {"champion": "none"}, []):
            assert (await asked("POST", path, bad))[0] == 400, bad
        status, body = await asked("POST", path, {"expected": "another"})
        assert (status, body["error"]["code"]) == (409, "champion_changed")  # type: ignore[index]
    assert (await asked("GET", "/v1/releases"))[1]["champion"] == "none"
    assert await asked("POST", "/v1/releases/r1/promote", {"expected": "none"}) == (202, {"champion": "r1", "previous": "none"})
    assert (await asked("GET", "/v1/releases"))[1]["champion"] == "r1"
    assert await asked("POST", "/v1/releases/rollback", {}) == (202, {"champion": "none", "previous": "r1"})
    assert await asked("POST", "/v1/releases/r1/promote") == (202, {"champion": "r1", "previous": "none"})
    assert await asked("POST", "/v1/releases/rollback") == (202, {"champion": "none", "previous": "r1"})


def test_a_client_elsewhere_is_shown_nothing_without_the_token() -> None:
    gate = Gate(HttpSettings(), Metrics(), Page(TOKEN))

    def look(remote: str, *authorization: str) -> None:
        gate.admit(Sender(authorization, (), remote, "127.0.0.1:6066"), Scope.OPERATE, CONSOLE)

    look("127.0.0.1")
    look("10.0.0.7", f"Bearer {TOKEN}")
    for remote in ("10.0.0.7", "", "no address"):
        with pytest.raises(BadRequest, match="token"):
            look(remote)


def test_the_token_of_a_home_stays_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", web_port=6066)
    token = page_token(settings)
    assert page_token(settings) == token
    assert len(token) >= 32
    assert page_url(settings) == f"http://127.0.0.1:6066/#token={token}"
    (file,) = settings.home.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert page_token(Settings(home=tmp_path / "other")) != token


async def test_items_are_found_by_words_or_given_by_id(client: Client) -> None:
    async def ids(query: str) -> list[str]:
        response = await client.get(f"/v1/items?{query}")
        return [item["item_id"] for item in (await response.json())["items"]]

    assert await ids("q=Item&limit=2") == ["i0", "i1"]
    assert await ids("id=i2&id=none&id=i0") == ["i2", "i0"]
    for bad in ("id=i1&q=Item", "limit=0", "limit=101", "&".join(f"id=i{n}" for n in range(101)), "id="):
        assert (await client.get(f"/v1/items?{bad}")).status == 400, bad
    assert (await client.get("/v1/live?since=-1")).status == 400
    assert (await client.get("/v1/recent?limit=201")).status == 400
    for path, status in (("i1", 200), ("i1?per=hour", 200), ("i1?per=day", 400), ("none", 404)):
        item_id, _, query = path.partition("?")
        assert (await client.get(f"/v1/items/{item_id}/history?{query}")).status == status, path
