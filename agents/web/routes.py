"""The HTTP interface: thin views of a `Service`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from aiohttp import web

from agents.web.access import DETAILED, WRITE, Gate
from agents.web.body import MAX_BODY_BYTES, MAX_EVENTS, read_json
from agents.web.console_routes import console_routes
from agents.web.contract.route import contract_route
from agents.web.error_replies import json_response
from agents.web.operator_routes import operator_routes
from agents.web.peers import PATH, PREVIEW_PATH
from agents.web.protocol import Service, Token, Wanted
from agents.web.query import (
    RECOMMEND,
    deadline_ms,
    flag_of,
    identifier,
    integer,
    request_from_query,
    request_of,
    user_query_of,
)
from agents.web.request_lists import answer_list
from agents.web.tokens import Scope
from agents.web.views import route, takes_of
from schemas.errors import BadEvent, BadInput, BadItem, BadRequest
from schemas.parsing import shown
from schemas.records import Interaction, Item, SlateItem
from schemas.rules import rules_from
from schemas.validation import check_time, interaction_from, item_from

__all__ = ["MAX_EVENTS", "attach", "build_app", "described_routes", "routes", "takes_of"]

MAX_IMAGE_BYTES = 32 << 20
"Maximum size in bytes of an image file that is sent."
IMAGE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


def wall_clock_ms() -> int:
    """Return the current time in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def build_app(service: Service, *, now_ms: Callable[[], int] = wall_clock_ms, gate: Gate | None = None) -> web.Application:
    """Build an aiohttp application with the whole interface, to be served by `agents.web.server.Runner`."""
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    attach(app, service, now_ms=now_ms, gate=gate)
    return app


def attach(
    app: web.Application, service: Service, *, now_ms: Callable[[], int] = wall_clock_ms, gate: Gate | None = None
) -> None:
    """Mount the interface on an application that has not started yet. Without `gate` no token is needed.

    `agents.web.server.Runner` must serve it, because it answers errors as JSON, also for unknown paths.
    """
    if gate is not None:
        gate.mount(app)
    app.add_routes(routes(service, now_ms=now_ms))


def routes(service: Service, *, now_ms: Callable[[], int] = wall_clock_ms) -> web.RouteTableDef:
    """Build the views. `now_ms`: returns the time, in epoch ms, for events without one."""
    table = web.RouteTableDef()
    _events(table, service, now_ms)
    _recommendations(table, service)
    _users(table, service)
    _items(table, service)
    _rules(table, service)
    _operations(table, service)
    console_routes(table, service)
    operator_routes(table, service)
    contract_route(table)
    return table


def described_routes() -> web.RouteTableDef:
    """Return the table of routes for a look at it. Its views have no worker behind them, so that none can be called."""
    return routes(cast("Service", None))


def _events(table: web.RouteTableDef, service: Service, now_ms: Callable[[], int]) -> None:
    @route(table, Scope.EVENTS, "post", "/v1/events", kind=WRITE)
    async def events(request: web.Request) -> web.Response:
        """Store one event or a list of up to 1,000.

        A list is answered 202 with `{"accepted", "rejected": [{"index", "error"}], "tokens"}`, even if all events are rejected,
        because each valid event is stored independently of the others. A rejected single event is answered 400 with the same
        body and an `error`. A body that is not JSON, is neither an object nor a list, or is too long a list is answered 400
        with `error` only. `tokens` are in the order of the accepted events.
        """
        body = await read_json(request)
        if not isinstance(body, dict | list):
            raise BadRequest("invalid_body", "the body must be an event or a list of events")
        batch = body if isinstance(body, list) else [body]
        if len(batch) > MAX_EVENTS:
            raise BadRequest("too_many_events", f"the list holds {len(batch)} events, at most {MAX_EVENTS} are taken at once")
        accepted, rejected = _parse_events(batch, now_ms())
        tokens: Sequence[Token] = await service.send_events(accepted) if accepted else ()
        service.metrics.http_events.add(len(accepted), outcome="accepted")
        service.metrics.http_events.add(len(rejected), outcome="rejected")
        answer: dict[str, object] = {
            "accepted": len(accepted),
            "rejected": rejected,
            "tokens": [dict(token) for token in tokens],
        }
        if isinstance(body, dict) and rejected:
            return json_response({"error": rejected[0]["error"], **answer}, 400)
        return json_response(answer, 202)


def _parse_events(batch: list[object], now_ms: int) -> tuple[list[Interaction], list[dict[str, object]]]:
    accepted: list[Interaction] = []
    rejected: list[dict[str, object]] = []
    for index, entry in enumerate(batch):
        try:
            if not isinstance(entry, dict):
                raise BadEvent("invalid_event", "an event must be a JSON object")
            event = interaction_from(entry, now_ms=now_ms)
            check_time(event.event_time, now_ms)
            accepted.append(event)
        except BadInput as error:
            rejected.append({"index": index, "error": error.to_json()})
    return accepted, rejected


def _recommendations(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.RECOMMEND, "get", "/v1/recommend/{user_id}", RECOMMEND)
    async def recommend(request: web.Request) -> web.Response:
        """Return a slate for a user. What is not given as a parameter, such as `candidates`, needs a body."""
        wanted = request_from_query(identifier(request.match_info["user_id"], "user_id"), request.query)
        slate = await service.recommend(wanted, deadline_ms(request.query, request.headers), _wanted(request))
        return json_response(slate.to_json())

    @route(table, Scope.RECOMMEND, "post", "/v1/recommend", frozenset({"deadline_ms"}))
    async def recommend_body(request: web.Request) -> web.Response:
        """Return the slate for a request, or `{"answers"}` for a list of requests.

        Requests may have `candidates`. A list is answered 200 even if all of its requests fail, because each is independent of
        the others; only a list that is empty or too long is refused.
        """
        body = await read_json(request)
        if isinstance(body, list):
            limit_ms = deadline_ms(request.query, request.headers)
            return json_response({"answers": await answer_list(service, body, limit_ms, _wanted(request))})
        if not isinstance(body, dict):
            raise BadRequest("invalid_body", "the body must be a request or a list of requests")
        slate = await service.recommend(request_of(body), deadline_ms(request.query, request.headers), _wanted(request))
        return json_response(slate.to_json())

    @route(table, Scope.RECOMMEND, "post", PATH, frozenset({"deadline_ms"}))
    async def recommend_here(request: web.Request) -> web.Response:
        """Return a slate to another worker, only from rows that are held here; 503 `not_held` without such rows."""
        wanted = request_of(_object(await read_json(request)))
        slate = await service.recommend_here(wanted, deadline_ms(request.query, request.headers), _wanted(request))
        return json_response(slate.to_json())

    @route(table, Scope.RECOMMEND, "get", "/v1/similar/{item_id}", frozenset({"k"}))
    async def similar(request: web.Request) -> web.Response:
        """Return items similar to an item; 404 if the item is unknown."""
        item_id = identifier(request.match_info["item_id"], "item_id")
        k = integer(request.query, "k", 1, 500) if "k" in request.query else 10
        found = service.similar(item_id, k)
        return json_response({"item_id": item_id, "items": [_slate_item(item) for item in found]})


def _wanted(request: web.Request) -> Wanted:
    """Return a function that tells whether the connection of a request is still open."""

    def is_open() -> bool:
        return request.transport is not None and not request.transport.is_closing()

    return is_open


def _users(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.USERS, "get", "/v1/users", frozenset({"partition", "after", "limit"}))
    async def users(request: web.Request) -> web.Response:
        """Return ids of users of a partition, in the order of their bytes; `after` is the last id of the page before."""
        if "partition" not in request.query:
            raise BadRequest("missing_field", "partition is missing: a number from 0 on", "partition")
        page = await service.users(integer(request.query, "partition"), user_query_of(request.query))
        return json_response(page.to_json())

    @route(table, Scope.USERS, "get", "/v1/users/{user_id}")
    async def user(request: web.Request) -> web.Response:
        """Return a user's summary; 404 for an unknown user."""
        user_id = identifier(request.match_info["user_id"], "user_id")
        return json_response({"user_id": user_id, **await service.user(user_id)})

    @route(table, Scope.USERS, "delete", "/v1/users/{user_id}", kind=WRITE)
    async def erase(request: web.Request) -> web.Response:
        """Erase a user, known or not. Requests with the token as `after` no longer use the user's events."""
        user_id = identifier(request.match_info["user_id"], "user_id")
        token = await service.erase(user_id)
        return json_response({"user_id": user_id, "token": dict(token)}, 202)


def _items(table: web.RouteTableDef, service: Service) -> None:
    def _stored_image(item_id: str) -> str | None:
        try:
            return service.item(item_id).image
        except BadItem:
            return None

    @route(table, Scope.ITEMS, "get", "/v1/items/{item_id}")
    async def item(request: web.Request) -> web.Response:
        """Return a catalogue entry; 404 if the item is unknown."""
        return json_response(_item(service.item(identifier(request.match_info["item_id"], "item_id"))))

    @route(table, Scope.ITEMS, "put", "/v1/items/{item_id}", kind=WRITE)
    async def put(request: web.Request) -> web.Response:
        """Store a catalogue entry, such as one that `GET` returned. An id in the body must equal the one in the path."""
        item_id = identifier(request.match_info["item_id"], "item_id")
        body = _object(await read_json(request))
        item = item_from({**body, "item_id": item_id if body.get("item_id") is None else body["item_id"]})
        if item.item_id != item_id:
            raise BadItem("invalid_field", "item_id in the body is not the one in the path", "item_id")
        is_path = item.image is not None and not item.image.startswith(("https://", "http://"))
        if is_path and item.image != _stored_image(item_id):
            # a path would let any writer of the catalogue read files from this machine's disk over the network
            raise BadItem(
                "invalid_field", "image must be an http(s) URL, or as it was; files come with a dataset folder", "image"
            )
        await service.put_item(item)
        return json_response({"item_id": item_id, "accepted": 1}, 202)

    @route(table, Scope.ITEMS, "delete", "/v1/items/{item_id}", kind=WRITE)
    async def delete(request: web.Request) -> web.Response:
        """Remove a catalogue entry; the answer is the same whether or not it existed."""
        item_id = identifier(request.match_info["item_id"], "item_id")
        await service.delete_item(item_id)
        return json_response({"item_id": item_id, "accepted": 1}, 202)

    @route(table, Scope.ITEMS, "get", "/v1/items/{item_id}/image")
    async def image(request: web.Request) -> web.Response:
        """Return the item's image, only from the local file (an absolute path) in its catalogue entry."""
        path = _image_of(service.item(identifier(request.match_info["item_id"], "item_id")))
        content = await asyncio.to_thread(_image_bytes, path)
        headers = {
            "Content-Type": IMAGE_TYPES[path.suffix.lower()],
            "Cache-Control": "max-age=3600",
            "X-Content-Type-Options": "nosniff",
        }
        return web.Response(body=content, headers=headers)


def _rules(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.OPERATE, "get", "/v1/rules")
    async def rules(request: web.Request) -> web.Response:  # noqa: ARG001
        """Return the serving rules, with the number of items that each matches."""
        return json_response(dict(service.rules()))

    @route(table, Scope.OPERATE, "post", "/v1/rules/preview")
    async def preview(request: web.Request) -> web.Response:
        """Check `rules`, count what each matches and, given a `request`, answer it with the serving and with these rules."""
        return await _preview(request, here=False)

    @route(table, Scope.OPERATE, "post", PREVIEW_PATH)
    async def preview_here(request: web.Request) -> web.Response:
        """Return a preview to another worker, only for users of a partition that is owned here; 503 `not_ready` for others."""
        return await _preview(request, here=True)

    async def _preview(request: web.Request, *, here: bool) -> web.Response:
        body = _object(await read_json(request))
        if unknown := [name for name in body if name not in {"rules", "request"}]:
            raise BadRequest("invalid_field", f"unknown field {shown(unknown[0])}; known: request, rules", unknown[0][:100])
        asked, found = body.get("request"), rules_from(body.get("rules"))
        wanted = None if asked is None else request_of(_object(asked))
        return json_response(dict(await service.preview_rules(found, wanted, here=here)))


def _operations(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.OPEN, "get", "/healthz")
    async def healthz(request: web.Request) -> web.Response:
        """Return 200 while the worker makes progress; 503 if partitions with waiting work are stuck: restart it then."""
        stuck = service.stuck()
        if stuck and not request.get(DETAILED, True):
            return json_response({"status": "stuck"}, 503)
        return json_response({"status": "stuck", "stuck": dict(stuck)} if stuck else {"status": "ok"}, 503 if stuck else 200)

    @route(table, Scope.OPEN, "get", "/readyz")
    async def readyz(request: web.Request) -> web.Response:
        """Return 200 if requests are answered, else 503 with the reasons, which are for operators."""
        ready, reasons = service.ready()
        if not request.get(DETAILED, True):
            return json_response({"ready": ready}, 200 if ready else 503)
        body = {
            "ready": ready,
            "reasons": dict(reasons),
            "warnings": dict(service.warnings),
            "release": service.release,
            "refused": dict(service.refused),
        }
        return json_response(body, 200 if ready else 503)

    @route(table, Scope.OPERATE, "get", "/v1/tables", frozenset({"digests"}))
    async def tables(request: web.Request) -> web.Response:
        """List the owned and standby table partitions; `digests=1` adds a hash over each, for which it is read in full."""
        found = await service.tables(digests="digests" in request.query and flag_of(request.query, "digests"))
        return json_response({"tables": [dict(facts) for facts in found]})

    @route(table, Scope.METRICS, "get", "/metrics")
    async def metrics_text(request: web.Request) -> web.Response:  # noqa: ARG001
        """Return the metrics in Prometheus' text format."""
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=service.render_metrics().encode(), headers=headers)


def _image_of(item: Item) -> Path:
    path = Path(item.image or "")
    try:
        found = path.suffix.lower() in IMAGE_TYPES and path.is_absolute() and path.is_file()
    except OSError:
        found = False  # the name is too long for the file system
    if not found:
        raise BadItem("not_found", "there is no local image of this item", "item_id")
    return path


def _image_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as exc:
        raise BadItem("not_found", "the local image of this item cannot be read", "item_id") from exc
    if len(content) > MAX_IMAGE_BYTES:
        raise BadItem("not_found", f"the local image of this item is larger than {MAX_IMAGE_BYTES} bytes", "item_id")
    return content


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadRequest("invalid_body", "the body must be a JSON object")
    return value


def _slate_item(item: SlateItem) -> dict[str, object]:
    return {"item_id": item.item_id, "score": item.score, "sources": list(item.sources)}


def _item(item: Item) -> dict[str, object]:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "text": item.text,
        "categories": list(item.categories),
        "image": item.image,
        "price": item.price,
        "available": item.available,
        "published_at": item.published_at,
        "attributes": dict(item.attributes),
    }
