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
"Seconds that a broker has for its part of the close. All answers that anyone waits for have arrived by then."


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's connection, which ends `CLOSE_S` seconds after its close at the latest."""

    _writer: asyncio.StreamWriter | None
    _closed_fut: asyncio.Future[None] | None

    def close(self, reason: Any = None, exc: BaseException | None = None) -> asyncio.Future[None] | None:
        """Close the connection; the future ends when it is closed."""
        transport = None if self._writer is None else self._writer.transport
        closed: asyncio.Future[None] | None = super().close(reason, exc)
        if transport is not None and closed is not None and not closed.done():
            limit = self._loop.call_later(CLOSE_S, transport.abort)
            closed.add_done_callback(lambda _: limit.cancel())
        return closed


conn.AIOKafkaConnection = Connection
