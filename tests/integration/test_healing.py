"""The broker refuses, forgets or loses data under a running worker: it recovers by itself and reports the remedy."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from stream_check import ITEMS, Sent

from schemas.codec import encode
from schemas.errors import ConfigError, RiffleError
from schemas.kernels import partition_of
from schemas.records import Interaction, Request
from schemas.settings import Settings
from streams.kafka.client import RiffleClient
from streams.kafka.topics import TOPICS, ensure_topics

pytestmark = pytest.mark.integration
WITHIN_S = 60.0


@asynccontextmanager
async def admin_of(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def limit(settings: Settings, name: str, most_bytes: int) -> None:
    async with admin_of(settings) as admin:
        resource = ConfigResource(ConfigResourceType.TOPIC, settings.topic(name), {"max.message.bytes": str(most_bytes)})
        await admin.alter_configs([resource])


async def asked(settings: Settings, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, settings.web + path, **options) as response:
        return response.status, await response.json()


async def comes(settings: Settings, holds: Callable[[Mapping[str, Any]], bool]) -> Mapping[str, Any]:
    """Return the answer of `/readyz` as soon as `holds` accepts it."""
    said: Mapping[str, Any] = {}
    try:
        async with asyncio.timeout(WITHIN_S):
            while True:
                said = (await asked(settings, "GET", "/readyz"))[1]
                if holds(said):
                    return said
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"it never came; the worker says {said}")


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not await holds():  # noqa: ASYNC110 - another process causes the change
            await asyncio.sleep(0.1)


async def known(settings: Settings, user: str) -> None:
    """Wait until the worker knows this user."""

    async def found() -> bool:
        return (await asked(settings, "GET", f"/v1/users/{user}"))[0] == 200

    await until(found)


async def counter(settings: Settings, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(settings.web + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"riffle_{name}"))


@pytest.fixture
async def sent(worker: Settings) -> AsyncIterator[Sent]:
    made = Sent(worker, seed=1)
    await made.start()
    yield made
    await made.stop()


async def test_an_item_that_its_topic_does_not_take_is_refused_and_the_next_is_not(worker: Settings) -> None:
    await limit(worker, "items", 100_000)
    text = {"title": "t", "text": "x" * 60_000, "attributes": {f"a{n}": "y" * 4_000 for n in range(75)}}
    status, body = await asked(worker, "PUT", "/v1/items/large", json=text)
    assert (status, body["error"]["code"]) == (413, "too_large")
    for n in range(3):
        assert (await asked(worker, "PUT", f"/v1/items/i{n}", json={"title": "t"}))[0] == 202
    assert await counter(worker, "producers_replaced_total") == 1


async def test_a_fenced_partition_is_opened_anew_and_nothing_is_lost(sent: Sent) -> None:
    settings = sent.settings
    await sent.events(200)
    for partition in (0, 1):
        thief = AIOKafkaProducer(
            bootstrap_servers=settings.bootstrap_servers,
            transactional_id=f"{settings.app_id}-{settings.topic('users-changelog')}-{partition}",
        )
        await thief.start()
        await thief.stop()
    await sent.events(400)
    await sent.check()
    await comes(settings, lambda said: said["ready"])
    assert await counter(settings, "partitions_failed_total") >= 1


async def test_a_changelog_that_takes_no_rows_is_named_and_goes_on_when_it_does(sent: Sent) -> None:
    settings = sent.settings
    await sent.events(100)
    await limit(settings, "users-changelog", 200)
    await sent.events(100)
    said = await comes(settings, lambda said: not said["ready"] and "troubles" in said["reasons"])
    for _ in range(30):  # reopening alone does not make it ready: a row must be written first
        assert (await asked(settings, "GET", "/readyz"))[0] == 503
        await asyncio.sleep(0.1)
    await limit(settings, "users-changelog", 2_097_152)
    topic = settings.topic("users-changelog")
    assert all(f"{topic}: MESSAGE_TOO_LARGE" in why for why in said["reasons"]["troubles"].values())
    await sent.events(100)
    await sent.check()
    await comes(settings, lambda said: said["ready"])


async def test_events_deleted_before_they_were_applied_are_reported_with_their_range(
    fresh: Settings, worker_of: Callable[[Settings], Any]
) -> None:
    worker, sent = worker_of(fresh), Sent(fresh, seed=2)
    await asyncio.to_thread(worker.start)
    await sent.start()
    await sent.events(100)
    await sent.check()
    await asyncio.to_thread(worker.stop)
    topic = fresh.topic("interactions")
    async with AIOKafkaConsumer(bootstrap_servers=fresh.bootstrap_servers) as consumer:
        applied = await consumer.end_offsets([TopicPartition(topic, p) for p in range(fresh.partitions)])
    await sent.events(200)
    async with AIOKafkaConsumer(bootstrap_servers=fresh.bootstrap_servers) as consumer:
        ends = await consumer.end_offsets(list(applied))
    async with admin_of(fresh) as admin:
        await admin.delete_records({tp: RecordsToDelete(end) for tp, end in ends.items()})
    await sent.events(50)
    await asyncio.to_thread(worker.start)
    said = await comes(fresh, lambda said: "events_missing" in said["warnings"])
    # one offset alone may have been the end of a transaction
    lost = {tp.partition: (applied[tp], ends[tp]) for tp in ends if ends[tp] > applied[tp] + 1}
    for partition, (first, end) in lost.items():
        assert f"{topic}-{partition}: records {first} to {end - 1}" in said["warnings"]["events_missing"]
    assert await counter(fresh, "events_missing_total") == sum(end - first for first, end in lost.values())
    await sent.stop()


async def test_tables_and_changelog_that_are_gone_are_made_again_from_the_events(
    fresh: Settings, worker_of: Callable[[Settings], Any]
) -> None:
    worker, sent = worker_of(fresh), Sent(fresh, seed=3)
    await asyncio.to_thread(worker.start)
    await sent.start()
    await sent.events(200)
    await sent.check()
    await asyncio.to_thread(worker.stop)
    shutil.rmtree(fresh.data_dir / "tables")
    async with admin_of(fresh) as admin:
        await admin.delete_topics([fresh.topic("users-changelog")])
        await asyncio.sleep(1)
        await admin.create_topics(
            [NewTopic(fresh.topic("users-changelog"), fresh.partitions, 1, topic_configs={"cleanup.policy": "compact"})]
        )
    await asyncio.to_thread(worker.start)
    await comes(fresh, lambda said: said["ready"])
    await sent.events(50)
    await sent.check(neighbours=False)
    await sent.stop()


async def test_a_changelog_that_is_lost_under_a_running_worker_gets_its_rows_again(sent: Sent) -> None:
    settings = sent.settings
    await sent.events(200)
    await sent.check()
    async with admin_of(settings) as admin:
        await admin.delete_topics([settings.topic("users-changelog")])
    # some rows are written to the new topic before the worker detects that it is another one
    for _ in range(6):
        await sent.events(20)
        await asyncio.sleep(0.5)
    await sent.check(timeout_s=120, neighbours=False)
    await comes(settings, lambda said: said["ready"])


async def test_a_topic_that_is_made_anew_is_read_from_its_beginning(sent: Sent) -> None:
    """The new topic is longer than the old one, so that its length does not reveal it."""
    settings = sent.settings
    await sent.events(40)
    await sent.check()
    topic = settings.topic("interactions")
    async with admin_of(settings) as admin:
        await admin.delete_topics([topic])
        await asyncio.sleep(0.5)
        await admin.create_topics([NewTopic(topic, settings.partitions, 1)])
    users = [f"new{n}" for n in range(200)]
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for n, user in enumerate(users):
            event = Interaction(f"n{n}", user, ITEMS[n % 40], 1_700_000_000_000 + n)
            datum = {name: getattr(event, name) for name in Interaction.__dataclass_fields__}
            await producer.send_and_wait(topic, encode("interaction", datum), key=user.encode())
    for user in users:
        await known(settings, user)
    await comes(settings, lambda said: said["ready"])


async def test_partitions_that_are_added_are_named_and_take_no_events_from_here(worker: Settings) -> None:
    topic = worker.topic("interactions")
    async with admin_of(worker) as admin:
        await admin.create_partitions({topic: NewPartitions(worker.partitions * 2)})
    said = await comes(worker, lambda said: f"topic {topic}" in said["warnings"])
    assert "it has 8 partitions, these settings require 4" in said["warnings"][f"topic {topic}"]
    events = [{"user_id": f"u{n}", "item_id": "i"} for n in range(64)]
    status, body = await asked(worker, "POST", "/v1/events", json=events)
    assert status == 202
    assert [token["partition"] for token in body["tokens"]] == [partition_of(f"u{n}".encode(), 4) for n in range(64)]
    for n in range(64):
        await known(worker, f"u{n}")


async def test_requests_are_answered_after_their_topic_was_made_anew(worker: Settings) -> None:
    client = RiffleClient(worker)
    await client.start()
    try:
        for n in range(40):
            await client.recommend(Request(f"r{n}", f"u{n}"), 5_000)
        async with admin_of(worker) as admin:
            await admin.delete_topics([worker.topic("requests")])

        async def answered() -> bool:
            try:
                await client.recommend(Request("again", "u1"), 1_000)
            except RiffleError:
                return False
            return True

        await until(answered)
        for n in range(40):  # none of them waits until the new topic is as long as the old one
            await client.recommend(Request(f"s{n}", f"u{n}"), 30_000)
    finally:
        await client.stop()


async def test_a_worker_starts_though_partitions_were_added(fresh: Settings, worker_of: Callable[[Settings], Any]) -> None:
    await ensure_topics(fresh)
    async with admin_of(fresh) as admin:
        await admin.create_partitions({fresh.topic("interactions"): NewPartitions(fresh.partitions + 2)})
    await asyncio.to_thread(worker_of(fresh).start)
    await comes(fresh, lambda said: said["ready"] and f"topic {fresh.topic('interactions')}" in said["warnings"])
    with pytest.raises(ConfigError, match="riffle topics copy"):
        await ensure_topics(replace(fresh, partitions=fresh.partitions + 2))


async def test_a_topic_that_is_missing_is_created(worker: Settings) -> None:
    async with admin_of(worker) as admin:
        await admin.delete_topics([worker.topic("impressions"), worker.topic("dead-letters")])

        async def complete() -> bool:
            return {worker.topic(name) for name in TOPICS} <= set(await admin.list_topics())

        await until(complete)
