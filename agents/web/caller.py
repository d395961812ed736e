"""What clients of the HTTP interface need to reach it: a token, and how they verify the server."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import Any

from schemas.errors import ConfigError
from schemas.http_settings import HttpSettings
from schemas.watched import Stamp, stamp_of

__all__ = ["ANYONE", "Caller"]


class Caller:
    """Sends the token of `RIFFLE_HTTP_TOKEN_FILE`, and verifies servers by `RIFFLE_HTTP_CA_FILE` and `_SERVER_NAME`.

    Files are read again when they change.
    """

    def __init__(self, http: HttpSettings) -> None:
        self._http = http
        self._stamp: Stamp | None = None
        self._token = http.token

    @property
    def server_name(self) -> str | None:
        """Name that the server's certificate must hold; None for the address."""
        return self._http.server_name or None

    @property
    def scheme(self) -> str:
        """Scheme at which this instance's own listeners answer."""
        return "https" if self._http.encrypts else "http"

    def headers(self) -> dict[str, str]:
        """Return the header `Authorization`; none without a token.

        Raises:
            ConfigError: the token's file cannot be used.
        """
        if self._http.token_file and (now := stamp_of(self._http.token_file)) != self._stamp:
            self._token, self._stamp = self._http.secret(), now
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def context(self) -> ssl.SSLContext:
        """Return the context with which servers are verified.

        Raises:
            ConfigError: the authorities cannot be read.
        """
        return _context(self._http.ca_file, stamp_of(self._http.ca_file))

    def arguments(self, url: str) -> dict[str, Any]:
        """Return the keyword arguments of a request by aiohttp to `url`. Errors: as `headers` and `context`."""
        found: dict[str, Any] = {"headers": self.headers()}
        if url.startswith("https://"):
            found |= {"ssl": self.context(), "server_hostname": self.server_name}
        return found


ANYONE = Caller(HttpSettings())
"Without a token; servers are verified by the system's authorities."


@lru_cache(maxsize=4)
def _context(ca_file: str, _stamp: Stamp) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ValueError) as exc:
        message = f"RIFFLE_HTTP_CA_FILE holds no certificates in PEM that can be read: {exc}"
        raise ConfigError("invalid_setting", message, "http_ca_file") from exc
