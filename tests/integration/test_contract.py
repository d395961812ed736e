"""An independent client, written from the contract alone, works: aiokafka, fastavro, json and the published schemas."""

from __future__ import annotations

import asyncio
import io
import json
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import fastavro
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

pytestmark = pytest.mark.integration

SCHEMAS = Path(__file__).parents[2] / "schemas"
JSON = ("content-type", b"application/json")


def schema(name: str) -> Any:
    return fastavro.parse_schema(json.loads((SCHEMAS / f"{name}.avsc").read_text()))


def avro(name: str, datum: dict[str, Any]) -> bytes:
    parsed = schema(name)
    canonical = fastavro.schema.to_parsing_canonical_form(parsed)
    out = io.BytesIO(b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")))
    out.seek(10)
    fastavro.schemaless_writer(out, parsed, datum)
    return out.getvalue()


def from_avro(name: str, value: bytes) -> dict[str, Any]:
    assert value[:2] == b"\xc3\x01"
    datum: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[10:]), schema(name))
    return datum


class Client:
    """A client that follows the contract and imports nothing of Riffle."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap, self.prefix = bootstrap, prefix
        self.reply_topic = f"{prefix}test-replies"
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.answers: list[str] = []

    async def __aenter__(self) -> Client:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(self.reply_topic, 1, 1)])
        await admin.close()
        self.producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")
        await self.producer.start()
        self.consumer = AIOKafkaConsumer(self.reply_topic, bootstrap_servers=self.bootstrap, auto_offset_reset="earliest")
        await self.consumer.start()
        self.task = asyncio.create_task(self._drain())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.consumer.stop()
        await self.producer.stop()

    async def _drain(self) -> None:
        async for record in self.consumer:
            correlation = dict(record.headers)["Faust-Ag-CorrelationId"].decode()
            self.answers.append(correlation)
            if correlation in self.waiting:
                self.waiting[correlation].set_result(record)

    async def event(self, fmt: str, **fields: Any) -> dict[str, int]:
        datum = {"event_id": uuid.uuid4().hex, "action": "view", **fields}
        value = json.dumps(datum).encode() if fmt == "json" else avro("interaction", datum)
        headers = [JSON] if fmt == "json" else []
        meta = await self.producer.send_and_wait(
            f"{self.prefix}interactions", value, key=datum["user_id"].encode(), headers=headers
        )
        return {"partition": meta.partition, "offset": meta.offset}

    async def item(self, **fields: Any) -> None:
        await self.producer.send_and_wait(
            f"{self.prefix}items", json.dumps(fields).encode(), key=fields["item_id"].encode(), headers=[JSON]
        )

    async def raw_ask(self, value: bytes, headers: list[tuple[str, bytes]], key: bytes = b"u") -> Any:
        correlation = uuid.uuid4().hex
        future = self.waiting[correlation] = asyncio.get_running_loop().create_future()
        await self.producer.send_and_wait(
            f"{self.prefix}requests",
            value,
            key=key,
            headers=[
                ("Faust-Ag-ReplyTo", self.reply_topic.encode()),
                ("Faust-Ag-CorrelationId", correlation.encode()),
                *headers,
            ],
        )
        record = await asyncio.wait_for(future, 20)
        assert dict(record.headers)["Faust-Ag-CorrelationId"].decode() == correlation
        return record

    async def ask(self, fmt: str = "json", deadline_ms: int = 5_000, **body: Any) -> dict[str, Any]:
        value = json.dumps(body).encode() if fmt == "json" else avro("request", body)
        headers = [("deadline-ms", str(deadline_ms).encode())] + ([JSON] if fmt == "json" else [])
        record = await self.raw_ask(value, headers, body["user_id"].encode())
        if fmt == "json":
            reply = json.loads(record.value)
            assert set(reply) == {"key", "value", "correlation_id"}
            assert reply["correlation_id"] == dict(record.headers)["Faust-Ag-CorrelationId"].decode()
            return dict(reply["value"])
        return from_avro("slate", record.value)


def ids(slate: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in slate["items"]]


async def eventually(check: Any, timeout_s: float = 20.0) -> Any:
    end = asyncio.get_running_loop().time() + timeout_s
    while not (found := await check()):
        assert asyncio.get_running_loop().time() < end, "condition not met in time"
        await asyncio.sleep(0.05)
    return found


async def catalogue(client: Client, http: aiohttp.ClientSession, n: int = 60) -> None:
    for k in range(n):
        await client.item(
            item_id=f"i{k}",
            title=f"Item {k} {'jazz' if k % 2 else 'rock'}",
            categories=["odd" if k % 2 else "even"],
            published_at=1_700_000_000_000 + k,
        )

    async def known() -> bool:
        async with http.get(f"/v1/items/i{n - 1}") as response:
            return response.status == 200

    await eventually(known)


async def test_events_change_slates_over_kafka_and_http(fresh: Any, worker_of: Any) -> None:
    worker_of(fresh).start()
    async with Client(fresh.bootstrap_servers, fresh.topic_prefix) as client, aiohttp.ClientSession(fresh.web) as http:
        await catalogue(client, http)
        before = await client.ask(user_id="ann", k=10, explain=True)
        assert len(before["items"]) == 10
        assert before["items"][0]["sources"]
        assert before["items"][0]["explanation"]
        for fmt in ("json", "avro"):
            gone = ids(await client.ask(user_id="ann", k=10))[0]
            token = await client.event(fmt, user_id="ann", item_id=gone, event_time=1_700_000_100_000)
            after = await client.ask(fmt, user_id="ann", k=10, after=token)
            assert gone not in ids(after)
            assert "stale" not in after["degraded"]
            assert after["as_of"]["offset"] >= token["offset"]
        excluded = ids(before)[:5]
        slate = await client.ask(user_id="bob", k=20, exclude=excluded, categories=["odd"])
        assert slate["items"]
        assert not set(ids(slate)) & set(excluded)
        assert all(int(item[1:]) % 2 for item in ids(slate))
        ranked = await client.ask(user_id="ann", k=5, candidates=["i40", "i41", "nothing"])
        assert set(ids(ranked)) == {"i40", "i41"}
        token = {"partition": slate["as_of"]["partition"], "offset": 10**9}
        assert "stale" in (await client.ask(user_id="bob", k=3, after=token, deadline_ms=400))["degraded"]
        # HTTP: the same answers, tokens and errors
        async with http.post("/v1/events", json={"user_id": "cid", "item_id": "i3"}) as response:
            assert response.status == 202
            body = await response.json()
            assert body["accepted"] == 1
        after_text = f"{body['tokens'][0]['partition']}:{body['tokens'][0]['offset']}"
        async with http.get(f"/v1/recommend/cid?k=59&after={after_text}") as response:
            assert response.status == 200
            assert "i3" not in ids(await response.json())
        async with http.delete("/v1/items/i5") as response:
            assert response.status == 202

        async def hidden() -> bool:
            return "i5" not in ids(await client.ask(user_id="dan", k=100))

        await eventually(hidden)
        async with http.get("/v1/users/cid") as response:
            assert (await response.json())["events"] == 1
        async with http.delete("/v1/users/cid") as response:
            token = (await response.json())["token"]
        assert "i3" in ids(await client.ask(user_id="cid", k=100, after=token))
        async with http.get("/v1/users/cid") as response:
            assert response.status == 404
        async with http.get("/v1/similar/i1?k=3") as response:
            assert len((await response.json())["items"]) == 3
        assert len(client.answers) == len(set(client.answers)), "a request was answered twice"


async def test_malformed_input_is_answered_and_costs_its_neighbours_nothing(fresh: Any, worker_of: Any) -> None:
    worker_of(fresh).start()
    bad_values = [b"", b"\x00", b"\xc3\x01garbage", b"{}", b"[1]", b"\xff" * 40, b'{"user_id": []}', b"null"]
    async with Client(fresh.bootstrap_servers, fresh.topic_prefix) as client, aiohttp.ClientSession(fresh.web) as http:
        await catalogue(client, http, 10)
        tokens = []
        for n in range(100):
            tokens.append(await client.event("json", user_id=f"u{n % 7}", item_id=f"i{n % 10}", event_time=n + 1))
            await client.producer.send_and_wait(
                f"{fresh.topic_prefix}interactions",
                bad_values[n % len(bad_values)],
                key=None if n % 9 == 0 else b"u1",
                headers=[JSON] if n % 2 else [],
            )
        letters = AIOKafkaConsumer(
            f"{fresh.topic_prefix}dead-letters",
            bootstrap_servers=fresh.bootstrap_servers,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await letters.start()
        got: list[dict[str, Any]] = []
        while len(got) < 100:
            fetched = await asyncio.wait_for(letters.getone(), 20)
            got.append(from_avro("dead_letter", fetched.value))
        await letters.stop()
        origins = {(letter["partition"], letter["offset"]) for letter in got}
        assert len(origins) == 100
        assert all(letter["reason"] and letter["code"] and letter["topic"].endswith("interactions") for letter in got)
        assert not origins & {(token["partition"], token["offset"]) for token in tokens}
        total = 0
        for user in range(7):
            async with http.get(f"/v1/users/u{user}") as response:
                total += (await response.json())["events"]
        assert total == 100
        for n in range(100):
            record = await client.raw_ask(bad_values[n % len(bad_values)], [JSON] if n % 3 else [])
            if record.value[:2] == b"\xc3\x01":
                assert from_avro("slate", record.value)["error"]["code"]
            else:
                assert json.loads(record.value)["value"]["error"]["code"]
        assert (await client.ask(user_id="u1", k=3))["user_id"] == "u1"
        bodies = [b"", b"{", b"3", b'"x"', b"[[]]", b'{"user_id": ""}', b"[" * 5000, b'{"item_id": "i1"}', b"\xff\xfe"]
        accepted = rejected = 0
        for n in range(100):
            async with http.post("/v1/events", data=bodies[n % len(bodies)]) as response:
                body = await response.json()
                if response.status == 202:
                    assert body["accepted"] == 0
                    assert body["rejected"][0]["error"]["code"]
                else:
                    assert response.status == 400
                    assert body["error"]["code"]
                rejected += 1
            async with http.post("/v1/events", json=[{"user_id": "web", "item_id": "i1"}, {"nope": 1}]) as response:
                body = await response.json()
                assert (response.status, body["accepted"], body["rejected"][0]["index"]) == (202, 1, 1)
                accepted += 1
        assert (accepted, rejected) == (100, 100)
        for path in ("/v1/nothing", "/v1/recommend/u1?k=0", "/v1/recommend/u1?k=x", "/v1/recommend/u1?after=1"):
            async with http.get(path) as response:
                assert response.status in (400, 404)
                assert (await response.json())["error"]["code"]
        async with http.post("/v1/events", data=io.BytesIO(b"x" * (2 << 20))) as response:
            assert response.status == 413
