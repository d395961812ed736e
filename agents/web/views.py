"""Registration of views, with the checks of what a request holds that precede every view."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from agents.web.access import ORDINARY, scoped
from agents.web.body import check_length
from agents.web.error_replies import check_origin
from agents.web.query import check_parameters
from agents.web.tokens import Scope
from streams.logs import NO_REQUEST, request_facts
from streams.tracing import MAX_PARENT_BYTES, TRACEPARENT, incoming

__all__ = ["View", "route", "takes_of"]

View = Callable[[web.Request], Awaitable[web.Response]]
NOTHING: frozenset[str] = frozenset()
TAKES = "takes"


def route(
    table: web.RouteTableDef, scope: Scope, method: str, path: str, takes: frozenset[str] = NOTHING, *, kind: str = ORDINARY
) -> Callable[[View], View]:
    """Register a view of this scope and kind (`agents.web.access`) that accepts only these query parameters.

    A `{placeholder}` matches any characters but a slash, which an id holds as `%2F`.
    """

    def register(view: View) -> View:
        @functools.wraps(view)
        async def checked(request: web.Request) -> web.Response:
            check_length(request)
            check_origin(request)
            check_parameters(request.query, takes)
            # requests of one connection share a task, and with it these
            incoming.set(request.headers.get(TRACEPARENT, "")[:MAX_PARENT_BYTES])
            request_facts.set(NO_REQUEST)
            return await view(request)

        setattr(checked, TAKES, takes)
        scoped(scope, kind)(checked)
        getattr(table, method)(re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", path))(checked)
        return checked

    return register


def takes_of(route: web.AbstractRouteDef) -> frozenset[str]:
    """Return the query parameters that a route of `routes` accepts."""
    found: frozenset[str] = getattr(route.handler, TAKES)  # type: ignore[attr-defined]
    return found
