"""The routes by which an operator acts from the web page. Each needs the token, also from programs."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from agents.web.access import OPERATOR
from agents.web.body import read_json
from agents.web.error_replies import json_response
from agents.web.protocol import Service
from agents.web.query import identifier, integer
from agents.web.tokens import Scope
from agents.web.views import route
from schemas.errors import BadRequest
from schemas.parsing import shown

__all__ = ["MAX_LETTERS", "operator_routes"]

MAX_LETTERS = 200
"Maximum number of dead letters in one answer, and in one replay by numbers."


def operator_routes(table: web.RouteTableDef, service: Service) -> None:
    """Add the routes to the table."""
    _letters(table, service)
    _releases(table, service)


def _letters(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.OPERATE, "get", "/v1/letters", frozenset({"limit", "code"}), kind=OPERATOR)
    async def letters(request: web.Request) -> web.Response:
        """Return the newest dead letters, which hold what others sent."""
        most = integer(request.query, "limit", 1, MAX_LETTERS) if "limit" in request.query else 50
        return json_response(dict(await service.operator.letters(most, request.query.get("code", "")[:100])))

    @route(table, Scope.OPERATE, "post", "/v1/letters/replay", kind=OPERATOR)
    async def replay(request: web.Request) -> web.Response:
        """Produce dead letters again: `letters`, a list of their numbers, or all of a `code`."""
        body = await _object(request, "code", "letters")
        numbers, code = body.get("letters", []), body.get("code", "")
        whole = isinstance(numbers, list) and all(type(n) in {int, float} and n >= 0 and n == n // 1 for n in numbers)
        if not whole or len(numbers) > MAX_LETTERS:
            raise BadRequest("invalid_field", f"letters must be a list of at most {MAX_LETTERS} numbers", "letters")
        if not isinstance(code, str) or bool(code) == bool(numbers):
            raise BadRequest("invalid_field", "give either letters or a code", "code")
        return json_response(dict(await service.operator.replay([int(n) for n in numbers], code)), 202)


def _releases(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.OPERATE, "post", "/v1/releases/{name}/promote", kind=OPERATOR)
    async def promote(request: web.Request) -> web.Response:
        """Announce a release that the gate accepted; every worker then verifies it again and swaps it in."""
        name = identifier(request.match_info["name"], "name")
        return json_response(dict(await service.operator.promote(name, await _expected(request))), 202)

    @route(table, Scope.OPERATE, "post", "/v1/releases/rollback", kind=OPERATOR)
    async def rollback(request: web.Request) -> web.Response:
        """Announce the release that served before."""
        return json_response(dict(await service.operator.roll_back(await _expected(request))), 202)


async def _expected(request: web.Request) -> str | None:
    """Return the champion that the client expects, `none` without one; None if it sends no body or names none."""
    if not request.body_exists:
        return None
    expected = (await _object(request, "expected")).get("expected")
    if expected is not None and not isinstance(expected, str):
        raise BadRequest("invalid_field", "expected must be the name of a release, or none", "expected")
    return expected


async def _object(request: web.Request, *known: str) -> dict[str, Any]:
    """Read a body of these fields.

    Raises:
        BadRequest: as `read_json`; `invalid_body`, `invalid_field`.
    """
    body = await read_json(request)
    if not isinstance(body, dict):
        raise BadRequest("invalid_body", "the body must be a JSON object")
    if unknown := [name for name in body if name not in known]:
        raise BadRequest("invalid_field", f"unknown field {shown(unknown[0])}; known: {', '.join(known)}", unknown[0][:100])
    return body
