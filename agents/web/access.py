"""Admission of HTTP requests: by bearer tokens with scopes or, without these, by where a request comes from."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from agents.metrics import Metrics
from agents.web.tokens import Grant, Scope, find, read_grants
from schemas.errors import BadRequest, ConfigError, RateLimited, RiffleError
from schemas.http_settings import HttpSettings, is_loopback
from schemas.settings import Settings
from schemas.watched import Watched

__all__ = ["CONSOLE", "DETAILED", "KIND", "OPERATOR", "ORDINARY", "WRITE", "Gate", "Page", "Sender", "scope_of", "scoped"]

log = logging.getLogger(__name__)

BROWSER = ("Origin", "Referer", "Accept-Language", "Sec-Fetch-Site", "Sec-Fetch-Mode")
"""Headers by which a browser is recognised. A page can leave out neither `Accept-Language` nor `Origin`; the others are not
sent with every request. Clients of programs send none of them unless they are told to."""
V = TypeVar("V", bound=Callable[..., Awaitable[web.StreamResponse]])
SCOPE, KIND = "scope", "kind"
"Attributes of a view."
DETAILED: web.RequestKey[bool] = web.RequestKey("detailed", bool)
"Key of a request: whether an open route may show what is meant for operators."
MOST_TOKEN_CHARACTERS = 512
ORDINARY, WRITE, CONSOLE, OPERATOR = "ordinary", "write", "console", "operator"
"""Kinds of views: a WRITE changes events, users or items; a CONSOLE view shows the worker to a person; an OPERATOR view acts
for an operator, with a token in any case."""


def scoped(scope: Scope, kind: str = ORDINARY) -> Callable[[V], V]:
    """Give a view its scope and its kind."""

    def give(view: V) -> V:
        setattr(view, SCOPE, scope)
        setattr(view, KIND, kind)
        return view

    return give


def scope_of(view: object) -> Scope | None:
    """Return the scope of a view; None for one that has none, which a gate refuses."""
    found: Scope | None = getattr(view, SCOPE, None)
    return found


@dataclass(frozen=True, slots=True)
class Sender:
    """What a request shows about who sent it."""

    authorization: Sequence[str] = ()
    "Values of the header `Authorization`."
    origins: Sequence[str] = ()
    "Values of the header `Origin`, which a browser always sends with a write."
    remote: str = ""
    "Address of the client."
    host: str = ""
    "Name and port under which the client asks for the worker."
    browser: bool = False
    "Whether the request has a header of `BROWSER`."

    @classmethod
    def of(cls, request: web.BaseRequest) -> Sender:
        """Return the sender of a request."""
        headers = request.headers
        browser = any(name in headers for name in BROWSER)
        return cls(
            headers.getall("Authorization", ()), headers.getall("Origin", ()), request.remote or "", request.host, browser
        )

    @property
    def is_here(self) -> bool:
        """Whether the client is on this machine and asks for it by its own name.

        The name matters because a page elsewhere can make its own name resolve to this machine (DNS rebinding).
        """
        return is_loopback(self.remote) and is_loopback(_host(self.host))

    @property
    def token(self) -> str | None:
        """The bearer token (RFC 6750); None without one, or with a header that cannot be read."""
        if len(self.authorization) != 1:
            return None
        kind, _, token = self.authorization[0].partition(" ")
        token = token.strip()
        if kind.lower() != "bearer" or not token.isascii() or not 0 < len(token) <= MOST_TOKEN_CHARACTERS:
            return None
        return token


@dataclass(frozen=True, slots=True)
class Page:
    """What a worker's web page may do."""

    token: str
    "The token of the home (`agents.web.page_token`)."
    origins: frozenset[str] = frozenset()
    "Origins whose pages may write without the token, because a proxy in front asks for a login."
    hosts: frozenset[str] = frozenset()
    "Names of the worker other than loopback's and those of `origins`."

    @classmethod
    def of(cls, settings: Settings, token: str) -> Page:
        """Return the page of a worker with these settings."""
        hosts = {settings.web_host, _host(settings.web_advertised), settings.http_server_name}
        return cls(token, frozenset(settings.page_origins), frozenset(host.lower() for host in hosts if host))

    def is_rebound(self, sender: Sender) -> bool:
        """Whether a browser on this machine asks under a name that is not the worker's (DNS rebinding).

        A page elsewhere that made its own name resolve to this machine can read the answer.
        """
        if not (sender.browser or sender.origins) or not is_loopback(sender.remote):
            return False
        host = _host(sender.host)
        own = host in self.hosts or host in {_host(origin.partition("://")[2]) for origin in self.origins}
        return not own and not is_loopback(host)

    def needs_token(self, sender: Sender, kind: str) -> bool:
        """Whether a request needs the token where programs need none."""
        if self.is_rebound(sender):
            return True
        if kind is WRITE:
            return bool(sender.origins) and not all(origin in self.origins for origin in sender.origins)
        return kind is OPERATOR or (kind is CONSOLE and not sender.is_here)

    def is_token_of(self, sender: Sender) -> bool:
        """Whether the sender has the token, compared in constant time."""
        return sender.token is not None and hmac.compare_digest(sender.token, self.token)


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
    """Admits requests. Without `RIFFLE_HTTP_TOKENS_FILE` only pages may need a token, that of the home.

    With the file, every request needs one of its tokens, with the scope of the route. The home's token then has all scopes for
    clients on this machine: whoever can read it can read all that the worker has there. Elsewhere it is worth nothing, so that
    the file alone decides, with its rates, and removing a line withdraws a token.

    The file is read again when it changes. A rate holds for each process. `clock`: monotonic, in seconds.
    """

    def __init__(
        self, http: HttpSettings, metrics: Metrics, page: Page | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the tokens. Without `page` there is none.

        Raises:
            ConfigError: as `read_grants`.
        """
        self._metrics, self._page, self._clock = metrics, page, clock
        self._grants: Watched[tuple[Grant, ...]] | None = None
        self._buckets: dict[str, tuple[Grant, _Bucket]] = {}
        if http.tokens_file:
            self._grants = Watched((http.tokens_file,), lambda: read_grants(http.tokens_file), self._failed)

    def _failed(self, error: ConfigError) -> None:
        self._metrics.http_reloads_failed.add(what="tokens")
        log.warning("%s; the tokens that were read before stay valid", error.message)

    def admit(self, sender: Sender, scope: Scope, kind: str = ORDINARY) -> None:
        """Admit a request to a route of this scope and kind, or raise.

        Raises:
            BadRequest: code `token_required` or `wrong_token`; `forbidden`, the token has other scopes.
            RateLimited: too many requests came with this token.
        """
        if scope is Scope.OPEN:
            return
        if self._grants is None:
            if self._page is not None and self._page.needs_token(sender, kind) and not self._page.is_token_of(sender):
                raise self._refused(sender, "this needs the token that `riffle up` prints")
        elif not self._is_here_with_the_homes_token(sender):
            self._check(sender, self._grants.value(), scope)

    def _check(self, sender: Sender, grants: Sequence[Grant], scope: Scope) -> None:
        grant = None if sender.token is None else find(grants, sender.token)
        if grant is None:
            raise self._refused(sender, "a token is needed")
        wait_s = self._bucket(grant).take(self._clock()) if grant.per_s else 0.0
        if wait_s:
            self._metrics.http_refused.add(reason="rate_limited", token=grant.name)
            message = f"more than {grant.per_s:g} requests a second come with the token {grant.name}"
            raise RateLimited("rate_limited", message, math.ceil(wait_s))
        if not grant.admits(scope):
            self._metrics.http_refused.add(reason="forbidden", token=grant.name)
            raise BadRequest("forbidden", f"the token {grant.name} lacks the scope {scope}", "Authorization")

    def _refused(self, sender: Sender, message: str) -> BadRequest:
        code = "wrong_token" if sender.authorization else "token_required"
        self._metrics.http_refused.add(reason=code, token="")
        found = "the one that came is not valid" if sender.authorization else "none came"
        return BadRequest(code, f"{message}, as `Authorization: Bearer TOKEN`: {found}", "Authorization")

    def shows_details(self, sender: Sender) -> bool:
        """Whether a request may see on open routes what is meant for operators."""
        if self._grants is None:
            return self._page is None or not self._page.is_rebound(sender) or self._page.is_token_of(sender)
        if self._is_here_with_the_homes_token(sender):
            return True
        grant = None if sender.token is None else find(self._grants.value(), sender.token)
        return grant is not None and Scope.OPERATE in grant.scopes

    def _is_here_with_the_homes_token(self, sender: Sender) -> bool:
        return self._page is not None and sender.is_here and self._page.is_token_of(sender)

    def _bucket(self, grant: Grant) -> _Bucket:
        known = self._buckets.get(grant.name)
        if known is None or known[0] != grant:  # the file changed the grant
            known = self._buckets[grant.name] = grant, _Bucket(grant.per_s, grant.burst, grant.burst, self._clock())
        return known[1]

    def mount(self, app: web.Application) -> None:
        """Check the requests of an application that has not started yet. A view without a scope is refused."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            route = request.match_info
            if route.http_exception is None:  # else there is no such route
                scope = scope_of(route.handler)
                if scope is None:
                    raise RiffleError("internal", "this route has no scope")
                sender = Sender.of(request)
                self.admit(sender, scope, getattr(route.handler, KIND))
                request[DETAILED] = self.shows_details(sender)
            return await handler(request)

        app.middlewares.append(check)


def _host(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
