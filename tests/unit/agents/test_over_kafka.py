"""Requests to other workers over Kafka: one client, connected at the first request, and no wait beyond a deadline."""

from __future__ import annotations

import asyncio

import pytest
from virtual_time import VirtualLoop, run_virtually

from agents.requests.over_kafka import OverKafka
from schemas.errors import DeadlineExceeded, NotReady
from schemas.records import Request, Slate, UserPage, UserQuery
from schemas.settings import Settings


class Client:
    """A client that takes `start_s` to connect, and may fail the first time."""

    made = 0
    stopped = 0
    start_s = 0.0
    fails = 0

    def __init__(self, settings: Settings, tracing: object = None) -> None:
        type(self).made += 1

    async def start(self) -> None:
        await asyncio.sleep(self.start_s)
        if type(self).made <= self.fails:
            raise NotReady("broker_unavailable", "no broker")

    async def stop(self) -> None:
        type(self).stopped += 1

    async def recommend(self, request: Request, deadline_ms: int) -> Slate:
        return Slate(request.request_id, request.user_id, (), f"{deadline_ms}", "default")

    async def users(self, partition: int, query: UserQuery, deadline_ms: int) -> UserPage:
        return UserPage(partition, 4, (f"{deadline_ms}", query.after), None)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    made = type("Fresh", (Client,), {})
    monkeypatch.setattr("agents.requests.over_kafka.RiffleClient", made)
    return made


def test_requests_share_a_client_and_keep_their_deadlines_while_it_connects(client: type[Client]) -> None:
    client.start_s = 0.3

    async def scene(loop: VirtualLoop) -> None:
        others = OverKafka(Settings())
        asked = [others.ask(Request("r", "3"), within) for within in (0.1, 0.2, 0.4, 1.0)]
        started = loop.time()
        early = await asyncio.gather(*asked, return_exceptions=True)
        assert loop.time() - started == pytest.approx(0.3), "nobody waits for longer than the client takes to connect"
        assert [isinstance(answer, DeadlineExceeded) for answer in early] == [True, True, False, False]
        left = [int(answer.release) for answer in early if isinstance(answer, Slate)]
        assert left == [pytest.approx(100, abs=1), pytest.approx(700, abs=1)], "ms that are left"
        assert (await others.users(3, UserQuery("x"), 0.05)).users[1] == "x"
        assert client.made == 1
        await others.stop()
        assert client.stopped == 1

    run_virtually(scene)


async def test_a_client_that_cannot_connect_is_tried_again(client: type[Client]) -> None:
    client.fails = 1
    others = OverKafka(Settings())
    with pytest.raises(NotReady):
        await others.ask(Request("r", "3"), 1.0)
    assert (await others.ask(Request("r", "3"), 1.0)).user_id == "3"
    assert client.made == 2
    await others.stop()
    assert client.stopped == 1


def test_a_worker_stops_while_its_client_connects(client: type[Client]) -> None:
    client.start_s = 1e6

    async def scene(_loop: VirtualLoop) -> None:
        others = OverKafka(Settings())
        with pytest.raises(DeadlineExceeded):
            await others.ask(Request("r", "3"), 0.1)
        await others.stop()

    run_virtually(scene)
