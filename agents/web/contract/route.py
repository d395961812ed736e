"""The route that serves the OpenAPI document."""

from __future__ import annotations

import functools

from aiohttp import web

from agents.web.contract.document import document
from agents.web.contract.operations import JSON
from agents.web.error_replies import encoded
from agents.web.page_files import PageFile, versioned
from agents.web.tokens import Scope
from agents.web.views import route

__all__ = ["contract_route"]


def contract_route(table: web.RouteTableDef) -> None:
    """Add the route to the table, which it describes as it is when the document is first asked for."""

    @functools.cache
    def described() -> PageFile:
        return PageFile.of(encoded(document(table, "/")), JSON)

    @route(table, Scope.OPEN, "get", "/openapi.json")
    async def contract(request: web.Request) -> web.Response:
        """Return this document, which holds no data: the HTTP interface in OpenAPI 3.1."""
        return versioned(request, described())
