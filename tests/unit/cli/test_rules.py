"""`riffle rules` against a real HTTP interface, with a broker that only records."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from click.testing import CliRunner, Result
from fakes import FakeService
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from agents.cli import rules as module
from agents.cli.rules import marks_of, rules
from agents.web.routes import build_app
from schemas.errors import BadInput, BadRules, NotReady
from schemas.records import Item
from schemas.rules import RuleSet, rules_from
from schemas.settings import Settings

PIN = {"name": "top", "kind": "pin", "pins": [{"item_id": "i3", "position": 0}]}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A worker's interface on a port of its own, in a thread with a loop of its own."""
    found = FakeService(catalogue={f"i{n}": Item(f"i{n}") for n in range(5)})
    loop, started = asyncio.new_event_loop(), threading.Event()
    servers: list[TestServer] = []

    def serve() -> None:
        asyncio.set_event_loop(loop)
        servers.append(Served(build_app(found), found.metrics))
        loop.run_until_complete(servers[0].start_server())
        started.set()
        loop.run_forever()

    thread = threading.Thread(target=serve)
    thread.start()
    assert started.wait(10)
    monkeypatch.setattr(module, "web_of", lambda _: f"http://127.0.0.1:{servers[0].port}")
    yield found
    asyncio.run_coroutine_threadsafe(servers[0].close(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[RuleSet | None]:
    sent: list[RuleSet | None] = []

    async def record(_settings: Settings, found: RuleSet | None) -> None:
        sent.append(found)

    monkeypatch.setattr(module, "publish_rules", record)
    return sent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps({"rules": [PIN]}))
    return path


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(rules, arguments)


def shown(*arguments: str) -> Any:
    done = CliRunner().invoke(rules, [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_file_is_checked_alone(file: Path) -> None:
    assert shown("check", str(file))["rules"] == [PIN]
    assert "valid: 1 rules" in ran("check", str(file)).output
    file.write_text(json.dumps({"rules": [{**PIN, "colour": 1}]}))
    done = ran("check", str(file))
    assert isinstance(done.exception, BadRules)
    assert done.exception.field == "rules[0].colour"
    assert str(file) in done.exception.message


def test_put_validates_counts_and_publishes(file: Path, service: FakeService, published: list[RuleSet | None]) -> None:
    found = shown("put", str(file))
    assert found["rules"] == [PIN]
    assert published[0] is not None
    assert published[0].version == found["version"] > 1_700_000_000_000
    file.write_text(json.dumps({"version": 7, "rules": [PIN]}))
    assert "published version 7" in ran("put", str(file)).output
    file.write_text("{}")
    assert isinstance(ran("put", str(file)).exception, BadRules)
    assert len(published) == 2, "what is not valid is not published"


def test_put_and_clear_need_no_worker(file: Path, published: list[RuleSet | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "web_of", lambda _: "http://127.0.0.1:1")
    done = ran("put", str(file))
    assert done.exit_code == 0
    assert "what they match is unknown" in done.output
    assert shown("clear") == {"version": 0, "rules": []}
    assert published[1] is None
    assert isinstance(ran("show").exception, NotReady)


def test_show_prints_what_serves(service: FakeService) -> None:
    assert "no rules" in ran("show").output
    service.serving_rules = rules_from({"version": 3, "rules": [PIN]})
    assert shown("show")["version"] == 3
    assert "version 3" in ran("show").output
    assert "top" in ran("show").output


def test_preview_shows_both_slates_and_what_moved(file: Path, service: FakeService) -> None:
    found = shown("preview", str(file), "--user", "u", "-k", "3")
    assert len(found["serving"]["items"]) == len(found["proposed"]["items"]) == 3
    assert found["marks"] == {}
    assert service.requests[0][0].k == 3
    assert "i0" in ran("preview", str(file), "--user", "u").output
    service.failure = NotReady("not_ready", "another worker has it")
    assert isinstance(ran("preview", str(file), "--user", "u").exception, NotReady)


def test_what_the_worker_refuses_is_told(file: Path, service: FakeService) -> None:
    done = ran("preview", str(file), "--user", "x" * 300)
    assert isinstance(done.exception, BadInput)
    assert done.exception.field == "user_id"


ids = st.lists(st.sampled_from("abcdefgh"), unique=True)


@given(ids, ids)
def test_marks_tell_how_every_item_moved(old: list[str], new: list[str]) -> None:
    marks = marks_of(old, new)
    assert {item for item, mark in marks.items() if mark == "gone"} == set(old) - set(new)
    assert {item for item, mark in marks.items() if mark == "new"} == set(new) - set(old)
    for item in set(old) & set(new):
        way, _, places = marks.get(item, "up 0").partition(" ")
        assert old.index(item) - new.index(item) == int(places) * (1 if way == "up" else -1)
