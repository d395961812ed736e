"""Fuzzing of a running service from its OpenAPI document by Schemathesis: requests that fit it, and requests that do not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from openapi import validator_of
from schemathesis import Case, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

__all__ = ["Finding", "fuzzed", "problem_of"]

CONFORMS = [status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]
FEW = 10
TEMPORARY = {503, 504}
"Statuses of failures that a client may meet, where they are described."
TIMEOUT_S = 90.0
"Longer than any answer may take."
ACTION_SHARE = 0.2
"Share of the cases that an operator's action gets, because each starts clients of Kafka."


class Finding(AssertionError):
    """An answer that the document does not describe, with the request that got it."""


def fuzzed(
    document: dict[str, Any], address: str, token: str, cases: int, known: Mapping[str, Sequence[str]], only: str = ""
) -> Counter[str]:
    """Send `cases` requests of each kind to each operation, and check every answer; returns the numbers of answers by status.

    With 0 `cases` it is `FEW`, the same at each call.

    Half of the requests that fit the document name ids that are `known`, by the name of the parameter. `only`: part of the
    names of the operations that are meant.

    Raises:
        Finding: an answer is not as the document describes it. The request is the smallest that was found.
    """
    counts = Counter[str]()
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {token}"
        for operation, about in _operations(document, only):
            share = ACTION_SHARE if about["x-kind"] == "operator" else 1.0
            most = max(2, round((cases or FEW) * share))
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                strategy = _with_known(operation.as_strategy(generation_mode=mode), mode, known)
                check = partial(_check, document, about, mode, session, address, counts)
                _run(strategy, most, not cases, check)
    return counts


def _operations(document: dict[str, Any], only: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    for result in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = result.ok()
        if only in operation.label:
            yield operation, document["paths"][operation.path][operation.method]


def _run(strategy: st.SearchStrategy[Case], most: int, same: bool, check: Any) -> None:
    phases = [Phase.generate, Phase.shrink]

    slow = list(HealthCheck)

    @settings(max_examples=most, deadline=None, database=None, phases=phases, derandomize=same, suppress_health_check=slow)
    @given(strategy)
    def run(case: Case) -> None:
        check(case)

    with suppress(Unsatisfiable):  # an operation without parameters and body: no request does not fit it
        run()


@st.composite
def _with_known(
    draw: st.DrawFn, strategy: st.SearchStrategy[Case], mode: GenerationMode, known: Mapping[str, Sequence[str]]
) -> Case:
    case = draw(strategy)
    if mode is GenerationMode.POSITIVE and draw(st.booleans()):
        case.path_parameters |= {name: draw(st.sampled_from(known[name])) for name in case.path_parameters if name in known}
        bodies = case.body if isinstance(case.body, list) else [case.body]
        for body in bodies:
            for name in ("user_id", "item_id"):
                if isinstance(body, dict) and name in body and "PUT" not in case.operation.label:
                    body[name] = draw(st.sampled_from(known[name]))
    return case


def _check(
    document: dict[str, Any],
    about: dict[str, Any],
    mode: GenerationMode,
    session: requests.Session,
    address: str,
    counts: Counter[str],
    case: Case,
) -> None:
    answer = case.call(base_url=address, session=session, timeout=TIMEOUT_S)
    counts[f"{mode.value} {answer.status_code}"] += 1
    is_json = answer.headers.get("content-type", [""])[0] == "application/json" and answer.content
    body = json.loads(answer.content) if is_json else None
    checks = list(CONFORMS)
    if mode is GenerationMode.NEGATIVE and not isinstance(case.body, list) and answer.status_code < 400:
        checks.append(negative_data_rejection)  # of a list, each entry is refused in the answer
    if problem := problem_of(about, document, answer.status_code, body):
        raise Finding(f"{problem}\n{case.as_curl_command()[:2_000]}\n{answer.content[:1_000]!r}")
    case.validate_response(answer, checks=checks)


def problem_of(operation: dict[str, Any], document: dict[str, Any], status: int, body: object) -> str:
    """Return what an answer has that its operation does not describe; empty if nothing. `body`: None unless it is JSON.

    Schemathesis checks schemas, too, but not whether objects are closed.
    """
    described = operation["responses"].get(str(status))
    if described is None:
        return f"status {status} is not described"
    if "$ref" in described:
        described = document["components"]["responses"][described["$ref"].rpartition("/")[2]]
    if status >= 500 and status not in TEMPORARY:
        return f"status {status}"
    for code in _codes(body):
        if status >= 400 and code not in described.get("x-codes", ()):
            return f"code {code} is not described for status {status}"
    schema = described.get("content", {}).get("application/json", {}).get("schema", {})
    if body is not None and "$ref" in schema:
        for error in validator_of(schema["$ref"].rpartition("/")[2], document).iter_errors(body):
            return f"{list(error.absolute_path)}: {error.message[:500]}"
    return ""


def _codes(body: object) -> list[str]:
    error = body.get("error") if isinstance(body, dict) else None
    return [str(error.get("code"))] if isinstance(error, dict) else []
