"""The HTTP interface on a real server in this process, as a worker serves it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from agents.metrics import Metrics
from agents.web.server import Runner

__all__ = ["Answer", "Served", "answers_on", "answers_to", "open_to", "raw", "read_answer"]


class Served(TestServer):
    """An application served by `Runner`, on a free port."""

    __test__ = False

    def __init__(self, app: web.Application, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    async def _make_runner(self, **kwargs: Any) -> web.BaseRunner:
        return Runner(self.app, self._metrics, **kwargs)


class Answer:
    """One answer as it was read from a socket."""

    def __init__(self, version: str, status: int, headers: dict[str, str], body: bytes) -> None:
        self.version, self.status, self.headers, self.body = version, status, headers, body

    def __repr__(self) -> str:
        return f"{self.version} {self.status} {self.headers} {self.body[:300]!r}"

    def error(self) -> dict[str, Any]:
        """The error object; fails when the body is no error."""
        assert self.headers["content-type"].startswith("application/json"), self
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"code", "message", "field"}, self
        return error


async def open_to(server: BaseTestServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the server."""
    return await asyncio.open_connection(server.host, server.port)


async def answers_to(server: BaseTestServer, sent: bytes, *, head: bool = False) -> list[Answer]:
    """Every answer to these bytes until the server closes the connection."""
    reader, writer = await open_to(server)
    try:
        writer.write(sent)
        return await answers_on(reader, head=head)
    finally:
        writer.close()


async def answers_on(reader: asyncio.StreamReader, *, head: bool = False) -> list[Answer]:
    """Every answer until the connection is closed."""
    found = []
    while (answer := await read_answer(reader, head=head)) is not None:
        found.append(answer)
    return found


def raw(target: str, *headers: str, method: str = "GET", body: bytes = b"", close: bool = True) -> bytes:
    """The bytes of a request, with a Host, closing the connection unless told otherwise."""
    lines = [f"{method} {target} HTTP/1.1", "Host: h", *headers, *(["Connection: close"] if close else [])]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


async def read_answer(reader: asyncio.StreamReader, *, head: bool = False) -> Answer | None:
    """The next answer; None when the connection is closed instead. Interim answers have the status 100."""
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as exc:
        assert not exc.partial, exc.partial
        return None
    except ConnectionError:
        return None
    lines = text.decode("latin-1").split("\r\n")
    version, status, _ = lines[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
    if int(status) == 100:
        return Answer(version, 100, headers, b"")
    if head:
        return Answer(version, int(status), headers, await reader.read())  # the body, if there is one, ends with the connection
    length = int(headers.get("content-length", "0"))
    return Answer(version, int(status), headers, await reader.readexactly(length))
