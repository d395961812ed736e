"""The page for authors of clients says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import FakeService

from agents.web.body import MAX_BODY_BYTES, MAX_JSON_DEPTH
from agents.web.query import MAX_DEADLINE_MS, PARAMETERS
from agents.web.routes import MAX_EVENTS, routes
from schemas.codec import MAX_VALUE_BYTES
from schemas.records import Interaction, Item, Request, Slate
from schemas.validation import FUTURE_MS, MAX_CANDIDATES, MAX_EXCLUDE, MAX_ID_BYTES, MAX_K, MAX_TEXT_CHARS
from streams.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("agents", "schemas", "streams")
PAGE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("fields", [Interaction, Item, Request, Slate])
def test_every_field_is_named(fields: type) -> None:
    names = set(fields.__dataclass_fields__)  # type: ignore[attr-defined]
    assert {name for name in names if not re.search(rf"[`\"]{name}[`\"]", PAGE)} == set()


def test_every_route_is_there_and_no_other() -> None:
    there = {(route.method, route.path) for route in routes(FakeService()) if route.path != "/"}  # type: ignore[attr-defined]
    named = {(method, path) for method, path in re.findall(r"^\| `(GET|POST|PUT|DELETE) (/\S+)`", PAGE, re.MULTILINE)}
    assert named == there


def test_every_parameter_is_named() -> None:
    assert {name for name in PARAMETERS if f"`{name}=" not in PAGE} == set()


def test_limits_are_those_of_the_code() -> None:
    assert MAX_BODY_BYTES == MAX_VALUE_BYTES == 1 << 20
    assert FUTURE_MS == 86_400_000
    assert f"1 to {MAX_K} items" in PAGE
    assert f"1 to {MAX_ID_BYTES} bytes" in PAGE
    assert f"at most {MAX_EVENTS:,}" in PAGE
    assert f"at most {MAX_EXCLUDE:,}" in PAGE
    assert f"at most {MAX_CANDIDATES:,}" in PAGE
    assert f"at most {MAX_TEXT_CHARS:,} characters" in PAGE
    assert f"{MAX_JSON_DEPTH} levels" in PAGE
    assert f"1..{MAX_DEADLINE_MS}" in PAGE
    assert f"`RIFFLE_DEADLINE_MS`, {Settings().deadline_ms};" in PAGE


def test_codes_are_those_of_the_code() -> None:
    errors = PAGE[PAGE.index("## Errors") :]
    codes = set(re.findall(r"`([a-z_]+)`", errors)) - {"event_id", "error", "code", "field", "message", "after", "null"}
    texts = {path: path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {code for code in codes if not any(f'"{code}"' in text for text in texts.values())} == set()
    raised = set()
    for path, text in texts.items():
        if path.parent.name == "web" or path.name in {"codec.py", "validation.py"}:
            raised |= set(
                re.findall(r'\b(?:Bad\w+|NotReady|RiffleError|fail)\(\s*(?:\w+, [^)]*?)?"([a-z]+(?:_[a-z]+)*)"[,)]', text)
            )
    assert {"too_deep", "truncated", "trailing_bytes", "cross_origin"} <= raised
    fields = {name for record in (Interaction, Item, Request) for name in record.__dataclass_fields__}
    assert raised - codes - fields - {"unencodable"} == set(), "raised, but not on the page"
