"""HTTP requests of commands to a worker: without proxies or redirects, limited in time and size."""

from __future__ import annotations

import base64
import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from agents.web.caller import ANYONE, Caller
from schemas.errors import ConfigError, NotReady
from schemas.masking import masked_url

__all__ = ["Answer", "ask"]

MOST_BYTES = 64 << 20
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """Response to a request."""

    status: int
    body: Any
    "Parsed JSON."


class _Tls(http.client.HTTPSConnection):
    """A connection that verifies the server as `caller` does."""

    caller = ANYONE

    def connect(self) -> None:
        """Connect, and verify the server's certificate."""
        http.client.HTTPConnection.connect(self)
        self.sock = self.caller.context().wrap_socket(self.sock, server_hostname=self.caller.server_name or self.host)


def ask(url: str, timeout_s: float, most_bytes: int = MOST_BYTES, body: object = None, *, caller: Caller = ANYONE) -> Answer:
    """GET `url`, or POST `body` to it as JSON if there is one.

    The response must be JSON of at most `most_bytes` within `timeout_s`, whatever its status.

    The address is this machine's or given by the user. So the proxies of the environment are not used, because they would
    resolve it on their own machine. Redirects are not followed. A login in the URL is sent as basic authentication, in place of
    the token of `caller`.

    Raises:
        ConfigError: `url` is not an http(s) URL, or a file of `caller` cannot be used.
        NotReady: no server answers in time, or the response is no such JSON; the message names the URL without its login.
    """
    end, shown = time.monotonic() + timeout_s, masked_url(url)
    try:
        parts = urlsplit(url)
        kind = {"http": http.client.HTTPConnection, "https": _Tls}[parts.scheme]
        connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
        if isinstance(connection, _Tls):
            connection.caller = caller
        headers = {"Accept": "application/json", "Connection": "close", **caller.headers()}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
    except (KeyError, ValueError, http.client.InvalidURL) as exc:
        raise ConfigError("invalid_url", f"{shown} is not an http(s) URL") from exc
    try:
        target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        sent = None if body is None else json.dumps(body).encode()
        connection.request("GET" if sent is None else "POST", target, body=sent, headers=headers)
        response = connection.getresponse()
        found = bytearray()
        while part := response.read1(READ_BYTES):
            found += part
            if len(found) > most_bytes or time.monotonic() > end:
                raise NotReady("no_answer", f"the answer of {shown} exceeds {most_bytes} bytes or {timeout_s:g} s")
        return Answer(response.status, json.loads(found))
    except (OSError, http.client.HTTPException) as exc:
        raise NotReady("no_answer", f"{shown} does not answer: {exc or type(exc).__name__}") from exc
    except (ValueError, RecursionError) as exc:
        raise NotReady("no_answer", f"{shown} does not answer with JSON") from exc
    finally:
        connection.close()
