"""Requests from one worker to another over HTTP, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import Any

import aiohttp
import orjson

from agents.breaker import MAX_BREAKERS, Breakers
from agents.metrics import Metrics
from agents.web.caller import ANYONE, Caller
from schemas.errors import BadRequest, ConfigError, DeadlineExceeded, NotReady, RiffleError, TransientError
from schemas.records import Request, Slate
from streams.kafka.client import slate_from
from streams.kafka.writes import JSON_HEADERS
from streams.tracing import TRACEPARENT, incoming

__all__ = ["CONNECT_S", "EXPLAIN_PATH", "PATH", "PREVIEW_PATH", "PeerAway", "Peers"]

PATH = "/v1/workers/recommend"
"Route on which a worker answers another one, only from rows that it holds."
PREVIEW_PATH = "/v1/workers/rules/preview"
"Route on which a worker previews rules for another one, only for users of a partition that it owns."
EXPLAIN_PATH = "/v1/workers/explain"
"Route on which a worker traces a request for another one, only for users of a partition that it owns."
PREVIEW_S = 10.0
"Seconds that a preview or a trace at another worker may take."
CONNECT_S, TLS_CONNECT_S, CONNECT_SHARE = 0.05, 0.25, 0.2
"""Seconds within which another worker must accept a connection, in plain text and with the handshake of TLS, or a share of the
time if that is more: a busy worker accepts late."""
ADDED = frozenset({"release", "repeats"})
"Fields of a request that a worker of an earlier version refuses as unknown."
NOT_ADMITTED = frozenset({401, 403, 429})
"Statuses with which a worker refuses this worker's token, not the request."
AT_ONCE = 64
"""Maximum number of requests under way to one worker. More connections at once would exceed the number that a listening socket
queues, 128."""
TOKENS_AT_ONCE = AT_ONCE // 2
"Maximum number of these that wait for the event of their token, so that they do not keep out the others."
FAIR_S = 0.1
"Seconds that another worker must have had for a missing answer to count as its failure."
TRAVEL_S, TRAVEL_SHARE = 0.025, 0.2
"Time that is kept for the way of the answer: seconds, and a share of the time, whichever is less."
IDLE_S = 10.0
"Seconds after which an unused connection is closed, before the other side closes it."


class PeerAway(TransientError):
    """Another worker gave no answer: it refuses, it is too slow, or it is not asked because it failed a moment ago."""


class Peers:
    """Asks other workers. Nothing connects before the first request. `clock`: monotonic, in seconds."""

    def __init__(self, metrics: Metrics, caller: Caller = ANYONE, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._caller = caller
        self._breakers = Breakers(clock)
        self._session: aiohttp.ClientSession | None = None
        self._rooms: dict[str, _Room] = {}

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
        began: float | None = None
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        try:
            async with asyncio.timeout(within_s), self._room(address).entered(request):
                began = loop.time()
                status, body = await self._answer(address, request, until - began)
        except (aiohttp.ClientError, OSError, TimeoutError, ConfigError) as exc:
            reason = _reason(exc)
            # a worker that was not asked yet, or had hardly any time, has not failed
            if reason == "timeout" and (began is None or loop.time() - began < FAIR_S):
                breaker.let_go()
                reason = "timeout" if began is not None else "crowded"
            else:
                breaker.failed(refused=reason == "refused")
            self._metrics.peers_failed.add(reason=reason)
            raise PeerAway("peer_away", f"{address} gives no answer: {reason}") from exc
        except BaseException:
            breaker.let_go()
            raise
        breaker.succeeded()
        return self._read(address, status, body)

    def _room(self, address: str) -> _Room:
        if address not in self._rooms:
            while len(self._rooms) >= MAX_BREAKERS:
                self._rooms.pop(next(iter(self._rooms)))
            self._rooms[address] = _Room()
        return self._rooms[address]

    async def _answer(self, address: str, request: Request, within_s: float) -> tuple[int, bytes]:
        try:
            return await self._post(address, request, within_s)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as exc:
            if isinstance(exc, aiohttp.ClientConnectorError):
                raise
            # an idle connection may be closed while it is being used again; whether the worker lives, a new one shows
            return await self._post(address, request, within_s)

    async def preview(self, address: str, rules: Mapping[str, Any], request: Request) -> dict[str, Any]:
        """Return another worker's preview of rules for one of its users.

        Raises:
            NotReady: it gave no answer, or cannot answer now.
            BadRequest: it refused the request.
        """
        return await self._forwarded(address, PREVIEW_PATH, {"rules": rules, "request": body_of(request)})

    async def explain(self, address: str, request: Request, release: str | None = None) -> dict[str, Any]:
        """Return another worker's trace of a request of one of its users, with a release. Raises as `preview`."""
        named = {} if release is None else {"release": release}
        return await self._forwarded(address, EXPLAIN_PATH, {**body_of(request), **named})

    async def _forwarded(self, address: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        data, timeout = orjson.dumps(body), aiohttp.ClientTimeout(total=PREVIEW_S)
        try:
            url = f"{self._caller.scheme}://{address}{path}"
            async with self._connected().post(url, data=data, timeout=timeout, **self._caller.arguments(url)) as response:
                status, found = response.status, orjson.loads(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, ConfigError) as exc:
            self._metrics.peers_failed.add(reason=_reason(exc))
            raise NotReady("not_ready", f"{address}, which has this user's partition, gives no answer: try again") from exc
        if status == 200:
            return dict(found)
        error = found["error"]
        self._metrics.peers_failed.add(reason=error["code"])
        earlier = status == 404 and error["field"] != "release"
        if earlier or _unknown_there(error["code"], error["field"]):
            raise NotReady("not_ready", f"{address}, which has this user's partition, is of an earlier version: ask that one")
        if status in NOT_ADMITTED:  # the sender's own token was accepted here
            message = f"{address}, which has this user's partition, does not accept this worker's token: {error['message']}"
            raise NotReady("not_ready", message)
        if status >= 500:
            raise NotReady(error["code"], error["message"])
        raise BadRequest(error["code"], error["message"], error["field"])

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        return self._session

    async def _post(self, address: str, request: Request, within_s: float) -> tuple[int, bytes]:
        connect_s = max(TLS_CONNECT_S if self._caller.scheme == "https" else CONNECT_S, within_s * CONNECT_SHARE)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        deadline_s = within_s - min(TRAVEL_S, within_s * TRAVEL_SHARE)
        url = f"{self._caller.scheme}://{address}{PATH}?deadline_ms={max(round(deadline_s * 1000), 1)}"
        body, own = orjson.dumps(body_of(request)), self._caller.arguments(url)
        if parent := incoming.get():
            own["headers"] = {**own["headers"], TRACEPARENT: parent}
        async with self._connected().post(url, data=body, timeout=timeout, **own) as response:
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
            if status >= 500 or status in NOT_ADMITTED or error.code == "unreadable_reply":
                raise NotReady(error.code, error.message) from error
            if isinstance(error, BadRequest) and _unknown_there(error.code, error.field):
                raise NotReady("not_held", f"{address} is of an earlier version, without {error.field}") from error
            raise

    async def stop(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _Room:
    """Bounds the requests that are under way to one worker."""

    def __init__(self) -> None:
        self._all, self._tokens = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(TOKENS_AT_ONCE)

    @contextlib.asynccontextmanager
    async def entered(self, request: Request) -> AsyncIterator[None]:
        """Wait for a place, and hold it."""
        async with self._tokens if request.after is not None else contextlib.nullcontext(), self._all:
            yield


def body_of(request: Request) -> dict[str, Any]:
    """Return a request as a body of the contract, without the fields that have their default."""
    usual = Request(request.request_id, request.user_id)
    return {
        name: value
        for name, value in asdict(request).items()
        if name in {"request_id", "user_id"} or value != getattr(usual, name)
    }


def _unknown_there(code: str, field: str | None) -> bool:
    """Whether another worker's refusal names a field that an earlier version lacks; this worker has checked the request."""
    return code == "invalid_field" and field in ADDED


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "timeout"
    if isinstance(exc, ConfigError):
        return "settings"
    return "refused" if isinstance(exc, aiohttp.ClientConnectorError) else "disconnected"
