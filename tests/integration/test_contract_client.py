"""A second client, written from the contract alone, works: aiokafka, json, fastavro and the published `.avsc` files."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

pytestmark = pytest.mark.integration

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
JSON_HEADER = ("content-type", b"application/json")
START_MS = 1_700_000_000_000
PATIENCE_S = 60.0


class Avro:
    """Encodes and decodes Avro single objects of one published schema."""

    def __init__(self, name: str) -> None:
        self.schema = fastavro.parse_schema(json.loads((SCHEMAS / f"{name}.avsc").read_text()))
        canonical = fastavro.schema.to_parsing_canonical_form(self.schema)
        self.header = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))

    def encode(self, datum: dict[str, Any]) -> bytes:
        out = io.BytesIO(self.header)
        out.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(out, self.schema, datum)
        return out.getvalue()

    def decode(self, value: bytes) -> dict[str, Any]:
        assert value.startswith(self.header)
        datum: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[10:]), self.schema, None)
        return datum


class Program:
    """A client as another team would write it."""

    def __init__(self, settings: Any, encoding: str) -> None:
        self.settings = settings
        self.encoding = encoding
        self.avro = {name: Avro(name) for name in ("interaction", "item", "request", "slate")}
        self.reply_topic = f"replies-{uuid.uuid4().hex}"
        self.times = itertools.count(START_MS, 1_000)
        self.replies: dict[str, list[Any]] = {}
        self.arrived = asyncio.Condition()

    async def start(self) -> None:
        bootstrap = self.settings.bootstrap_servers
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        await admin.create_topics([NewTopic(self.reply_topic, 1, 1)])
        await admin.close()
        self.producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0)
        await self.producer.start()
        self.consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest")
        await self.consumer.start()
        self.consumer.assign([TopicPartition(self.reply_topic, 0)])
        self.reader = asyncio.create_task(self._read())

    async def stop(self) -> None:
        self.reader.cancel()
        await asyncio.gather(self.reader, return_exceptions=True)
        await self.consumer.stop()
        await self.producer.stop()

    async def _read(self) -> None:
        async for record in self.consumer:
            correlation_id = dict(record.headers)["Faust-Ag-CorrelationId"].decode()
            async with self.arrived:
                self.replies.setdefault(correlation_id, []).append(record)
                self.arrived.notify_all()

    def value(self, name: str, datum: dict[str, Any]) -> bytes:
        return json.dumps(datum).encode() if self.encoding == "json" else self.avro[name].encode(datum)

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        return [JSON_HEADER] if self.encoding == "json" else []

    async def put_item(self, item_id: str, **fields: Any) -> None:
        value = self.value("item", {"item_id": item_id, **fields})
        await self.producer.send_and_wait(self.settings.topic("items"), value=value, key=item_id.encode(), headers=self.headers)

    async def event(self, user_id: str, item_id: str, **fields: Any) -> dict[str, int]:
        datum = {"event_id": uuid.uuid4().hex, "user_id": user_id, "item_id": item_id, "event_time": next(self.times)}
        stored = await self.producer.send_and_wait(
            self.settings.topic("interactions"),
            value=self.value("interaction", {**datum, **fields}),
            key=user_id.encode(),
            headers=self.headers,
        )
        return {"partition": stored.partition, "offset": stored.offset}

    async def send_request(self, user_id: str, value: bytes, deadline_ms: int) -> str:
        correlation_id = uuid.uuid4().hex
        await self.producer.send_and_wait(
            self.settings.topic("requests"),
            value=value,
            key=user_id.encode(),
            headers=[
                ("Faust-Ag-ReplyTo", self.reply_topic.encode()),
                ("Faust-Ag-CorrelationId", correlation_id.encode()),
                ("deadline-ms", str(deadline_ms).encode()),
                *self.headers,
            ],
        )
        return correlation_id

    async def answer(self, correlation_id: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S), self.arrived:
            await self.arrived.wait_for(lambda: correlation_id in self.replies)
        record = self.replies[correlation_id][0]
        if JSON_HEADER in record.headers:
            body = json.loads(record.value)
            assert set(body) == {"key", "value", "correlation_id"}
            assert body["correlation_id"] == correlation_id
            # a body that is not a request in any encoding is answered in JSON
            assert self.encoding == "json" or "error" in body["value"]
            return dict(body["value"])
        slate = self.avro["slate"].decode(record.value)
        assert slate["correlation_id"] == correlation_id
        return {"error": slate["error"]} if slate["error"] else slate

    async def ask(self, user_id: str, deadline_ms: int = 10_000, **fields: Any) -> dict[str, Any]:
        value = self.value("request", {"user_id": user_id, **fields})
        return await self.answer(await self.send_request(user_id, value, deadline_ms))

    async def ask_until_full(self, user_id: str, **fields: Any) -> dict[str, Any]:
        """Return the first slate with `k` items. The catalogue has no token, so the requests are repeated."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                slate = await self.ask(user_id, **fields)
                if len(slate.get("items", ())) == fields.get("k", 10):
                    return slate


@pytest.fixture(params=["json", "avro"])
async def program(request: pytest.FixtureRequest, worker: Any) -> AsyncIterator[Program]:
    program = Program(worker, request.param)
    await program.start()
    for n in range(30):
        await program.put_item(f"item-{n}", title=f"Title {n}", categories=["even" if n % 2 == 0 else "odd"])
    yield program
    await program.stop()


def ids(slate: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in slate["items"]]


async def test_the_contract_over_kafka(program: Program) -> None:
    # a complete slate
    slate = await program.ask_until_full("ann", k=5)
    assert slate["user_id"] == "ann"
    assert {"request_id", "items", "release", "arm", "degraded", "as_of", "timings_ms"} <= set(slate)
    assert len(set(ids(slate))) == 5
    assert all(item["sources"] for item in slate["items"])
    scores = [item["score"] for item in slate["items"]]
    assert all(isinstance(score, float) for score in scores)

    # an event changes the next slate, which waits for nothing but its token
    for _ in range(3):
        touched = ids(slate)[0]
        token = await program.event("ann", touched)
        slate = await program.ask("ann", k=5, after=token)
        assert "stale" not in slate["degraded"]
        assert touched not in ids(slate)
        assert slate["as_of"]["partition"] == token["partition"]
        assert slate["as_of"]["offset"] >= token["offset"]

    # a request with a future token is answered before the deadline, and marked stale
    slate = await program.ask("ann", 300, k=5, after={"partition": token["partition"], "offset": token["offset"] + 1_000})
    assert "stale" in slate["degraded"]

    # exclusions and categories are respected
    wanted = [f"item-{n}" for n in range(0, 30, 2)]
    slate = await program.ask("bob", k=20, categories=["even"], exclude=wanted[:5])
    assert set(ids(slate)) <= set(wanted[5:])
    assert ids(slate)

    # exactly the given candidates are ranked
    candidates = ["item-3", "item-7", "item-11"]
    slate = await program.ask("bob", k=10, candidates=candidates)
    assert sorted(ids(slate)) == sorted(candidates)

    # explanations are present only if requested
    slate = await program.ask("bob", k=3, explain=True)
    assert all(item["explanation"] for item in slate["items"])
    slate = await program.ask("bob", k=3)
    assert not any(item.get("explanation") for item in slate["items"])


async def test_every_request_gets_exactly_one_answer(program: Program) -> None:
    await program.ask_until_full("ann", k=5)
    good = program.value("request", {"user_id": "ann", "k": 5})
    bad = {
        "too many": program.value("request", {"user_id": "ann", "k": 100_000}),
        "nothing": b"",
        "no framing": b"\x7f\x00\x01",
        "cut off": good[:-3],
    }
    asked = {}
    for n in range(40):
        asked[await program.send_request("ann", good, 10_000)] = "good"
        if n % 10 == 0:
            for kind, value in bad.items():
                asked[await program.send_request("ann", value, 10_000)] = kind
    for correlation_id, kind in asked.items():
        answer = await program.answer(correlation_id)
        if kind == "good":
            assert len(answer["items"]) == 5
        else:
            assert answer["error"]["code"], kind
            assert answer["error"]["message"], kind
    # one more round trip through the same partition: there were no other answers meanwhile
    await program.ask("ann", k=5)
    assert all(len(program.replies[correlation_id]) == 1 for correlation_id in asked)
