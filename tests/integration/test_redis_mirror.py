"""Summaries of users in Redis follow the stream, and are deleted when a user is erased."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import redis.asyncio
from click.testing import CliRunner
from mirror_contract import keeps

from agents.cli.doctor import doctor
from schemas.backend_login import BackendLogin
from schemas.records import Interaction, Item
from schemas.settings import Settings
from schemas.watched import Stamp
from streams.kafka.produce import produce_events, produce_items
from streams.mirror import redis as redis_store
from streams.mirror.stores import mirror_at, store_at

pytestmark = pytest.mark.integration


async def until(client: Any, name: str, holds: Callable[[Any], bool]) -> Any:
    async with asyncio.timeout(20):
        while not holds(found := await client.get(name)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return found


def call(settings: Settings, path: str, method: str = "GET") -> dict[str, Any]:
    request = urllib.request.Request(settings.web + path, method=method)
    with urllib.request.urlopen(request, timeout=10) as response:
        return dict(json.load(response))


async def test_the_mirror_follows_the_stream_and_forgets_who_is_erased(worker: Settings) -> None:
    client = redis.asyncio.Redis.from_url(worker.redis)
    name = f"{worker.topic_prefix}user:ann"
    try:
        await produce_items(worker, [Item("i1", categories=("tea",)), Item("i2")])
        await produce_events(worker, [Interaction("e1", "ann", "i1", 1_000_000, "like", 5.0)])
        first = json.loads(await until(client, name, lambda found: found is not None))
        assert first["counts"] == {"like": 1}
        # the owner shows the seen-set besides, which no mirror has
        owners = await asyncio.to_thread(call, worker, "/v1/users/ann")
        assert first == {field: value for field, value in owners.items() if field != "seen_set"}
        assert await client.ttl(name) > 0
        await produce_events(worker, [Interaction("e2", "ann", "i2", 1_000_001, "view")])
        await until(client, name, lambda found: json.loads(found)["events"] == 2)
        await asyncio.to_thread(call, worker, "/v1/users/ann", "DELETE")
        await until(client, name, lambda found: found is None)
    finally:
        await client.aclose()


@pytest.mark.parametrize("options", ["", "?decode_responses=True"])
async def test_redis_keeps_the_contract_of_a_store(stack: Settings, options: str) -> None:
    await keeps(store_at(f"{stack.redis}{options}", f"contract{len(options)}."))


class Changing(BackendLogin):
    """A login whose files change when `stamp` does."""

    stamp = 0

    @property
    def stamps(self) -> tuple[Stamp, Stamp]:
        return (0, 0, self.stamp), (0, 0, 0)


async def test_commands_that_are_under_way_end_though_the_files_of_the_login_change(
    stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = redis_store.Store(stack.redis, "changing.", login=Changing("redis"))
    client = redis.asyncio.Redis.from_url(stack.redis)
    try:
        await store.write({"ann": b"1"})
        await client.client_pause(500)  # Redis answers nobody for this long
        reading = [asyncio.create_task(store.read("ann")) for _ in range(4)]
        await asyncio.sleep(0.1)
        monkeypatch.setattr(Changing, "stamp", 1)
        await store.write({"bob": b"2"})
        assert await asyncio.gather(*reading) == [b"1"] * 4
        assert await store.read("bob") == b"2"
    finally:
        await store.close()
        await client.aclose()


def test_doctor_asks_the_store_of_the_mirror(stack: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, ok in ((stack.redis, True), ("redis://127.0.0.1:1/0", False)):
        monkeypatch.setenv("RIFFLE_REDIS_URL", url)
        done = CliRunner().invoke(doctor, ["--json"])
        checks = {check["check"]: check["ok"] for check in json.loads(done.output)}
        assert checks[f"the mirror answers at {url}"] == ok


async def test_a_redis_that_is_gone_costs_counts_and_nothing_else() -> None:
    mirror = mirror_at("redis://127.0.0.1:1/0", "x.")
    mirror.put("ann", {"events": 1})
    mirror.remove("bob")
    await mirror.flush()
    assert mirror.counters["failed"] == 2
    assert await mirror.get("ann") is None
    assert mirror.counters["failed_reads"] == 1
    await mirror.stop()
