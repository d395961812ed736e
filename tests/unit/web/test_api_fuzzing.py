"""The fuzzer of a running service finds an answer that its OpenAPI document does not describe."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from api_fuzzing import Finding, fuzzed, problem_of
from fakes import FakeService
from openapi import closed, described
from serving import Served

from agents.web.routes import build_app
from schemas.errors import NotReady
from schemas.records import Item

ROUTE = "/v1/items/{item_id}"
KNOWN = {"item_id": ["i1"], "user_id": ["u"]}


async def run(document: dict[str, Any], service: FakeService, cases: int) -> set[str]:
    server = Served(build_app(service), service.metrics)
    await server.start_server()
    try:
        return set(await asyncio.to_thread(fuzzed, document, str(server.make_url("")), "t", cases, KNOWN, f"GET {ROUTE}"))
    finally:
        await server.close()


@pytest.fixture
def service() -> FakeService:
    return FakeService(catalogue={"i1": Item("i1")})


async def test_answers_that_are_described_are_no_findings(service: FakeService) -> None:
    assert await run(closed(described()), service, 20) == {"positive 200", "positive 404", "negative 400"}


@pytest.mark.parametrize("part", ["field", "status", "code"])
async def test_an_answer_that_is_not_described_is_found(service: FakeService, part: str) -> None:
    broken = copy.deepcopy(closed(described()))
    answers = broken["paths"][ROUTE]["get"]["responses"]
    if part == "field":
        del broken["components"]["schemas"]["CatalogueEntry"]["properties"]["attributes"]
    elif part == "status":
        del answers["404"]
    else:
        answers["404"] = {**broken["components"]["responses"]["NotFound"], "x-codes": []}
    with pytest.raises(Finding) as caught:
        await run(broken, service, 30)
    assert {"field": "attributes", "status": "404 is not described", "code": "code not_found"}[part] in str(caught.value)


async def test_a_failure_is_found_but_for_a_temporary_one(service: FakeService) -> None:
    service.failure = ValueError("broken")
    with pytest.raises(Finding, match="status 500"):
        await run(closed(described()), service, 5)
    operation, document = described()["paths"]["/v1/users/{user_id}"]["get"], described()
    restoring = {"error": NotReady("not_ready", "being restored").to_json()}
    assert problem_of(operation, document, 503, restoring) == ""
    assert problem_of(operation, document, 503, {"error": NotReady("store_closed", "closed").to_json()})
