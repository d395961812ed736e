"""Malformed records among good ones: each becomes a dead letter with reason and origin, and its neighbours are unaffected."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from schemas.codec import decode, encode
from schemas.settings import Settings

pytestmark = pytest.mark.integration

JSON_HEADERS = [("content-type", b"application/json")]
START_MS = 1_700_000_000_000
USERS = 10
GOOD_PER_BAD = 3
BAD = 100
PATIENCE_S = 60.0


def good(n: int) -> dict[str, Any]:
    user = f"user-{n % USERS}"
    return {"event_id": f"e{n}", "user_id": user, "item_id": f"item-{n}", "event_time": START_MS + n, "action": "view"}


def poison(n: int) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Key, value and headers of the n-th malformed record, of eleven kinds."""
    event = good(1_000_000 + n)
    key = event["user_id"].encode()
    avro = encode("interaction", event)
    as_json = json.dumps(event).encode()
    ways: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
        (key, b"", []),
        (key, None, []),
        (None, avro, []),
        (b"somebody else", avro, []),
        (key, avro[: 12 + n % 5], []),
        (key, avro + b"\x00", []),
        (key, b"\xc3\x01" + bytes(8) + avro[10:], []),
        (key, b"\x7fgarbage", []),
        (key, as_json[:-1], [*JSON_HEADERS]),
        (key, json.dumps({**event, "event_time": "yesterday"}).encode(), [*JSON_HEADERS]),
        (key, b"\x7fgarbage", [("content-type", None)]),
    ]
    return ways[n % len(ways)]


def total(text: str, name: str, outcome: str) -> float:
    """Sum a counter over its series with this outcome."""
    found = re.findall(rf'^{name}{{[^}}]*outcome="{outcome}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(float(value) for value in found)


async def test_malformed_records_become_dead_letters_and_their_neighbours_are_unaffected(worker: Settings) -> None:
    topic = worker.topic("interactions")
    producer = AIOKafkaProducer(bootstrap_servers=worker.bootstrap_servers, acks="all", linger_ms=5)
    await producer.start()
    sent_bad, sent_good = [], []
    for n in range(BAD):
        key, value, headers = poison(n)
        sent_bad.append(await producer.send(topic, key=key, value=value, headers=headers))
        for m in range(n * GOOD_PER_BAD, (n + 1) * GOOD_PER_BAD):
            event = good(m)
            as_json = m % 2 == 0
            value = json.dumps(event).encode() if as_json else encode("interaction", event)
            key = event["user_id"].encode()
            sent_good.append(await producer.send(topic, key=key, value=value, headers=JSON_HEADERS if as_json else []))
    bad = {(meta.partition, meta.offset): n for n, meta in enumerate(await asyncio.gather(*sent_bad))}
    tokens = await asyncio.gather(*sent_good)
    await producer.stop()

    letters = await dead_letters(worker, BAD)
    assert {(letter["partition"], letter["offset"]) for letter in letters} == set(bad)
    for letter in letters:
        key, value, _ = poison(bad[letter["partition"], letter["offset"]])
        assert letter["topic"] == topic
        assert letter["code"]
        assert letter["reason"]
        assert letter["key"] == key
        assert letter["value"] == value

    async with aiohttp.ClientSession(worker.web) as session:
        for user in range(USERS):
            token = max((meta for n, meta in enumerate(tokens) if n % USERS == user), key=lambda meta: meta.offset)
            query = {"after": f"{token.partition}:{token.offset}", "deadline_ms": "10000"}
            async with session.get(f"/v1/recommend/user-{user}", params=query) as response:
                assert response.status == 200
                assert "stale" not in (await response.json())["degraded"]
            async with session.get(f"/v1/users/user-{user}") as response:
                assert (await response.json())["events"] == BAD * GOOD_PER_BAD // USERS
        async with session.get("/metrics") as response:
            text = await response.text()
    assert total(text, "riffle_events_total", outcome="dead_letter") == BAD
    assert total(text, "riffle_events_total", outcome="applied") == BAD * GOOD_PER_BAD
    assert total(text, "riffle_events_total", outcome="duplicate") == 0


class NoUtf8(str):
    """A header name of bytes that are not UTF-8, which clients other than aiokafka can send."""

    def encode(self, *_: str) -> bytes:
        return b"\xff\xfe\x80"


async def test_a_header_name_that_is_not_utf8_stops_nobody(worker: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("producer", "message_accumulator"):
        monkeypatch.setattr(f"aiokafka.producer.{module}.DefaultRecordBatchBuilder", _DefaultRecordBatchBuilderPy)
    odd = [*JSON_HEADERS, (NoUtf8("odd"), b"v")]
    event, item = good(5_000_000), {"item_id": "odd-item", "title": "odd"}
    request = {"user_id": event["user_id"]}
    async with AIOKafkaProducer(bootstrap_servers=worker.bootstrap_servers, acks="all") as producer:
        for topic, body in (("items", item), ("requests", request), ("interactions", event)):
            key = str(body["item_id"] if topic == "items" else body["user_id"]).encode()
            token = await producer.send_and_wait(worker.topic(topic), json.dumps(body).encode(), key=key, headers=odd)
    async with aiohttp.ClientSession(worker.web) as session:
        query = {"after": f"{token.partition}:{token.offset}", "deadline_ms": "10000"}
        async with session.get(f"/v1/recommend/{event['user_id']}", params=query) as response:
            assert response.status == 200
            assert "stale" not in (await response.json())["degraded"]
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with session.get("/v1/items/odd-item") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.1)
    letters = [letter for letter in await dead_letters(worker, 1) if letter["topic"] == worker.topic("requests")]
    assert [letter["code"] for letter in letters] == ["bad_headers"]
    assert "odd" not in letters[0]["headers"]


async def dead_letters(settings: Settings, count: int) -> list[dict[str, Any]]:
    """Read at least `count` dead letters, and on until a read finds none."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    found: list[dict[str, Any]] = []
    try:
        consumer.assign([TopicPartition(settings.topic("dead-letters"), 0)])
        async with asyncio.timeout(PATIENCE_S):
            while True:
                fetched = await consumer.getmany(timeout_ms=500)
                found += [decode("dead_letter", r.value, r.headers)[0] for rs in fetched.values() for r in rs]
                if len(found) >= count and not fetched:
                    return found
    finally:
        await consumer.stop()
