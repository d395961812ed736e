"""Who may change something from a web page, and who may look at a worker: the token of a home."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from schemas.errors import BadRequest
from schemas.settings import Settings

__all__ = ["ACCESS", "Access", "page_token", "page_url"]

TOKEN_BYTES = 24
SCHEME = "Bearer "


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of a worker. Programs on this machine, which send no `Origin`, need no token."""

    token: str
    origins: frozenset[str] = frozenset()
    "Origins whose pages may write without the token, because a proxy in front asks for a login."

    def check_write(self, request: web.Request) -> None:
        """Refuse a write that a browser sends without the token.

        A browser always names the origin of the page. That it equals `Host` proves nothing, because a page elsewhere can make
        its own name resolve to this machine (DNS rebinding).

        Raises:
            BadRequest: code `token_required` or `wrong_token`.
        """
        origins = request.headers.getall("Origin", ())
        if origins and not all(origin in self.origins for origin in origins):
            self._check_token(request)

    def check_reading(self, request: web.Request) -> None:
        """Refuse to show the worker without the token, unless the client is on this machine and asks for it by its own name.

        Raises:
            BadRequest: code `token_required` or `wrong_token`.
        """
        if not (_is_loopback(request.remote or "") and _is_loopback(_host(request.host))):
            self._check_token(request)

    def check_operating(self, request: web.Request) -> None:
        """Refuse an operator's action without the token, from programs, too.

        Raises:
            BadRequest: code `token_required` or `wrong_token`.
        """
        self._check_token(request)

    def _check_token(self, request: web.Request) -> None:
        given = request.headers.getall("Authorization", ())
        if not given:
            message = "this needs the token that `riffle up` prints, as `Authorization: Bearer TOKEN`"
            raise BadRequest("token_required", message, "Authorization")
        if len(given) > 1 or not hmac.compare_digest(_bytes(given[0]), _bytes(SCHEME + self.token)):
            raise BadRequest("wrong_token", "this is not the token of this home: `riffle up` prints it", "Authorization")


ACCESS: web.AppKey[Access] = web.AppKey("access", Access)
"Key of an application's `Access`; without one nothing needs a token."


def page_token(settings: Settings) -> str:
    """Return the token of a home, which is created at the first call, readable by its owner only."""
    path = _path(settings)
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        pass
    settings.make_home()
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.touch(mode=0o600)
    try:
        new.write_text(secrets.token_urlsafe(TOKEN_BYTES) + "\n", encoding="ascii")
        with contextlib.suppress(FileExistsError):  # another process was faster, and its token counts
            os.link(new, path)
    finally:
        new.unlink()
    return path.read_text(encoding="ascii").strip()


def page_url(settings: Settings) -> str:
    """Return the page's address with the token in the fragment, which browsers do not send."""
    return f"{settings.web}/#token={page_token(settings)}"


def _path(settings: Settings) -> Path:
    return settings.home / "page-token"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _host(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
