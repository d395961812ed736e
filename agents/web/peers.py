"""Requests from one worker to another over HTTP, in bounded time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import aiohttp
import orjson

from agents.metrics import Metrics
from agents.web.breaker import Breakers
from schemas.errors import DeadlineExceeded, NotReady, RiffleError, TransientError
from schemas.records import Request, Slate
from streams.kafka.client import slate_from
from streams.kafka.writes import JSON_HEADERS

__all__ = ["CONNECT_S", "PATH", "PeerAway", "Peers"]

PATH = "/v1/workers/recommend"
"Route on which a worker answers another one, only from rows that it holds."
CONNECT_S = 0.05
"Seconds within which another worker must accept a connection."
CONNECTIONS = 200
"Maximum number of connections to other workers."
IDLE_S = 10.0
"Seconds after which an unused connection is closed, before the other side closes it."


class PeerAway(TransientError):
    """Another worker gave no answer: it refuses, it is too slow, or it is not asked because it failed a moment ago."""


class Peers:
    """Asks other workers. Nothing connects before the first request. `clock`: monotonic, in seconds."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._breakers = Breakers(clock)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, address: str, request: Request, within_s: float) -> Slate:
        """Return another worker's answer from the rows that it holds; at most `within_s` seconds are waited.

        Raises:
            PeerAway: it gave no answer.
            NotReady: it holds no rows of this user's partition.
            DeadlineExceeded: it cannot answer within this time.
            RiffleError: it refused the request.
        """
        breaker = self._breakers.of(address)
        if not breaker.allows():
            raise PeerAway("peer_away", f"{address} failed a moment ago")
        try:
            async with asyncio.timeout(within_s):
                status, body = await self._answer(address, request, within_s)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            reason = _reason(exc)
            breaker.failed(refused=reason == "refused")
            self._metrics.peers_failed.add(reason=reason)
            raise PeerAway("peer_away", f"{address} gives no answer: {reason}") from exc
        except BaseException:
            breaker.let_go()
            raise
        breaker.succeeded()
        return self._read(address, status, body)

    async def _answer(self, address: str, request: Request, within_s: float) -> tuple[int, bytes]:
        try:
            return await self._post(address, request, within_s)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            if isinstance(exc, aiohttp.ClientConnectorError):
                raise
            # an idle connection may be closed while it is being used again; whether the worker lives, a new one shows
            return await self._post(address, request, within_s)

    async def _post(self, address: str, request: Request, within_s: float) -> tuple[int, bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=IDLE_S)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        url = f"http://{address}{PATH}?deadline_ms={max(round(within_s * 1000), 1)}"
        async with self._session.post(url, data=orjson.dumps(body_of(request)), timeout=timeout) as response:
            return response.status, await response.read()

    def _read(self, address: str, status: int, body: bytes) -> Slate:
        if status == 404:
            raise NotReady("not_held", f"{address} is of an earlier version, which answers no other worker")
        try:
            return slate_from(b'{"value":' + body + b"}", JSON_HEADERS)
        except RiffleError as error:
            self._metrics.peers_failed.add(reason=error.code)
            if status == 504:
                raise DeadlineExceeded(error.code, error.message) from error
            if status >= 500 or error.code == "unreadable_reply":
                raise NotReady(error.code, error.message) from error
            raise

    async def stop(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def body_of(request: Request) -> dict[str, Any]:
    """Return a request as a body of the contract, without the fields that have their default."""
    usual = Request(request.request_id, request.user_id)
    return {
        name: value
        for name, value in asdict(request).items()
        if name in {"request_id", "user_id"} or value != getattr(usual, name)
    }


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "timeout"
    return "refused" if isinstance(exc, aiohttp.ClientConnectorError) else "disconnected"
