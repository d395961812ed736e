"""The AsyncAPI document is current and valid, and its payloads are those that Riffle reads and writes."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import fastavro
import pytest
import yaml
from fastavro.utils import generate_many
from jsonschema import Draft7Validator

from agents.asyncapi import AVRO, CORRELATION, KAFKA_CODES, MESSAGES, REPLY_TO, USED, document, page
from agents.requests.replies import Address, encoded_reply
from agents.web.contract.codes import ERRORS
from schemas.codec import Framing, decode, schema_text
from schemas.errors import BadRequest
from schemas.records import AsOf, Interaction, Item, Slate, SlateItem
from schemas.settings import Settings
from streams.kafka.writes import Writes

ROOT = Path(__file__).parents[3]
INTERFACE = (ROOT / "docs" / "interface.md").read_text(encoding="utf-8")
SPECS = Path(os.environ.get("ASYNCAPI_SPECS", Path(sys.prefix) / "asyncapi")) / "node_modules" / "@asyncapi" / "specs"
SCHEMA = SPECS / "schemas" / "3.0.0.json"
"The published schema of the form, which requirements/specs fetches."


def test_the_file_is_current() -> None:
    written = (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8")
    assert written == page(), "python -m agents.asyncapi > docs/asyncapi.yaml"
    assert yaml.safe_load(written) == document()


@pytest.mark.skipif(not SCHEMA.exists(), reason="the schemas of AsyncAPI were not fetched: requirements/specs needs npm")
def test_it_is_valid_by_the_published_schema() -> None:
    validator = Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert [f"{list(error.absolute_path)}: {error.message[:200]}" for error in validator.iter_errors(document())] == []
    broken = copy.deepcopy(document())
    broken["operations"]["applyRules"]["action"] = "eat"
    assert list(validator.iter_errors(broken))


def _resolved(reference: str) -> Any:
    found: Any = document()
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return found


def _references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for entry in value for found in _references(entry)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for entry in value.values() for found in _references(entry)]


def test_every_reference_leads_somewhere_and_everything_is_used() -> None:
    found = document()
    references = set(_references(found))
    assert all(_resolved(reference) for reference in references)
    for kind in ("messages", "schemas"):
        for name in found["components"][kind]:
            assert f"#/components/{kind}/{name}" in references
    assert {operation["channel"]["$ref"].rpartition("/")[2] for operation in found["operations"].values()} == set(USED)


def test_topics_are_those_that_programs_use() -> None:
    rows = re.findall(r"^\| (`riffle\..*?) \|.*\| (.*?) \|$", INTERFACE[: INTERFACE.index("### Partitions")], re.MULTILINE)
    used = {name for cell, use in rows for name in re.findall(r"`riffle\.([a-z-]+)`", cell) if use != "nothing"}
    assert used == set(USED)
    assert {channel["address"] for channel in document()["channels"].values()} - {None} == {f"riffle.{name}" for name in used}


def test_codes_over_kafka_are_those_of_the_interface() -> None:
    text = INTERFACE[INTERFACE.index("Over Kafka the same codes are used in `error`") :]
    named = set(re.findall(r"`([a-z_]+)`", text)) - {"error"}
    assert named == set(KAFKA_CODES)
    assert not named & {code for codes in ERRORS.values() for code in codes}


def test_headers_are_those_of_the_interface() -> None:
    for name in {name for message in MESSAGES.values() for name in message.get("headers", {}).get("properties", ())}:
        assert f"`{name}" in INTERFACE
    assert "riffle-op: erase" in INTERFACE


@pytest.mark.parametrize("message", sorted(AVRO))
def test_avro_payloads_are_the_schemas_of_the_codec(message: str) -> None:
    payload = yaml.safe_load(page())["components"]["messages"][message]["payload"]["schema"]
    assert payload == json.loads(schema_text(AVRO[message]))
    parsed = fastavro.parse_schema(copy.deepcopy(payload))
    for datum in generate_many(parsed, 5):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, datum)
        out.seek(0)
        assert fastavro.schemaless_reader(out, parsed, parsed).keys() == datum.keys()
    others = {name for name, found in MESSAGES.items() if "schemaFormat" in found["payload"]}
    assert others == set(AVRO)


def _problems(message: str, value: bytes) -> list[str]:
    found = document()
    schema = {**found["components"]["messages"][message]["payload"], "components": found["components"]}
    if "$ref" in schema:
        schema = {"allOf": [{"$ref": schema["$ref"]}], "components": found["components"]}
    return [error.message for error in Draft7Validator(schema).iter_errors(json.loads(value))]


def test_what_riffle_writes_in_json_is_described() -> None:
    writes = Writes(Settings(), Framing.JSON)
    event, item = (
        Interaction("e", "u", "i", 5, "like", 1.5, "s", "r", 3),
        Item("i", "t", "x", ("a",), None, 2.0, True, 7, {"a": "b"}),
    )
    for message, record in (("event", writes.event(event)), ("item", writes.item(item))):
        assert record.value is not None
        assert _problems(message, record.value) == []
    assert writes.erasure("u").value is None
    address = Address("replies", b"c", Framing.JSON, "u")
    items = (SlateItem("i", 0.5, ("popular",), {"sources": {"popular": 0.5}, "light": 0.5, "dropped": {"seen": 1}}),)
    slate = Slate("r", "u", items, "none", "default", ("stale",), AsOf(0, 1, 2), {"total": 1.0})
    for answer in (slate, BadRequest("invalid_field", "k must be a number", "k")):
        assert _problems("slate", encoded_reply(address, answer)) == []
    assert _problems("slate", b'{"key": "u", "value": {}, "correlation_id": "c"}')


def test_what_riffle_reads_in_json_must_have_what_the_schema_demands() -> None:
    headers = [("content-type", b"application/json")]
    body = json.dumps({"user_id": "u", "item_id": "i"}).encode()
    assert _problems("event", body) == ["'event_time' is a required property"]
    sound = json.dumps({"user_id": "u", "item_id": "i", "event_time": 5}).encode()
    assert _problems("event", sound) == []
    assert decode("interaction", sound, headers)[0]["event_time"] == 5
    assert _problems("item", b'{"title": "t"}') == ["'item_id' is a required property"]


def test_an_answer_carries_the_correlation_id_as_a_header_and_goes_where_the_request_says() -> None:
    assert [name for name, _ in Address("t", b"c", Framing.JSON, "u").headers()] == [CORRELATION, "content-type"]
    reply = document()["operations"]["answerRequests"]["reply"]
    assert reply["address"]["location"].endswith(REPLY_TO)
