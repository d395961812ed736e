"""Requests from one worker to another, on real servers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fakes import FakeService
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from agents.metrics import Metrics
from agents.web.access import Gate
from agents.web.address import advertised, reachable
from agents.web.peers import FAIR_S, PeerAway, Peers, body_of
from agents.web.protocol import Wanted, always
from agents.web.routes import build_app
from agents.web.tokens import Scope, line_of, new_token
from schemas.errors import BadRequest, DeadlineExceeded, NotReady
from schemas.http_settings import HttpSettings
from schemas.records import After, Item, Request, Slate
from schemas.settings import Settings
from schemas.validation import request_from

ASKED = Request("r1", "ann", 3, {"device": "tv"}, ("b",), ("films",), explain=True, after=After(2, 7), repeats=True)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def peers_of(clock: Clock | None = None) -> AsyncIterator[tuple[Peers, Metrics]]:
    metrics = Metrics()
    peers = Peers(metrics, clock=clock or Clock())
    try:
        yield peers, metrics
    finally:
        await peers.stop()


@asynccontextmanager
async def worker(service: FakeService) -> AsyncIterator[str]:
    async with Served(build_app(service), service.metrics) as server:
        yield f"{server.host}:{server.port}"


def nowhere() -> str:
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(
    st.builds(
        Request,
        names,
        names,
        st.integers(1, 500),
        st.dictionaries(names, names, max_size=3),
        st.lists(names, max_size=3).map(tuple),
        st.lists(names, max_size=3).map(tuple),
        st.booleans(),
        st.none() | st.builds(After, st.integers(0, 9), st.integers(0, 9)),
        st.none() | st.lists(names, max_size=3).map(tuple),
    )
)
def test_a_request_survives_the_way_to_another_worker(request_: Request) -> None:
    assert request_from(body_of(request_), request_id="another") == request_


async def test_another_workers_slate_comes_back_and_it_gets_the_time_that_is_left() -> None:
    service = FakeService(catalogue={name: Item(name) for name in "abc"})
    async with worker(service) as address, peers_of() as (peers, _):
        slate = await peers.ask(address, ASKED, 0.2)
    assert slate == replace(await service.recommend(ASKED), timings_ms=slate.timings_ms)
    request, deadline_ms = service.requests[0]
    assert request == ASKED
    assert deadline_ms is not None
    assert 100 < deadline_ms <= 175, "without the time that the answer travels"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (NotReady("not_held", "no rows"), NotReady),
        (DeadlineExceeded("deadline_exceeded", "too long"), DeadlineExceeded),
        (BadRequest("invalid_field", "odd"), BadRequest),
        (ValueError("a fault of this program"), NotReady),
    ],
)
async def test_an_error_of_another_worker_is_an_answer_so_that_it_is_asked_again(
    failure: Exception, kind: type[Exception]
) -> None:
    service = FakeService(failure=failure)
    async with worker(service) as address, peers_of() as (peers, metrics):
        for _ in range(5):
            with pytest.raises(kind) as raised:
                await peers.ask(address, ASKED, 1.0)
            assert not isinstance(raised.value, PeerAway)
    assert metrics.http_requests.value(route="unknown", method="POST", status=500) == 0


async def test_a_worker_that_refuses_connections_is_asked_once_until_a_probe_finds_it() -> None:
    clock, address = Clock(), nowhere()
    async with peers_of(clock) as (peers, metrics):
        for _ in range(3):
            with pytest.raises(PeerAway):
                await peers.ask(address, ASKED, 1.0)
        assert metrics.peers_failed.value(reason="refused") == 1
        port = address.rpartition(":")[2]
        service = FakeService()
        server = Served(build_app(service), service.metrics)
        server.port = int(port)
        await server.start_server()
        try:
            with pytest.raises(PeerAway):
                await peers.ask(address, ASKED, 1.0)
            clock.now += 1.0
            assert (await peers.ask(address, ASKED, 1.0)).user_id == "ann"
            assert (await peers.ask(address, ASKED, 1.0)).user_id == "ann"
        finally:
            await server.close()


async def test_a_worker_that_does_not_answer_costs_its_share_of_the_time_a_few_times_only() -> None:
    class Silent(FakeService):
        async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
            self.requests.append((request, deadline_ms))
            await asyncio.sleep(60)
            raise AssertionError

    service = Silent()
    async with worker(service) as address, peers_of() as (peers, metrics):
        for _ in range(6):
            with pytest.raises(PeerAway):
                await peers.ask(address, ASKED, FAIR_S + 0.05)
    assert metrics.peers_failed.value(reason="timeout") == len(service.requests) == 3


async def test_a_worker_knows_whether_the_asking_one_still_waits() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    class Late(FakeService):
        async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
            assert wanted(), "the other worker waits"
            came.set()
            try:
                await asyncio.sleep(60)  # until aiohttp's test server cancels it
            finally:
                if not wanted():
                    left.set()
            raise AssertionError

    async with worker(Late()) as address, peers_of() as (peers, _), asyncio.timeout(60):
        asking = asyncio.ensure_future(peers.ask(address, Request("r1", "late"), 50.0))
        await asyncio.wait([asking, asyncio.ensure_future(came.wait())], return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            pytest.skip("this machine is too slow to connect to itself in time")
        asking.cancel()
        await left.wait()


class Slow(FakeService):
    """Answers after `seconds`; requests with a token after many more."""

    seconds = 0.03

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        await asyncio.sleep(60 if request.after is not None else self.seconds)
        return await super().recommend(request, deadline_ms, wanted)


async def test_short_deadlines_of_a_client_are_no_failures_of_a_worker() -> None:
    async with worker(Slow()) as address, peers_of() as (peers, _):
        short = [peers.ask(address, Request(f"r{n}", "ann"), 0.01) for n in range(100)]
        assert all(isinstance(answer, PeerAway) for answer in await asyncio.gather(*short, return_exceptions=True))
        assert (await peers.ask(address, Request("r", "ann"), 5.0)).user_id == "ann"


async def test_requests_that_wait_for_events_keep_out_neither_others_nor_other_workers() -> None:
    async with worker(Slow()) as address, worker(FakeService()) as other, peers_of() as (peers, _):
        waiting = [asyncio.ensure_future(peers.ask(address, replace(ASKED, request_id=f"{n}"), 30.0)) for n in range(200)]
        await asyncio.sleep(0.05)
        plain = Request("r", "ann")
        assert [(await peers.ask(where, plain, 5.0)).user_id for where in (address, other)] == ["ann", "ann"]
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_burst_of_requests_is_answered_over_few_connections() -> None:
    async with worker(FakeService()) as address, peers_of() as (peers, metrics):
        answers = await asyncio.gather(*[peers.ask(address, Request(f"r{n}", "ann"), 20.0) for n in range(300)])
        assert len(answers) == 300
        assert metrics.peers_failed.value(reason="timeout") == 0


async def test_an_idle_connection_that_was_closed_is_no_failure_of_the_worker() -> None:
    service = FakeService()
    server = Served(build_app(service), service.metrics)
    await server.start_server()
    host, port = server.host, server.port
    async with peers_of() as (peers, metrics):
        await peers.ask(f"{host}:{port}", ASKED, 1.0)
        await server.close()
        again = Served(build_app(service), service.metrics)
        again.port = port
        await again.start_server()
        try:
            await peers.ask(f"{host}:{port}", ASKED, 1.0)
        finally:
            await again.close()
    assert metrics.peers_failed.value(reason="disconnected") == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_worker_on_loopback_is_reached_from_its_own_machine_alone(host: str) -> None:
    address = advertised(Settings(web_host=host, web_port=7000))
    assert reachable(address) == (f"[{host}]:7000" if ":" in host else f"{host}:7000")
    assert reachable(address.partition("@")[0] + "@another-machine") is None
    assert reachable(None) is None


def test_an_address_is_the_one_that_is_set_or_bound_or_the_one_towards_kafka() -> None:
    assert advertised(Settings(web_host="0.0.0.0", web_advertised="worker-1.riffle:80")) == "worker-1.riffle:80"
    assert advertised(Settings(web_advertised="off")) == ""
    assert advertised(Settings(web_host="10.1.2.3")) == "10.1.2.3:6066"
    towards = advertised(Settings(web_host="0.0.0.0", bootstrap="127.0.0.1:9092", web_port=7000))
    assert towards.partition("@")[0] == "127.0.0.1:7000"
    assert "0.0.0.0" not in advertised(Settings(web_host="0.0.0.0", bootstrap="name.invalid:9092"))


async def test_a_server_that_leaves_closes_each_connection_after_its_answer() -> None:
    service = FakeService()
    async with Served(build_app(service), service.metrics) as server:

        async def answer() -> bytes:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            if b"close" in head.lower():
                assert (await reader.read()).endswith(b"}")
            writer.close()
            return head

        assert b"connection: close" not in (await answer()).lower()
        server.runner.leave()  # type: ignore[union-attr]
        assert b"connection: close" in (await answer()).lower()


async def test_a_worker_that_refuses_this_workers_token_is_not_ready_for_the_sender(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(line_of("other", [Scope.OPERATE], "-", new_token()) + "\n")
    service = FakeService()
    gate = Gate(HttpSettings(tokens_file=str(file)), service.metrics)
    async with Served(build_app(service, gate=gate), service.metrics) as server, peers_of() as (peers, metrics):
        with pytest.raises(NotReady) as caught:
            await peers.explain(f"{server.host}:{server.port}", ASKED)
        assert caught.value.code == "not_ready"
        assert "token" in caught.value.message
        assert metrics.peers_failed.value(reason="token_required") == 1


@pytest.mark.parametrize("field", ["release", "repeats"])
async def test_a_field_that_an_earlier_worker_lacks_is_no_error_of_the_client(field: str) -> None:
    async def refuse(_: web.Request) -> web.Response:
        refused = BadRequest("invalid_field", f"unknown field {field}", field)
        return web.json_response({"error": refused.to_json()}, status=400)

    earlier = web.Application()
    earlier.router.add_post("/{path:.*}", refuse)
    async with TestServer(earlier) as server, peers_of() as (peers, _):
        address = f"{server.host}:{server.port}"
        with pytest.raises(NotReady, match="earlier version"):
            await peers.explain(address, ASKED, "r1")
        with pytest.raises(NotReady, match="earlier version"):
            await peers.ask(address, ASKED, 1.0)
