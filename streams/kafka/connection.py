"""Connection whose close has a time limit. Importing this module replaces aiokafka's.

aiokafka waits for a closed connection until the broker has answered the end of TLS, or has accepted what is still to be sent. A
broker need not answer the former (RFC 8446, 6.1), and Kafka sometimes does not when a request arrives together with it. Then
`stop` of a client takes asyncio's 30 s, and a worker cannot stop in time.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import conn

__all__ = ["CLOSE_S", "Connection"]

CLOSE_S = 1.0
"Seconds that a broker has for its part of the close. Requests without an answer have failed before."
UNSENT_S = 10.0
"Seconds that it has where data waits to be sent, which a program that embeds the client may have sent without waiting."


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's connection, which ends soon after its close, whatever the broker does."""

    _writer: asyncio.StreamWriter | None
    _closed_fut: asyncio.Future[None] | None

    def close(self, reason: Any = None, exc: BaseException | None = None) -> asyncio.Future[None] | None:
        """Close the connection; the future ends when it is closed."""
        transport = None if self._writer is None else self._writer.transport
        closed: asyncio.Future[None] | None = super().close(reason, exc)
        if transport is not None and closed is not None and not closed.done():
            self._loop.call_later(CLOSE_S, _end, transport, closed, CLOSE_S)
        return closed


def _end(transport: asyncio.WriteTransport, closed: asyncio.Future[None], waited_s: float) -> None:
    """Abort a connection that should have closed by now. Whoever awaited `closed` may have been cancelled."""
    if closed.done() and not closed.cancelled():
        return
    if transport.get_write_buffer_size() and waited_s < UNSENT_S:
        asyncio.get_running_loop().call_later(CLOSE_S, _end, transport, closed, waited_s + CLOSE_S)
    else:
        transport.abort()


conn.AIOKafkaConnection = Connection
