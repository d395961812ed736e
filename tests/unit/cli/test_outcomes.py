"""Outcomes of loaded events, as a real HTTP server reports them in the worker's text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agents.cli.outcomes import KNOWN, outcomes, since
from agents.metrics import Metrics

Serve = Callable[[Callable[[Metrics], None]], str]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Callable[[Metrics], None]], object]]:
    """Start a server of metrics that calls the given function before each answer."""
    servers: list[TestServer] = []

    async def start(step: Callable[[Metrics], None]) -> str:
        metrics = Metrics()
        metrics.events.add(7, outcome="applied")
        metrics.events.add(3, outcome="dead_letter", code="invalid_field")
        metrics.events.add(2, code="not_json", outcome="dead_letter")
        metrics.events.add(9, outcome="replayed")

        async def answer(_: web.Request) -> web.Response:
            step(metrics)
            return web.Response(text=metrics.render())

        app = web.Application()
        app.router.add_get("/metrics", answer)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()


def duplicate(metrics: Metrics) -> None:
    metrics.events.add(outcome="duplicate")


async def test_events_are_counted_by_outcome_until_all_are_there(serve: Callable[..., object]) -> None:
    address = await serve(duplicate)  # type: ignore[misc]
    before = await outcomes(address)
    assert before == {"applied": 7, "dead_letter": 5, "duplicate": 1, "shown": 0, "replayed": 9}
    found = await since(address, before, 3)
    assert found == Counter(dict.fromkeys(KNOWN, 0) | {"duplicate": 3})


async def test_what_stands_still_or_starts_again_or_is_gone_is_not_known(serve: Callable[..., object]) -> None:
    address = await serve(lambda _: None)  # type: ignore[misc]
    before = await outcomes(address)
    assert before is not None
    clock = count()
    assert await since(address, before, 1, lambda: float(next(clock)), still_s=2.0) is None
    assert await since(address, Counter(applied=8), 1) is None
    assert await since("http://127.0.0.1:1", before, 1) is None
    assert await outcomes("http://127.0.0.1:1") is None


async def test_what_is_no_worker_says_nothing(serve: Callable[..., object]) -> None:
    address = await serve(lambda _: None)  # type: ignore[misc]
    assert await outcomes(f"{address}/other") is None
