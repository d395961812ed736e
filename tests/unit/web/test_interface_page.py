"""The documentation of the interface agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fakes import FakeService

from agents.web.body import BODY_TIMEOUT_S, ENCODINGS, MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_VALUES
from agents.web.error_replies import CODES, HTTP_CODES
from agents.web.query import CONTEXT, MANY, MAX_DEADLINE_MS, RECOMMEND
from agents.web.request_lists import MAX_REQUESTS
from agents.web.routes import MAX_EVENTS, MAX_IMAGE_BYTES, routes, takes_of
from agents.web.server import MAX_HEADER_BYTES, MAX_HEADERS, MAX_URL_BYTES
from models.pipeline.filters import FILTERS
from models.pipeline.pipeline import PINS
from schemas.codec import MAX_VALUE_BYTES
from schemas.records import Interaction, Item, Request, Slate, UserQuery
from schemas.rules import COMMON, MAX_RULES, OWN, Kind, When, Where, decode_rules
from schemas.settings import Settings
from schemas.validation import FUTURE_MS, MAX_CANDIDATES, MAX_EXCLUDE, MAX_ID_BYTES, MAX_K, MAX_TEXT_CHARS, MAX_USERS

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("agents", "schemas", "streams")
PAGE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("fields", [Interaction, Item, Request, Slate])
def test_every_field_is_named(fields: type) -> None:
    names = set(fields.__dataclass_fields__)  # type: ignore[attr-defined]
    assert {name for name in names if not re.search(rf"[`\"]{name}[`\"]", PAGE)} == set()


def test_every_reason_why_a_candidate_is_dropped_is_named() -> None:
    reasons = PAGE[PAGE.index("`dropped` is the same") :].partition("\n\n")[0]
    assert {stage.name for stage in FILTERS if f"`{stage.name}`" not in reasons} == set()


def test_the_example_of_rules_is_valid_and_every_kind_and_field_is_named() -> None:
    rules = PAGE[PAGE.index("## Rules") : PAGE.index("## Over Kafka")]
    (example,) = re.findall(r"```json\n(.*?)```", rules, re.DOTALL)
    assert len(decode_rules(example.encode()).rules) == 4
    fields = {name for own in OWN.values() for name in own} | {*COMMON, *When.__dataclass_fields__, *Where.__dataclass_fields__}
    assert {name for name in (*Kind, *fields, *PINS) if f"`{name}`" not in rules and f'"{name}"' not in rules} == set()
    assert f"at most {MAX_RULES}" in rules


def _rows() -> dict[tuple[str, str], str]:
    """Return the page's row of each route, by method and path."""
    rows = re.findall(r"^\| `(GET|POST|PUT|DELETE) (/\S*)` \|(.*)$", PAGE, re.MULTILINE)
    return {(method, path): text for method, path, text in rows}


def _routes() -> dict[tuple[str, str], frozenset[str]]:
    """Return the query parameters of each route, by method and path."""
    return {(route.method, route.path.replace(":[^/]+", "")): takes_of(route) for route in routes(FakeService())}  # type: ignore[attr-defined]


def test_every_route_is_there_and_no_other() -> None:
    assert set(_rows()) == set(_routes())


def test_every_parameter_is_named_at_its_route_and_no_other() -> None:
    rows = _rows()
    for route, takes in _routes().items():
        named = {name.replace("NAME", "") for name in re.findall(r"`([a-zA-Z_.]+)=", rows[route])}
        assert named == takes, route
    assert {name for name in MANY if f"`{name}`" not in PAGE} == set()
    assert CONTEXT in RECOMMEND


def test_limits_are_those_of_the_code() -> None:
    assert MAX_BODY_BYTES == MAX_VALUE_BYTES == 1 << 20
    assert FUTURE_MS == 86_400_000
    assert f"1 to {MAX_K} items" in PAGE
    assert f"1 to {MAX_ID_BYTES} bytes" in PAGE
    assert f"at most {MAX_EVENTS:,}" in PAGE
    assert f"a list of 1 to {MAX_REQUESTS} requests" in PAGE
    assert f"more than {MAX_REQUESTS} requests (`list_too_long`)" in PAGE
    assert f"`limit=` ({MAX_USERS}), 1 to {MAX_USERS}" in PAGE
    assert UserQuery().limit == MAX_USERS
    assert f"at most {MAX_EXCLUDE:,}" in PAGE
    assert f"at most {MAX_CANDIDATES:,}" in PAGE
    assert f"at most {MAX_TEXT_CHARS:,} characters" in PAGE
    assert f"{MAX_JSON_DEPTH} levels" in PAGE
    assert f"{MAX_VALUES:,} values" in PAGE
    assert f"1..{MAX_DEADLINE_MS}" in PAGE
    assert f"{MAX_URL_BYTES >> 10} KiB" in PAGE
    assert f"{MAX_HEADER_BYTES >> 10} KiB" in PAGE
    assert f"{MAX_HEADERS} headers" in PAGE
    assert f"{MAX_IMAGE_BYTES >> 20} MiB" in PAGE
    assert f"{BODY_TIMEOUT_S:.0f} s" in PAGE
    assert {name for name in ENCODINGS if f"`{name}`" not in PAGE} == set()
    assert f"`RIFFLE_DEADLINE_MS`, {Settings().deadline_ms};" in PAGE


def test_codes_are_those_of_the_code() -> None:
    errors = PAGE[PAGE.index("## Errors") :]
    codes = set(re.findall(r"`([a-z_]+)`", errors)) - {"event_id", "error", "code", "field", "message", "after", "null"}
    texts = {path: path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {code for code in codes if not any(f'"{code}"' in text for text in texts.values())} == set()
    raised = set()
    for path, text in texts.items():
        if path.parent.name in {"web", "agents"} or path.name in {"codec.py", "validation.py"}:
            raised |= set(
                re.findall(r'\b(?:Bad\w+|NotReady|RiffleError|fail)\(\s*(?:\w+, [^)]*?)?"([a-z]+(?:_[a-z]+)*)"[,)]', text)
            )
    raised |= set(CODES) | set(HTTP_CODES.values())
    assert {"too_deep", "truncated", "trailing_bytes", "cross_origin"} <= raised
    fields = {name for record in (Interaction, Item, Request) for name in record.__dataclass_fields__}
    assert raised - codes - fields - {"unencodable"} == set(), "raised, but not on the page"


def test_codes_have_the_status_that_the_page_gives_them() -> None:
    table = {
        code: int(status)
        for status, text in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE[PAGE.index("## Errors") :], re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", text)
    }
    given = {**CODES, **{code: status for status, code in HTTP_CODES.items()}}
    assert {code: table.get(code) for code in given} == given
