"""The OpenAPI document of the HTTP interface: `python -m agents.web.contract > docs/openapi.json` writes it from the code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web

from agents.web.access import KIND, OPERATOR, scope_of
from agents.web.body import BODY_TIMEOUT_S, ENCODINGS, MAX_BODY_BYTES, MAX_JSON_DEPTH, MAX_VALUES
from agents.web.contract.answers import ANSWERS
from agents.web.contract.bodies import BODIES
from agents.web.contract.codes import COMMON, ERRORS, TOKEN, by_status
from agents.web.contract.operations import DEADLINE, JSON, OPERATIONS, TAGS, Answer, Operation, of_path, of_query
from agents.web.contract.shapes import Schema, ref
from agents.web.contract.views import VIEWS
from agents.web.tokens import Scope
from agents.web.views import takes_of

__all__ = ["LOCAL", "document", "indented_document", "path_of"]

VERSION = "1"
"Version of the contract: the number in the paths. Within a version fields, codes and routes are only added."
LOCAL = "http://127.0.0.1:6066"
"Address of a worker with the default settings."
PLACEHOLDER = re.compile(r"\{(\w+)\}")
DESCRIPTION = f"""Send events and items to Riffle, and ask for slates. Kafka accepts the same bodies (AsyncAPI document).

Clients must ignore fields of answers that they do not know, because later versions add some; an unknown field in a request is
an error. A body has at most {MAX_BODY_BYTES >> 20} MiB, {MAX_JSON_DEPTH} levels and {MAX_VALUES:,} values, and
{BODY_TIMEOUT_S:.0f} s to arrive; `Content-Encoding` may be one of {", ".join(sorted(ENCODINGS))}. `HEAD` is answered wherever
`GET` is. Every error has the form `Failure`, also for unknown paths (404) and methods (405)."""


def path_of(route: web.RouteDef) -> str:
    """Return a route's path with plain placeholders."""
    return route.path.replace(":[^/]+", "")


def document(table: Iterable[web.AbstractRouteDef], server: str = LOCAL) -> dict[str, Any]:
    """Describe the routes of a table (`agents.web.routes.routes`).

    `server`: address of the worker, or `/`, the one that serves the document.

    Raises:
        KeyError: a route or a parameter is not described.
    """
    paths: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}
    for route in table:
        assert isinstance(route, web.RouteDef)
        path = path_of(route)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path, shared)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Riffle",
            "version": VERSION,
            "summary": "A self-hosted, real-time recommender on an event stream.",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server, "description": "A worker (RIFFLE_WEB_HOST, RIFFLE_WEB_PORT)."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": {**BODIES, **ANSWERS, **VIEWS},
            "responses": {name: shared[name] for name in NAMES.values() if name in shared},
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of the file RIFFLE_HTTP_TOKENS_FILE, which has scopes (`riffle token`), or the"
                    " page's token. Without that file only some requests need one.",
                }
            },
        },
    }


def _operation(route: web.RouteDef, path: str, shared: dict[str, Any]) -> dict[str, Any]:
    about = OPERATIONS[route.method, path]
    scope, kind = scope_of(route.handler), getattr(route.handler, KIND)
    summary, description = _texts(route)
    found: dict[str, Any] = {
        "operationId": about.name,
        "tags": [about.tag],
        "summary": summary,
        **({"description": description} if description else {}),
    }
    parameters = [of_path(name) for name in PLACEHOLDER.findall(path)]
    parameters += [of_query(path, name) for name in sorted(takes_of(route))]
    if about.has_deadline:
        schema = {name: value for name, value in DEADLINE.items() if name != "description"}
        text = "As the parameter `deadline_ms`, which counts if both are given."
        parameters.append({"name": "deadline-ms", "in": "header", "description": text, "schema": schema})
    if parameters:
        found["parameters"] = parameters
    if about.body:
        found["requestBody"] = {"required": about.needs_body, "content": {JSON: {"schema": ref(about.body)}}}
    found["responses"] = _responses(about, _codes(about, route.method, scope), shared)
    if scope is not Scope.OPEN:
        # without a file of tokens only an operator's action needs one, as well as requests of browsers and from elsewhere
        needs = {"token": [str(scope)]}
        found["security"] = [needs] if kind is OPERATOR else [{}, needs]
    found["x-scope"], found["x-kind"] = str(scope), kind
    return found


def _texts(route: web.RouteDef) -> tuple[str, str]:
    """Return the first paragraph of a view's documentation, and the others."""
    paragraphs = [" ".join(part.split()) for part in (route.handler.__doc__ or "").split("\n\n")]
    return paragraphs[0], "\n\n".join(paragraphs[1:])


def _codes(about: Operation, method: str, scope: Scope | None) -> tuple[str, ...]:
    token = () if scope is Scope.OPEN else TOKEN
    writes = () if method == "GET" else ("cross_origin",)
    return (*COMMON, *token, *writes, *about.codes)


def _responses(about: Operation, codes: Sequence[str], shared: dict[str, Any]) -> dict[str, Any]:
    found = {status: _response(answer) for status, answer in about.answers.items()}
    for status, listed in by_status(codes).items():
        if status in found:
            raise ValueError(f"{about.name} has two answers with status {status}")
        answer = _refusal(status, listed, about.failures.get(status, "Failure"))
        if tuple(listed) == ERRORS[status] and status not in about.failures:
            shared[NAMES[status]] = answer
            answer = {"$ref": f"#/components/responses/{NAMES[status]}"}
        found[status] = answer
    return {str(status): found[status] for status in sorted(found)}


def _refusal(status: int, codes: Sequence[str], schema: str) -> dict[str, Any]:
    text = ", ".join(f"`{code}`" for code in codes)
    headers = {"headers": HEADERS[status]} if status in HEADERS else {}
    return {"description": text, "content": {JSON: {"schema": ref(schema)}}, "x-codes": list(codes), **headers}


NAMES: Mapping[int, str] = {
    400: "Invalid",
    401: "TokenRequired",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "BodyTimeout",
    409: "Conflict",
    413: "TooLarge",
    414: "TooLong",
    415: "UnsupportedEncoding",
    417: "ExpectationFailed",
    429: "RateLimited",
    431: "HeaderTooLarge",
    500: "Internal",
    503: "Unavailable",
    504: "DeadlineExceeded",
}
"Names of the answers that several operations share, by status."
HEADERS: Mapping[int, Schema] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}}},
    415: {"Accept-Encoding": {"schema": {"type": "string"}}},
    429: {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
}


def _response(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.text}
    if answer.media:
        found["content"] = {media: {} if answer.schema is None else {"schema": answer.schema} for media in answer.media}
    if answer.headers:
        found["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()}
    return found


def indented_document(table: Iterable[web.AbstractRouteDef]) -> str:
    """Return `document` as JSON with indents."""
    return orjson.dumps(document(table), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
