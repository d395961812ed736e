"""Connection whose close has a time limit, and that is replaced before its login expires. Importing this module replaces
aiokafka's.

aiokafka waits for a closed connection until the broker has answered the end of TLS, or has accepted what is still to be sent. A
broker need not answer the former (RFC 8446, 6.1), and Kafka sometimes does not when a request arrives together with it. Then
`stop` of a client takes asyncio's 30 s, and a worker cannot stop in time.

A broker limits the time for which a login holds, by the token's expiry and `connections.max.reauth.ms` (KIP-368), and closes a
connection on which a request arrives later. aiokafka cannot log in again on an open connection.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import conn
from aiokafka.conn import CloseReason
from aiokafka.protocol.admin import SaslAuthenticateRequest

from schemas.errors import ConfigError

__all__ = ["CLOSE_S", "RENEW", "RETIRE_SHARES", "Connection", "FilePassword"]

log = logging.getLogger(__name__)

RENEW = "renew"
"Attribute of a TLS context: a function that returns the context with the files as they are now."
CLOSE_S = 1.0
"Seconds that a broker has for its part of the close. Requests without an answer have failed before."
UNSENT_S = 10.0
"Seconds that it has where data waits to be sent, which a program that embeds the client may have sent without waiting."
RETIRE_SHARES = 0.7, 0.85
"""Shares of a login's time between which a connection is replaced, at random, so that the connections of many clients are not
replaced at once."""


class FilePassword(str):
    """A password that a file holds. Each new connection reads it again by `now`."""

    __slots__ = ("_read",)
    _read: Callable[[], str]

    @classmethod
    def of(cls, read: Callable[[], str]) -> FilePassword:
        """Read the password. Errors: as `read`."""
        found = cls(read())
        found._read = read
        return found

    def now(self) -> str:
        """Return the password that the file holds now; the first one if it cannot be read."""
        try:
            return self._read()
        except ConfigError as error:
            log.warning("%s; the password that was read before is used", error.message)
            return str(self)


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's connection, which ends soon after its close, whatever the broker does, and in time before its login expires.

    A connection that is to be replaced counts as not connected, so that the client opens another one for its next request. The
    requests that are under way get their answers first.
    """

    _writer: asyncio.StreamWriter | None
    _closed_fut: asyncio.Future[None] | None
    _ssl_context: ssl.SSLContext | None
    _sasl_plain_password: str | None
    _session_ms = 0
    "Milliseconds for which the login holds; 0: without limit."
    _retiring = False
    _retirement: asyncio.TimerHandle | None = None

    async def connect(self) -> Any:
        """Connect with the current certificates and password, and log in."""
        self._ssl_context = _renewed(self._ssl_context)
        if isinstance(self._sasl_plain_password, FilePassword):
            self._sasl_plain_password = self._sasl_plain_password.now()
        made = await super().connect()
        if self._session_ms > 0:
            within_s = self._session_ms / 1e3 * random.uniform(*RETIRE_SHARES)  # noqa: S311 - no secret
            self._retirement = self._loop.call_later(within_s, _retire, weakref.ref(self))
        return made

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Send a request; notes for how long a login holds."""
        sent = super().send(request, expect_response)
        return self._noted(sent) if isinstance(request, SaslAuthenticateRequest) else sent

    async def _noted(self, sent: Awaitable[Any]) -> Any:
        response = await sent
        self._session_ms = getattr(response, "session_lifetime_ms", 0)
        return response

    def connected(self) -> bool:
        """Whether a client may send its next request here."""
        return not self._retiring and bool(super().connected())

    def retire(self) -> None:
        """Take no more requests, and close once those under way are answered, or have had their time."""
        self._retiring = True
        if self._requests:
            self._retirement = self._loop.call_later(self._request_timeout, self.close, CloseReason.IDLE_DROP)
        else:
            self.close(CloseReason.IDLE_DROP)

    def _handle_frame(self, resp: bytes) -> None:
        super()._handle_frame(resp)
        if self._retiring and not self._requests:
            self.close(CloseReason.IDLE_DROP)

    def close(self, reason: Any = None, exc: BaseException | None = None) -> asyncio.Future[None] | None:
        """Close the connection; the future ends when it is closed."""
        if self._retirement is not None:
            self._retirement.cancel()
        transport = None if self._writer is None else self._writer.transport
        closed: asyncio.Future[None] | None = super().close(reason, exc)
        if transport is not None and closed is not None and not closed.done():
            self._loop.call_later(CLOSE_S, _end, transport, closed, CLOSE_S)
        return closed


def _retire(of: weakref.ref[Connection]) -> None:
    connection = of()
    if connection is not None and connection.connected():
        connection.retire()


def _renewed(context: ssl.SSLContext | None) -> ssl.SSLContext | None:
    """Return the context with the certificates as they are now; the same one if they cannot be used."""
    renew: Callable[[], ssl.SSLContext] | None = getattr(context, RENEW, None)
    if renew is None:
        return context
    try:
        return renew()
    except ConfigError as error:
        log.warning("%s; the certificates that were read before are used", error.message)
        return context


def _end(transport: asyncio.WriteTransport, closed: asyncio.Future[None], waited_s: float) -> None:
    """Abort a connection that should have closed by now. Whoever awaited `closed` may have been cancelled."""
    if closed.done() and not closed.cancelled():
        return
    if transport.get_write_buffer_size() and waited_s < UNSENT_S:
        asyncio.get_running_loop().call_later(CLOSE_S, _end, transport, closed, waited_s + CLOSE_S)
    else:
        transport.abort()


conn.AIOKafkaConnection = Connection
