"""A worker whose schema registry fails processes records without a registered schema; others wait or are produced again."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from conftest import WorkerProcess, free_port
from fakes import FakeRegistry, RegistryServer, registry_server

from models.archive.standing import standing_events
from models.archive.target import LocalFolder
from models.items.vectors import ItemVector, fingerprint
from schemas.codec import Framing, decode, encode, framing_of, schema_text
from schemas.errors import NotReady
from schemas.kernels import partition_of
from schemas.records import Item
from schemas.settings import Settings
from streams.encoding import ItemEncoding
from streams.kafka.dead_letters import read_letters, replay_letters
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration

PATIENCE_S = 60.0
JSON = ("content-type", b"application/json")
IDS = FakeRegistry.of("interaction", "item", "request", "slate")
NOW = 1_700_000_000_000


def event(user: str, item: str) -> dict[str, Any]:
    return {"event_id": f"{user}-{item}", "user_id": user, "item_id": item, "event_time": NOW, "action": "view"}


async def become(wanted: Callable[[], Any], what: Any) -> None:
    """Wait until `wanted()`, which may return an awaitable, gives `what`."""
    found: Any = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            while found != what:
                found = wanted()
                found = await found if asyncio.iscoroutine(found) else found
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{found!r} is not {what!r}")


class Outside:
    """An external program: produces in any framing, and sends requests over Kafka and HTTP."""

    def __init__(self, settings: Settings, producer: AIOKafkaProducer, web: aiohttp.ClientSession) -> None:
        self.settings, self.producer, self.web = settings, producer, web
        self.replies = f"{settings.topic_prefix}answers"

    async def send(self, topic: str, name: str, body: dict[str, Any], framing: Framing, **more: Any) -> Any:
        key = str(body.get("user_id") or body["item_id"]).encode()
        headers = [*more.pop("headers", ()), *([JSON] if framing is Framing.JSON else ())]
        value = encode(name, body, framing, IDS)
        return await self.producer.send_and_wait(self.settings.topic(topic), value, key=key, headers=headers, **more)

    async def ask(self, user: str, framing: Framing) -> tuple[Framing, dict[str, Any]]:
        """Send a request; returns framing and body of the answer."""
        correlation = uuid.uuid4().hex.encode()
        consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers, auto_offset_reset="earliest")
        headers = [
            ("Faust-Ag-ReplyTo", self.replies.encode()),
            ("Faust-Ag-CorrelationId", correlation),
            ("deadline-ms", b"5000"),
        ]
        await self.producer.client.add_topic(self.replies)
        await self.send("requests", "request", {"user_id": user, "k": 3}, framing, headers=headers)
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self.replies, 0)])
            async with asyncio.timeout(PATIENCE_S):
                async for record in consumer:
                    if dict(record.headers)["Faust-Ag-CorrelationId"] == correlation:
                        used = framing_of(record.value, record.headers)
                        body = decode("slate", record.value, record.headers, IDS)[0]
                        return used, body["value"] if used is Framing.JSON else body
        finally:
            await consumer.stop()
        raise AssertionError

    async def events_of(self, user: str) -> int:
        async with self.web.get(f"/v1/users/{user}") as response:
            return int((await response.json()).get("events", 0))

    async def item_status(self, item: str) -> int:
        async with self.web.get(f"/v1/items/{item}") as response:
            return response.status


@asynccontextmanager
async def outside(settings: Settings) -> AsyncIterator[Outside]:
    async with (
        AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all") as producer,
        aiohttp.ClientSession(settings.web) as web,
    ):
        made = Outside(settings, producer, web)
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
        try:
            await admin.start()
            await admin.create_topics([NewTopic(made.replies, 1, 1)])
        finally:
            await admin.close()
        yield made


@pytest.mark.parametrize("mood", ["500", "hang"])
async def test_what_needs_no_registry_goes_on_and_what_needs_it_comes_back(
    fresh: Settings, mood: str, worker_of: Callable[[Settings], WorkerProcess]
) -> None:
    with registry_server(schemas=[schema_text(name) for name in IDS.names], mood=mood) as server:
        settings = replace(fresh, registry_url=server.url, archive_interval_s=0.2)
        worker = await asyncio.to_thread(worker_of(settings).start)
        async with outside(settings) as other:
            await goes_on(other)
            assert worker.process is not None
            assert worker.process.poll() is None
            server.mood = "sound"
            server.released.set()
            await comes_back(other, server)


async def goes_on(other: Outside) -> None:
    await other.send("items", "item", {"item_id": "waits", "title": "t"}, Framing.CONFLUENT)
    await other.send("items", "item", {"item_id": "plain", "title": "t"}, Framing.JSON)
    people = [f"u{n}" for n in range(12)]
    await other.send("interactions", "interaction", event("u0", "needs"), Framing.CONFLUENT)
    for n, user in enumerate(people):
        await other.send("interactions", "interaction", event(user, "plain"), list(Framing)[n % 2 * 2])
    for user in people:
        await become(partial(other.events_of, user), 1)
    await become(lambda: other.item_status("plain"), 200)
    assert await other.item_status("waits") == 404
    used, answer = await other.ask("u1", Framing.CONFLUENT)
    assert (used, answer["error"]["code"]) == (Framing.JSON, "registry_unavailable")
    used, answer = await other.ask("u1", Framing.JSON)
    assert "items" in answer


async def comes_back(other: Outside, server: RegistryServer) -> None:
    settings = other.settings
    await become(lambda: other.item_status("waits"), 200)
    letters = [letter async for letter in read_letters(settings)]
    assert [(letter["code"], letter["key"]) for letter in letters] == [("registry_unavailable", b"u0")]
    assert (await replay_letters(settings, letters))["sent"] == 1
    await become(lambda: other.events_of("u0"), 2)

    async def answered() -> Framing:
        used, answer = await other.ask("u1", Framing.CONFLUENT)
        assert answer["error"] is None or answer["error"]["code"] == "registry_unavailable"
        return used

    await become(answered, Framing.CONFLUENT)
    target = LocalFolder(settings.home / "archive")

    def archived() -> set[str]:
        found = standing_events(target).collect()
        return set(found.filter(found["user_id"] == "u0")["item_id"]) if found.height else set()

    await become(archived, {"plain", "needs"})
    assert max(server.calls.values()) < 200


async def test_an_event_on_another_partition_is_a_dead_letter_until_it_is_produced_where_it_belongs(worker: Settings) -> None:
    fresh = worker
    async with outside(fresh) as other:
        mine = partition_of(b"ann", fresh.partitions)
        wrong = (mine + 1) % fresh.partitions
        for framing in (Framing.JSON, Framing.SINGLE_OBJECT):
            await other.send("interactions", "interaction", event("ann", framing.value), framing, partition=wrong)
        await other.send("interactions", "interaction", event("ann", "right"), Framing.JSON)
        await become(lambda: other.events_of("ann"), 1)
        await become(lambda: _codes(fresh), ["wrong_partition"] * 2)
        async with other.web.get("/metrics") as response:
            assert 'riffle_wrong_partition_total{topic="interactions"} 2.0\n' in await response.text()
        letters = [letter async for letter in read_letters(fresh)]
        assert all("murmur2_random" in letter["reason"] for letter in letters)
        assert (await replay_letters(fresh, letters))["sent"] == 2
        await become(lambda: other.events_of("ann"), 3)
        # and an erasure
        erase = [("riffle-op", b"erase")]
        await other.producer.send_and_wait(fresh.topic("interactions"), None, key=b"ann", headers=erase, partition=wrong)
        await become(lambda: _codes(fresh), ["wrong_partition"] * 3)
        await replay_letters(fresh, [letter async for letter in read_letters(fresh)][2:])
        await become(lambda: other.events_of("ann"), 0)


class SmallEncoders:
    """Encoders that give one vector per title."""

    counters: Mapping[str, int] = {}
    names = ("small",)

    def encode(self, items: Sequence[Item]) -> list[tuple[ItemVector, ...]]:
        shas = [hashlib.sha256(item.title.encode()).digest() for item in items]
        return [(ItemVector("text", "small", sha, np.frombuffer(sha[:8], np.uint8).astype(np.float16)),) for sha in shas]

    def fingerprints(self, items: Sequence[Item]) -> list[int]:
        made = self.encode(items)
        return [fingerprint((v.modality, v.encoder, v.content_sha256) for v in vectors) for vectors in made]


@pytest.mark.parametrize("restarted", [False, True])
async def test_the_encoder_goes_on_and_comes_back_to_what_had_no_schema(
    fresh: Settings, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.encoding.RETRY_S", 0.2)
    await ensure_topics(fresh)
    async with outside(fresh) as other:
        for title in ("old", "new"):
            await other.send("items", "item", {"item_id": "waits", "title": title}, Framing.CONFLUENT)
        await other.send("items", "item", {"item_id": "plain", "title": "t"}, Framing.JSON)
    registry = FakeRegistry({2: NotReady("registry_unavailable", "away")})
    encoding = ItemEncoding(fresh, SmallEncoders(), registry)
    running = asyncio.create_task(encoding.run())
    await become(lambda: encoding.counters["encoded"] >= 1 and encoding.counters["waits"] >= 2, True)
    if restarted:
        encoding.stop()
        await running
        with pytest.raises(NotReady, match="left out"):
            await ItemEncoding(fresh, SmallEncoders(), registry).run(once=True)
        encoding = ItemEncoding(fresh, SmallEncoders(), registry)
        running = asyncio.create_task(encoding.run())
    registry.schemas[2] = schema_text("item")
    await become(lambda: encoding.counters["encoded"], 1 if restarted else 2)
    encoding.stop()
    await running
    assert (encoding.counters["unchanged"] >= 1, encoding.counters["bad"]) == (True, 0)


async def _codes(settings: Settings) -> list[str]:
    return [letter["code"] async for letter in read_letters(settings)]


async def test_a_request_under_another_key_is_told_so_by_a_worker_without_the_person(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], WorkerProcess]
) -> None:
    two = replace(fresh, home=tmp_path / "two", web_port=free_port())
    two.home.mkdir()
    for settings in (fresh, two):
        await asyncio.to_thread(worker_of(settings).start)
    async with outside(fresh) as other:
        headers = [("Faust-Ag-ReplyTo", other.replies.encode()), ("deadline-ms", b"20000")]
        await other.producer.client.add_topic(other.replies)
        sent = {}
        for partition in range(fresh.partitions):
            correlation = uuid.uuid4().hex.encode()
            sent[correlation] = partition
            value = json.dumps({"user_id": "1"}).encode()
            heads = [*headers, JSON, ("Faust-Ag-CorrelationId", correlation)]
            await other.producer.send_and_wait(fresh.topic("requests"), value, key=b"2", partition=partition, headers=heads)
        consumer = AIOKafkaConsumer(bootstrap_servers=fresh.bootstrap_servers, auto_offset_reset="earliest")
        await consumer.start()
        told: dict[int, str] = {}
        try:
            consumer.assign([TopicPartition(other.replies, 0)])
            async with asyncio.timeout(PATIENCE_S):
                while len(told) < len(sent):
                    record = await consumer.getone()
                    correlation = dict(record.headers)["Faust-Ag-CorrelationId"]
                    told[sent[correlation]] = json.loads(record.value)["value"].get("error", {"code": "slate"})["code"]
        finally:
            await consumer.stop()
        assert told[partition_of(b"1", fresh.partitions)] == "slate"
        assert set(told.values()) == {"slate", "key_mismatch"}
