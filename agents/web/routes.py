"""HTTP routes of the contract, on aiohttp. Errors are JSON with a code, never a stack trace."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from agents.service import Service
from schemas.errors import BadEvent, BadInput, BadRequest, DeadlineExceeded, NotReady, RiffleError
from schemas.validation import interaction_from, item_from, request_from

__all__ = ["attach", "build_app"]

log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
MAX_EVENTS = 1_000
SERVICE: web.AppKey[Service] = web.AppKey("service", Service)

routes = web.RouteTableDef()
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _error(status: int, code: str, message: str, field: str | None = None) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message, "field": field}}, status=status)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure as the contract's error object with the right status."""
    try:
        return await handler(request)
    except BadInput as exc:
        return web.json_response({"error": exc.to_json()}, status=404 if exc.code == "not_found" else 400)
    except DeadlineExceeded as exc:
        return web.json_response({"error": exc.to_json()}, status=504)
    except NotReady as exc:
        return web.json_response({"error": exc.to_json()}, status=503, headers={"Retry-After": "1"})
    except RiffleError as exc:
        return web.json_response({"error": exc.to_json()}, status=500)
    except web.HTTPRequestEntityTooLarge:
        return _error(413, "too_large", f"a body has at most {MAX_BODY} bytes")
    except web.HTTPException as exc:
        code = {404: "not_found", 405: "method_not_allowed"}.get(exc.status, "http_error")
        return _error(exc.status, code, f"{request.method} {request.path}: {exc.reason}")
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(500, "internal", "this is a fault of the service; its log says more")


async def _json(request: web.Request) -> Any:
    if (request.content_length or 0) > MAX_BODY:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
    body = bytearray()
    async for part in request.content.iter_chunked(1 << 16):
        body += part
        if len(body) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, len(body))
    try:
        return json.loads(bytes(body), parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise BadRequest("not_json", f"the body is not JSON: {str(exc)[:200]}") from exc


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _number(request: web.Request, name: str, default: int | None) -> int | None:
    text = request.query.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError as exc:
        raise BadRequest("invalid_field", f"{name} must be a whole number, is {text[:40]!r}", name) from exc


def _list(request: web.Request, name: str) -> list[str]:
    return [part for text in request.query.getall(name, []) for part in text.split(",") if part]


@routes.post("/v1/events")
async def post_events(request: web.Request) -> web.Response:
    """One event, or a list of at most 1,000.

    202 with how many were accepted, an error for each that was not (by index), and a read-your-writes token for each
    accepted one, in order. A body that is no JSON, or neither an object nor a list, is 400 as a whole.
    """
    service = request.app[SERVICE]
    body = await _json(request)
    entries = body if isinstance(body, list) else [body]
    if not isinstance(body, list | dict) or len(entries) > MAX_EVENTS:
        raise BadRequest("invalid_body", f"send one event object or a list of at most {MAX_EVENTS}")
    accepted, rejected = [], []
    for index, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict):
                raise BadEvent("invalid_event", "an event is a JSON object")
            accepted.append(interaction_from(entry, now_ms=service.now_ms()))
        except BadEvent as exc:
            service.metrics.count("http_events", outcome="rejected", code=exc.code)
            rejected.append({"index": index, "error": exc.to_json()})
    tokens = await service.send_events(accepted)
    service.metrics.count("http_events", len(tokens), outcome="accepted")
    return web.json_response({"accepted": len(tokens), "rejected": rejected, "tokens": tokens}, status=202)


@routes.put("/v1/items/{item_id}")
async def put_item(request: web.Request) -> web.Response:
    """Add or replace a catalogue entry."""
    body = await _json(request)
    if not isinstance(body, dict):
        raise BadRequest("invalid_body", "an item is a JSON object")
    named = request.match_info["item_id"]
    if body.setdefault("item_id", named) != named:
        raise BadRequest("invalid_field", "item_id in the body is not the one in the path", "item_id")
    await request.app[SERVICE].put_item(item_from(body))
    return web.json_response({"item_id": named}, status=202)


@routes.get("/v1/items/{item_id}")
async def get_item(request: web.Request) -> web.Response:
    """A catalogue entry."""
    return web.json_response(asdict(request.app[SERVICE].item(request.match_info["item_id"])))


@routes.delete("/v1/items/{item_id}")
async def delete_item(request: web.Request) -> web.Response:
    """Delete a catalogue entry."""
    service = request.app[SERVICE]
    service.item(request.match_info["item_id"])
    await service.delete_item(request.match_info["item_id"])
    return web.json_response({"item_id": request.match_info["item_id"]}, status=202)


@routes.get("/v1/recommend/{user_id}")
async def get_recommend(request: web.Request) -> web.Response:
    """A slate. Query: k, explain, exclude, category (repeat or comma), after=partition:offset, deadline_ms."""
    source: dict[str, Any] = {"user_id": request.match_info["user_id"], "k": _number(request, "k", None)}
    source["exclude"], source["categories"] = _list(request, "exclude"), _list(request, "category")
    source["explain"] = request.query.get("explain", "0").lower() in ("1", "true", "yes")
    if (after := request.query.get("after")) is not None:
        partition, _, offset = after.partition(":")
        if not (partition.isdecimal() and offset.isdecimal()):
            raise BadRequest("invalid_field", "after must be partition:offset", "after")
        source["after"] = {"partition": int(partition), "offset": int(offset)}
    return await _recommend(request, source)


@routes.post("/v1/recommend")
async def post_recommend(request: web.Request) -> web.Response:
    """A slate for a whole request body."""
    body = await _json(request)
    if not isinstance(body, dict):
        raise BadRequest("invalid_body", "a request is a JSON object")
    return await _recommend(request, body)


async def _recommend(request: web.Request, source: dict[str, Any]) -> web.Response:
    deadline = _number(request, "deadline_ms", None)
    if deadline is not None and not 1 <= deadline <= 60_000:
        raise BadRequest("invalid_field", "deadline_ms must lie in 1..60000", "deadline_ms")
    wanted = request_from(source, request_id=uuid.uuid4().hex)
    slate = await request.app[SERVICE].recommend(wanted, deadline)
    return web.json_response(slate.to_json())


@routes.get("/v1/similar/{item_id}")
async def get_similar(request: web.Request) -> web.Response:
    """Items like this one."""
    k = _number(request, "k", 10) or 0
    if not 1 <= k <= 500:
        raise BadRequest("invalid_field", "k must lie in 1..500", "k")
    found = request.app[SERVICE].similar(request.match_info["item_id"], k)
    items = [{"item_id": item.item_id, "score": item.score, "sources": list(item.sources)} for item in found]
    return web.json_response({"item_id": request.match_info["item_id"], "items": items})


@routes.get("/v1/users/{user_id}")
async def get_user(request: web.Request) -> web.Response:
    """What is known of a person."""
    return web.json_response(request.app[SERVICE].user(request.match_info["user_id"]))


@routes.delete("/v1/users/{user_id}")
async def delete_user(request: web.Request) -> web.Response:
    """Erase a person's state; the token tells when it is done."""
    token = await request.app[SERVICE].erase(request.match_info["user_id"])
    return web.json_response({"user_id": request.match_info["user_id"], "token": token}, status=202)


@routes.get("/healthz")
async def healthz(request: web.Request) -> web.Response:  # noqa: ARG001
    """Whether the process answers at all."""
    return web.json_response({"status": "ok"})


@routes.get("/readyz")
async def readyz(request: web.Request) -> web.Response:
    """Whether it can answer requests, and why not."""
    ready, reasons = request.app[SERVICE].ready()
    body = {"ready": ready, "release": None, "reasons": reasons}
    return web.json_response(body, status=200 if ready else 503)


@routes.get("/metrics")
async def metrics(request: web.Request) -> web.Response:
    """Prometheus text."""
    return web.Response(text=request.app[SERVICE].render_metrics(), content_type="text/plain")


def attach(app: web.Application, service: Service) -> None:
    """Mount the routes on an aiohttp application that has not started."""
    app[SERVICE] = service
    app.middlewares.append(errors)
    app.add_routes(routes)


def build_app(service: Service) -> web.Application:
    """An application of these routes alone."""
    app = web.Application(client_max_size=MAX_BODY)
    attach(app, service)
    return app
