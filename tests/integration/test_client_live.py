"""Riffle's own client works against a running worker."""

from __future__ import annotations

import asyncio

import pytest

from schemas.codec import Framing
from schemas.errors import BadRequest, NotReady
from schemas.records import Interaction, Item, Request
from schemas.settings import Settings
from streams.kafka.client import RiffleClient

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("framing", [Framing.SINGLE_OBJECT, Framing.JSON])
async def test_the_client_writes_asks_and_reads_its_writes(worker: Settings, framing: Framing) -> None:
    async with RiffleClient(worker, framing=framing) as client, RiffleClient(worker) as neighbour:
        for n in range(10):
            await client.put_item(Item(f"item-{n}", title=f"Title {n}"))
        async with asyncio.timeout(60):
            slate = await client.recommend(Request("first", "ann", k=5), 10_000)
            while len(slate.items) < 5:
                slate = await client.recommend(Request("first", "ann", k=5), 10_000)
        assert slate.request_id == "first"
        touched = slate.items[0].item_id
        token = (await client.send_events([Interaction("e", "ann", touched, 1_700_000_000_000)]))[0]
        slate = await neighbour.recommend(Request("second", "ann", k=5, after=token, explain=True), 10_000)
        assert touched not in {item.item_id for item in slate.items}
        assert "stale" not in slate.degraded
        assert all(item.explanation for item in slate.items)
        with pytest.raises(BadRequest):
            await client.recommend(Request("third", "ann", k=100_000), 10_000)
        many = await asyncio.gather(*(client.recommend(Request(f"r{n}", f"user-{n}"), 10_000) for n in range(50)))
        assert [answer.request_id for answer in many] == [f"r{n}" for n in range(50)]
        assert client.waiting == 0
        await client.delete_item(touched)


async def test_a_client_without_a_broker_says_so(fresh: Settings) -> None:
    nowhere = Settings(home=fresh.home, bootstrap="127.0.0.1:1")
    with pytest.raises(NotReady):
        await RiffleClient(nowhere).start()
