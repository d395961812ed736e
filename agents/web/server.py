"""The HTTP server below the views: limits of URLs and headers, and JSON answers to requests that aiohttp's parser refuses."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import BadHttpMethod, BadStatusLine, InvalidURLError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, _ErrInfo
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from agents.metrics import Metrics
from agents.web.ends import quiet_ends
from agents.web.error_replies import error_response, guarded
from schemas.errors import RiffleError

__all__ = ["MAX_HEADERS", "MAX_HEADER_BYTES", "MAX_URL_BYTES", "Runner"]

MAX_URL_BYTES = 65_536
"Maximum size in bytes of a path with its query, as sent."
MAX_HEADER_BYTES = 16_384
"Maximum size in bytes of a header's name, and of its value."
MAX_HEADERS = 127
"Maximum number of headers of a request. The parser also counts the request line."
LINGER_S = 1.0
"Seconds for which further input is discarded after the last answer, so that the client can read that answer."
LINGER_BYTES = 16 << 20
"Maximum number of bytes discarded during that time."
SPOKEN = (HttpVersion10, HttpVersion11)
REFUSED = RawRequestMessage(
    "UNKNOWN", "/", HttpVersion11, CIMultiDictProxy(CIMultiDict()), (), True, None, False, False, URL("/")
)
"Stand-in for a refused request. With aiohttp's own, the answer would be in HTTP/1.0."


class Runner(web.AppRunner):
    """Serves an application over HTTP. All errors are JSON, and every request is counted.

    aiohttp does not decompress bodies, because its parser would continue to decompress a refused body.
    """

    def __init__(self, app: web.Application, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            max_line_size=MAX_URL_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS + 1,
            lingering_time=LINGER_S,
            **kwargs,
        )
        self._metrics = metrics
        self.leaving = False
        "Whether each answer is the last one of its connection."

    def leave(self) -> None:
        """Close each connection after its next answer, so that clients connect to another worker."""
        self.leaving = True

    async def _make_server(self) -> web.Server:
        quiet_ends(asyncio.get_running_loop())
        return _Server(await super()._make_server(), self._metrics, lambda: self.leaving)


class _Server(web.Server):
    """Creates a `_Connection` for each client."""

    def __init__(self, plain: web.Server, metrics: Metrics, leaving: Callable[[], bool]) -> None:
        super().__init__(
            guarded(plain.request_handler, metrics, leaving),
            request_factory=self._request,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )
        self._make = plain.request_factory
        self._metrics = metrics

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, self._metrics, loop=self._loop, **self._kwargs)

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return self._make(REFUSED if message is ERROR else message, payload, protocol, writer, task)


class _Connection(web.RequestHandler):
    """One connection. After unparsable input or a refused body it sends one last answer and closes."""

    def __init__(self, server: web.Server, metrics: Metrics, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._metrics = metrics
        self._body = EMPTY_PAYLOAD
        "Body of the last request that was read."
        self.broken_body: StreamReader | None = None
        "The body in which the parser stopped. It ends there, so that no task waits for its rest."
        self._unreadable = False
        self._discarded = -1
        "Number of bytes discarded after the last answer; negative before it."
        self._gone = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. A request that cannot be parsed is answered after the earlier ones."""
        if self._discarded >= 0:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self.force_close()
            return
        if self._unreadable:
            return
        read = len(self._messages)
        try:
            super().data_received(data)
        except Exception as exc:
            # yarl rejects some URLs that the parser accepts; asyncio would then close the connection without an answer
            self._messages.append((_ErrInfo(400, exc, ""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        while len(self._messages) > read:
            message, body = self._messages[read]
            if isinstance(message, _ErrInfo) or message.version not in SPOKEN:
                self._refuse(read)
                return
            self._body = body
            read += 1

    def _refuse(self, at: int) -> None:
        """Answer the message at this position of the queue with a refusal, and read nothing after it."""
        while len(self._messages) > at + 1:
            self._messages.pop()
        message, _ = self._messages[at]
        if not isinstance(message, _ErrInfo):
            self._messages[at] = _ErrInfo(400, BadStatusLine(error=""), ""), EMPTY_PAYLOAD
        self._unreadable = True
        if not self._body.is_eof():
            # the request gets its own answer; the client would take a second one, for its body, as the next request's
            self._messages.pop()
            self.broken_body = self._body
            self._body.feed_eof()
            if not self._messages:
                self.close()  # after the current request is answered

    def connection_lost(self, exc: BaseException | None) -> None:
        """Wake up tasks that wait for the client to disconnect."""
        super().connection_lost(exc)
        self._gone.set()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - may hold a Python representation of what was sent
    ) -> web.StreamResponse:
        """Answer a request that was refused before any view, as JSON; `guarded` handles all other errors."""
        if status == 500:
            self.logger.error("a request failed outside of the views", exc_info=exc)
            error = RiffleError("internal", "the request failed; the worker's log has the cause")
        else:
            status, error = _refusal(exc)
            self.logger.debug("a request from %s is refused: %s", request.remote, error.message)
        self._metrics.http_requests.add(route="unknown", method="other", status=status)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has already begun")
        response = error_response(error, status)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer. If it is the last one and the client may still be sending, linger so that it can read it."""
        finished = await super().finish_response(request, resp, start_time)
        if not resp.keep_alive and (self._unreadable or not request.content.is_eof()):
            await self._linger()
        return finished

    async def _linger(self) -> None:
        """End the output, discard further input, and close when the client does, or after `LINGER_S`.

        If it closed at once, the kernel would reset the connection, and the client might never read the answer.
        """
        transport = self.transport
        if transport is None:
            return
        self._discarded = 0
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
            transport.write_eof()
        with contextlib.suppress(RuntimeError):
            transport.resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._gone.wait()
        self.force_close()


def _refusal(exc: BaseException | None) -> tuple[int, RiffleError]:
    if isinstance(exc, LineTooLong):
        if exc.args[1] == MAX_URL_BYTES:
            return 414, RiffleError("too_long", f"the URL is longer than {MAX_URL_BYTES} bytes; a body can hold more")
        return 431, RiffleError("header_too_large", f"a header is larger than {MAX_HEADER_BYTES} bytes")
    if "Too many headers" in getattr(exc, "message", ""):
        return 431, RiffleError("header_too_large", f"there are more than {MAX_HEADERS} headers")
    if isinstance(exc, BadHttpMethod):
        what = "there is no such method"
    elif isinstance(exc, BadStatusLine):
        what = "the request line is not valid HTTP/1.1"
    elif isinstance(exc, InvalidURLError | ValueError):
        what = "the URL is not valid"
    else:
        # the parser's message, without its excerpt of the request
        reason = re.split(r":\n|:? b['\"]", str(getattr(exc, "message", "")))[0]
        what = f"it is not valid HTTP/1.1 ({reason[:100]})"
    return 400, RiffleError("bad_request", f"the request cannot be read: {what}")
