"""Admission of HTTP requests: each route has one scope, and a token must have it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler

from agents.metrics import Metrics
from agents.web.tokens import Grant, Scope, find, read_grants
from schemas.errors import BadRequest, ConfigError, RateLimited, RiffleError
from schemas.http_settings import HttpSettings
from schemas.watched import Watched

__all__ = ["DETAILED", "Gate", "scope_of", "scoped"]

log = logging.getLogger(__name__)

V = TypeVar("V", bound=Callable[..., Awaitable[web.StreamResponse]])
SCOPE = "scope"
DETAILED = "detailed"
"Key of a request: whether an open route may show what is meant for operators."
MOST_TOKEN_CHARACTERS = 512


def scoped(scope: Scope) -> Callable[[V], V]:
    """Give a view its scope."""

    def give(view: V) -> V:
        setattr(view, SCOPE, scope)
        return view

    return give


def scope_of(view: object) -> Scope | None:
    """Return the scope of a view; None for one that has none, which a gate refuses."""
    found: Scope | None = getattr(view, SCOPE, None)
    return found


@dataclass(slots=True)
class _Bucket:
    """A token bucket: `burst` requests at once, refilled with `per_s` a second."""

    per_s: float
    burst: float
    left: float
    at: float

    def take(self, now: float) -> float:
        """Take one request; returns 0, or the seconds until there is one."""
        self.left = min(self.burst, self.left + (now - self.at) * self.per_s)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.per_s


class Gate:
    """Admits requests by their bearer tokens, if `RIFFLE_HTTP_TOKENS_FILE` names some; else admits all.

    The file is read again when it changes. A rate holds for each process. `clock`: monotonic, in seconds.
    """

    def __init__(self, http: HttpSettings, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the tokens.

        Raises:
            ConfigError: as `read_grants`.
        """
        self._metrics, self._clock = metrics, clock
        self._grants: Watched[tuple[Grant, ...]] | None = None
        self._buckets: dict[str, tuple[Grant, _Bucket]] = {}
        if http.tokens_file:
            self._grants = Watched((http.tokens_file,), lambda: read_grants(http.tokens_file), self._failed)

    def _failed(self, error: ConfigError) -> None:
        self._metrics.http_reloads_failed.add(what="tokens")
        log.warning("%s; the tokens that were read before stay valid", error.message)

    def admit(self, authorization: Sequence[str], scope: Scope) -> None:
        """Admit a request with these `Authorization` headers to a route of this scope, or raise.

        Raises:
            BadRequest: code `unauthorized`, there is no valid token; `forbidden`, it has another scope.
            RateLimited: too many requests came with this token.
        """
        if self._grants is None or scope is Scope.OPEN:
            return
        grant = self._grant(authorization)
        if grant is None:
            what = "no token came" if not authorization else "it is not valid"
            self._metrics.http_refused.add(reason="unauthorized", token="")
            raise BadRequest("unauthorized", f"a token is needed, as `Authorization: Bearer TOKEN`: {what}", "Authorization")
        wait_s = self._bucket(grant).take(self._clock()) if grant.per_s else 0.0
        if wait_s:
            self._metrics.http_refused.add(reason="rate_limited", token=grant.name)
            message = f"more than {grant.per_s:g} requests a second come with the token {grant.name}"
            raise RateLimited("rate_limited", message, math.ceil(wait_s))
        if scope not in grant.scopes:
            self._metrics.http_refused.add(reason="forbidden", token=grant.name)
            raise BadRequest("forbidden", f"the token {grant.name} lacks the scope {scope}", "Authorization")

    def shows_details(self, authorization: Sequence[str]) -> bool:
        """Whether a request may see on open routes what is meant for operators."""
        if self._grants is None:
            return True
        grant = self._grant(authorization)
        return grant is not None and Scope.OPERATE in grant.scopes

    def _grant(self, authorization: Sequence[str]) -> Grant | None:
        if self._grants is None or len(authorization) != 1:
            return None
        kind, _, token = authorization[0].partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token.isascii() or not 0 < len(token) <= MOST_TOKEN_CHARACTERS:
            return None
        return find(self._grants.value(), token)

    def _bucket(self, grant: Grant) -> _Bucket:
        known = self._buckets.get(grant.name)
        if known is None or known[0] != grant:  # the file changed the grant
            known = self._buckets[grant.name] = grant, _Bucket(grant.per_s, grant.burst, grant.burst, self._clock())
        return known[1]

    def mount(self, app: web.Application) -> None:
        """Check the requests of an application that has not started yet."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            route = request.match_info
            if route.http_exception is None:  # else there is no such route
                scope = scope_of(route.handler)
                if scope is None:
                    raise RiffleError("internal", "this route has no scope")
                authorization = request.headers.getall("Authorization", ())
                self.admit(authorization, scope)
                request[DETAILED] = self.shows_details(authorization)
            return await handler(request)

        app.middlewares.append(check)
