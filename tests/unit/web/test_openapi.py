"""The OpenAPI document is current and valid, and says of bodies what the parsers accept."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient
from fakes import FakeService
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st
from openapi import closed, described, validator_of
from openapi_spec_validator import OpenAPIV31SpecValidator
from serving import Served

from agents.figures import STATES as RULE_STATES
from agents.web.access import KIND, OPERATOR, scope_of
from agents.web.contract.answers import STATES
from agents.web.contract.codes import ERRORS
from agents.web.contract.document import indented_document, path_of
from agents.web.contract.operations import NEEDED, OPERATIONS, OWN, QUERY
from agents.web.error_replies import CODES, HTTP_CODES
from agents.web.query import CONTEXT, MANY
from agents.web.routes import build_app, described_routes, takes_of
from agents.web.tokens import GRANTED, Scope
from schemas.errors import BadInput
from schemas.records import Interaction, Item, Request
from schemas.rules import COMMON, When, Where, rules_from
from schemas.rules import OWN as RULE_FIELDS
from schemas.validation import interaction_from, item_from, request_from

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
LISTED = {
    int(status): set(re.findall(r"`([a-z_]+)`", text)) - {"event_id"}
    for status, text in re.findall(r"^\| (\d{3}) \| (.*) \|$", PAGE[PAGE.index("## Errors") :], re.MULTILINE)
}


def test_the_file_is_current() -> None:
    written = (ROOT / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert written == indented_document(described_routes()), "python -m agents.web.contract > docs/openapi.json"


def test_it_is_valid() -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(described()).iter_errors()] == []


def test_an_invalid_document_is_found() -> None:
    broken = copy.deepcopy(described())
    del broken["paths"]["/v1/users/{user_id}"]["get"]["responses"]["200"]["description"]
    assert list(OpenAPIV31SpecValidator(broken).iter_errors())


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(m.upper(), path, found) for path, methods in described()["paths"].items() for m, found in methods.items()]


def test_every_route_is_described_and_no_other() -> None:
    assert {(method, path) for method, path, _ in operations()} == set(OPERATIONS)
    names = [found["operationId"] for _, _, found in operations()]
    assert len(names) == len(set(names))
    assert all(found["summary"] for _, _, found in operations())


def test_every_parameter_is_described_and_no_other() -> None:
    for route in described_routes():
        path = path_of(route)  # type: ignore[arg-type]
        found = described()["paths"][path][route.method.lower()].get("parameters", [])  # type: ignore[attr-defined]
        named = {parameter["name"] for parameter in found if parameter["in"] == "query"}
        assert named == {CONTEXT.rstrip(".") if name == CONTEXT else name for name in takes_of(route)}, path
        repeated = {parameter["name"] for parameter in found if parameter["schema"]["type"] == "array"}
        assert repeated == MANY & named, path
        placeholders = {parameter["name"] for parameter in found if parameter["in"] == "path"}
        assert placeholders == set(re.findall(r"\{(\w+)\}", path))
    taken = {(path_of(route), name) for route in described_routes() for name in takes_of(route)}  # type: ignore[arg-type]
    assert set(OWN) | NEEDED <= taken
    assert set(QUERY) <= {name for _, name in taken}


def test_a_token_needs_the_scope_of_the_route() -> None:
    for route in described_routes():
        found = described()["paths"][path_of(route)][route.method.lower()]  # type: ignore[arg-type,attr-defined]
        scope, kind = scope_of(route.handler), getattr(route.handler, KIND)  # type: ignore[attr-defined]
        wanted = [{"token": [str(scope)]}]
        if scope is Scope.OPEN:
            assert "security" not in found
        else:
            assert found["security"] == (wanted if kind is OPERATOR else [{}, *wanted])
            assert scope in GRANTED


def test_codes_are_those_of_the_interface() -> None:
    assert {status: set(codes) for status, codes in ERRORS.items()} == LISTED
    given_by_code = {**CODES, **{code: status for status, code in HTTP_CODES.items()}}
    assert {code: status for status, codes in ERRORS.items() for code in codes if code in given_by_code} == given_by_code
    used = {code for _, _, found in operations() for code in codes_of(found)}
    assert set().union(*LISTED.values()) - used == {"method_not_allowed"}, "no route answers with these"


def codes_of(operation: dict[str, Any]) -> set[str]:
    found = set()
    for answer in operation["responses"].values():
        named = answer.get("$ref", "").rpartition("/")[2]
        found |= set((described()["components"]["responses"][named] if named else answer).get("x-codes", ()))
    return found


def test_every_schema_is_used() -> None:
    text = json.dumps(described())
    unused = {name for name in described()["components"]["schemas"] if f'"#/components/schemas/{name}"' not in text}
    assert unused == set()


def test_states_of_rules_are_those_of_the_code() -> None:
    assert set(STATES) == set(RULE_STATES)


def test_fields_are_those_of_the_records() -> None:
    schemas = described()["components"]["schemas"]
    for name, record in (("Event", Interaction), ("Item", Item), ("Request", Request), ("Where", Where), ("When", When)):
        assert set(schemas[name]["properties"]) == set(record.__dataclass_fields__), name
    for kind, own in RULE_FIELDS.items():
        assert set(schemas[f"{kind.title()}Rule"]["properties"]) == {*COMMON, *own}


async def test_a_worker_serves_it_and_does_not_send_it_twice() -> None:
    service = FakeService()
    async with TestClient(Served(build_app(service), service.metrics)) as client:
        async with client.get("/openapi.json") as response:
            assert response.status == 200
            assert response.content_type == "application/json"
            found = await response.json()
            tag = response.headers["ETag"]
        async with client.get("/openapi.json", headers={"If-None-Match": tag}) as response:
            assert response.status == 304
    assert found["servers"][0]["url"] == "/"
    assert {**found, "servers": []} == {**described(), "servers": []}


# ---- what schemas say, and what parsers accept

NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 100, 500, 501, 1_000_001, 2**53, 2**62 + 1, 2**64, -(2**63) - 1, -0.5, 0.5, 5.0, 1e39, -4e38]
)
TEXTS = st.sampled_from(["", "a", "é" * 128, "x" * 256, "x" * 257, "x" * 4_097, "2026-01-01", "17", "category"])
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
LISTS = st.lists(PLAIN | st.lists(TEXTS, max_size=1), max_size=3) | st.sampled_from([["a"] * 101, [1] * 5_001])
PAIRS = st.dictionaries(TEXTS, PLAIN | LISTS, max_size=2) | st.just({str(n): 1 for n in range(101)})
TOKENS = st.fixed_dictionaries({}, optional={"partition": NUMBERS, "offset": NUMBERS, "x": NUMBERS})
VALUES = PLAIN | LISTS | PAIRS | TOKENS


def objects(sound: dict[str, Any], fields: set[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that are sound but for up to two fields."""
    odd = st.dictionaries(st.sampled_from(sorted({*fields, "unknown"})), VALUES, max_size=2)
    without = st.sets(st.sampled_from(sorted(sound)), max_size=1) | st.just(set[str]())
    return st.builds(lambda o, w: {**{k: v for k, v in sound.items() if k not in w}, **o}, odd, without)


WHERES = objects({"categories": ["a"]}, set(Where.__dataclass_fields__))
WHENS = objects({"context": {"a": 1}}, set(When.__dataclass_fields__))
SOUND_RULES: dict[str, dict[str, Any]] = {
    "boost": {"where": {"categories": ["a"]}, "factor": 2},
    "bury": {"where": {"items": ["a"]}, "factor": 0.5},
    "pin": {"pins": [{"item_id": "a", "position": 0}]},
    "require": {"where": {"attributes": {"a": [1, "b"]}}, "least": 1, "first": 3},
    "cap": {"where": {"price_to": 5}, "most": 2},
    "fresh": {"share": 0.5, "fewer_than": 5},
}


@st.composite
def rule_sets(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(sorted(SOUND_RULES)))
    fields = {name for own in RULE_FIELDS.values() for name in own} | set(COMMON)
    rule = draw(objects({"name": "n", "kind": kind, **SOUND_RULES[kind]}, fields))
    if draw(st.booleans()):
        rule["where"] = draw(WHERES)
    if draw(st.booleans()):
        rule["when"] = draw(WHENS)
    return draw(objects({"rules": [rule]}, {"format", "version"}))


KINDS: dict[str, tuple[Callable[[Any], object], st.SearchStrategy[Any]]] = {
    "Event": (
        lambda body: interaction_from(body, now_ms=5),
        objects({"user_id": "u", "item_id": "i"}, set(Interaction.__dataclass_fields__)),
    ),
    "Item": (item_from, objects({"title": "t", "item_id": "i"}, set(Item.__dataclass_fields__))),
    "Request": (
        lambda body: request_from(body, request_id="r"),
        objects({"user_id": "u"}, set(Request.__dataclass_fields__)),
    ),
    "Rules": (rules_from, rule_sets()),
}
BEYOND = re.compile(
    r"must have 1 to 256 bytes"  # a schema counts characters
    r"|must be ids of 1 to 256 bytes"
    r"|beyond 64 bits"
    r"|must be a string or a whole number, is -?[0-9.]+$"  # as an id, 5.0 is refused, because it may have lost digits
    r"|every entry of \w+ must be a string of 1 to 256 characters, or a whole number"
    r"|item_id is missing"  # of an item: the path has it
    r"|must be epoch milliseconds or ISO 8601"  # as text
    r"|must lie in 0\.\.2\^53 epoch milliseconds"
    r"|where is missing: "  # it may hold nulls only
    r"|must be at least price_from|until must be later|must be at most first|kind must be one of"
)
"Refusals that no schema describes."


def agree(kind: str, body: Any, source: dict[str, Any] | None = None) -> None:
    """Fail if the schema and the parser do not agree on a body, as it is read."""
    parse, _ = KINDS[kind]
    body = orjson.loads(json.dumps(body))
    valid, refused = validator_of(kind, source).is_valid(body), ""
    try:
        parse(body)
    except BadInput as error:
        refused = error.message
    if refused:
        assert not valid or BEYOND.search(refused), refused
    else:
        assert valid, "the schema refuses what is accepted"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_schemas_and_parsers_agree(kind: str) -> None:
    @fuzz
    @given(KINDS[kind][1])
    def law(body: Any) -> None:
        agree(kind, body)

    law()


@pytest.mark.parametrize(
    ("kind", "field", "change"),
    [
        ("Request", "k", {"maximum": 1}),
        ("Event", "position", {"maximum": 0}),
        ("Item", "attributes", {"additionalProperties": {"type": "string"}}),
        ("Request", "exclude", {"maxItems": 0}),
    ],
)
def test_a_schema_that_says_something_else_is_found(kind: str, field: str, change: dict[str, Any]) -> None:
    broken = copy.deepcopy(described())
    broken["components"]["schemas"][kind]["properties"][field] |= change
    sound = {"Event": {"user_id": "u", "item_id": "i"}, "Item": {"item_id": "i"}, "Request": {"user_id": "u"}}[kind]
    must_find(lambda name, body: agree(name, body, broken), kind, objects(sound, {field}))


def test_the_closed_form_refuses_what_is_not_described() -> None:
    entry = {"item_id": "i", "score": 1.0, "sources": []}
    assert validator_of("SlateItem").is_valid({**entry, "new": 1})
    assert validator_of("SlateItem", closed(described())).is_valid(entry)
    assert not validator_of("SlateItem", closed(described())).is_valid({**entry, "new": 1})
