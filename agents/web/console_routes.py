"""The routes of the web page: its files, and what it shows of a worker."""

from __future__ import annotations

from aiohttp import web

from agents.web.access import CONSOLE
from agents.web.body import read_json
from agents.web.error_replies import json_response
from agents.web.page_files import INDEX, file_response
from agents.web.peers import EXPLAIN_PATH
from agents.web.protocol import Service
from agents.web.query import CONTEXT, identifier, integer, request_from_query, request_of
from agents.web.tokens import Scope
from agents.web.views import route
from models.items.history import SLOTS
from schemas.errors import BadRequest

__all__ = ["MAX_CARDS", "MAX_FOUND", "MAX_RECENT", "console_routes"]

MAX_CARDS, MAX_FOUND, MAX_RECENT = 100, 100, 200
"Maximum number of items by id, of items found by words, and of recent requests in one answer."
EXPLAIN = frozenset({"k", "repeats", "exclude", "category", "after", "release", CONTEXT})
"Parameters of `GET /v1/explain/{user_id}`."


def console_routes(table: web.RouteTableDef, service: Service) -> None:
    """Add the routes to the table."""
    _page(table)
    _worker(table, service)
    _catalogue(table, service)


def _page(table: web.RouteTableDef) -> None:
    @route(table, Scope.OPEN, "get", "/")
    async def index(request: web.Request) -> web.Response:
        """Return the page."""
        return file_response(request, INDEX)

    @route(table, Scope.OPEN, "get", "/page/{name}")
    async def file(request: web.Request) -> web.Response:
        """Return a file of the page; 404 for an unknown name."""
        return file_response(request, request.match_info["name"])


def _worker(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.OPERATE, "get", "/v1/live", frozenset({"since"}), kind=CONSOLE)
    async def live(request: web.Request) -> web.Response:
        """Return the worker's state, and its samples of the last minutes after the first `since` ones."""
        since = integer(request.query, "since", 0) if "since" in request.query else 0
        return json_response(dict(service.console.live(since)))

    @route(table, Scope.OPERATE, "get", "/v1/pipeline", kind=CONSOLE)
    async def pipeline(request: web.Request) -> web.Response:  # noqa: ARG001
        """Return what flowed through each stage since the start."""
        return json_response(dict(service.console.pipeline()))

    @route(table, Scope.OPERATE, "get", "/v1/recent", frozenset({"limit"}), kind=CONSOLE)
    async def recent(request: web.Request) -> web.Response:
        """Return the newest requests that this worker answered."""
        return json_response({"requests": list(service.console.recent(_limit(request, MAX_RECENT)))})

    @route(table, Scope.OPERATE, "get", "/v1/explain/{user_id}", EXPLAIN, kind=CONSOLE)
    async def explain(request: web.Request) -> web.Response:
        """Return a slate with its trace. Nothing is logged as shown. `release` answers instead of the serving one."""
        wanted = request_from_query(identifier(request.match_info["user_id"], "user_id"), request.query)
        release = identifier(request.query["release"], "release") if "release" in request.query else None
        return json_response(dict(await service.console.explain(wanted, release)))

    @route(table, Scope.OPERATE, "post", EXPLAIN_PATH)
    async def explain_here(request: web.Request) -> web.Response:
        """Return a trace to another worker, only for users of a partition that is owned here; 503 `not_ready` for others."""
        body = await read_json(request)
        if not isinstance(body, dict):
            raise BadRequest("invalid_body", "the body must be a JSON object")
        release = body.pop("release", None)
        if release is not None and not isinstance(release, str):
            raise BadRequest("invalid_field", "release must be the name of a release, or none", "release")
        return json_response(dict(await service.console.explain(request_of(body), release, here=True)))

    @route(table, Scope.OPERATE, "get", "/v1/releases", kind=CONSOLE)
    async def releases(request: web.Request) -> web.Response:  # noqa: ARG001
        """Return the releases in this worker's folder, with their metrics and the gate's verdicts."""
        found = list(await service.console.releases())
        return json_response({"serving": service.release, "champion": service.console.champion(), "releases": found})

    @route(table, Scope.OPERATE, "get", "/v1/trainings", kind=CONSOLE)
    async def trainings(request: web.Request) -> web.Response:  # noqa: ARG001
        """Return the running and the last trainings, as they reported themselves."""
        return json_response({"trainings": list(service.console.trainings())})


def _catalogue(table: web.RouteTableDef, service: Service) -> None:
    @route(table, Scope.ITEMS, "get", "/v1/items", frozenset({"q", "id", "limit"}), kind=CONSOLE)
    async def items(request: web.Request) -> web.Response:
        """Search items by `q`, or return those of the given ids, with their statistics."""
        ids = request.query.getall("id", [])
        if ids and len(request.query) > len(ids):
            raise BadRequest("invalid_field", "id cannot be combined with q or limit", "id")
        if len(ids) > MAX_CARDS:
            raise BadRequest("invalid_field", f"{len(ids)} ids are given, at most {MAX_CARDS} are taken", "id")
        if ids:
            return json_response({"items": list(service.console.cards([identifier(text, "id") for text in ids]))})
        text = request.query.get("q", "")[:1_000]
        return json_response({"items": list(service.console.search(text, _limit(request, MAX_FOUND, 50)))})

    @route(table, Scope.ITEMS, "get", "/v1/items/{item_id}/history", frozenset({"per"}), kind=CONSOLE)
    async def history(request: web.Request) -> web.Response:
        """Return how often an item was shown, and its events by action, over the last hour or the last two days."""
        per = request.query.get("per", "hour")
        if per not in SLOTS:
            raise BadRequest("invalid_field", f"per is one of: {', '.join(SLOTS)}", "per")
        return json_response(dict(service.console.history(identifier(request.match_info["item_id"], "item_id"), per)))


def _limit(request: web.Request, most: int, usual: int | None = None) -> int:
    return integer(request.query, "limit", 1, most) if "limit" in request.query else usual or most
