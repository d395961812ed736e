from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka.errors import KafkaError
from fakes import FakeRegistry
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import Framing, decode, encode
from schemas.errors import BadRequest, DeadlineExceeded, NotReady, RiffleError
from schemas.records import After, AsOf, Interaction, Item, Request, Slate, SlateItem, UserPage, UserQuery
from schemas.settings import Settings
from streams.kafka.client import EventProducer, RiffleClient, slate_from
from streams.kafka.writes import JSON_HEADERS

SETTINGS = Settings(home=Path("/nowhere"))
SLATE = Slate(
    "r",
    "u",
    (SlateItem("i", 0.5, ("popular", "content"), {"source": "popular"}), SlateItem("j", 0.25, ("fresh",))),
    "r1",
    "default",
    ("stale",),
    AsOf(1, 7, 1_700_000_000_000),
    {"rank": 1.5},
)


class Broker:
    """A stand-in for an aiokafka producer: records sends, and answers or fails as configured."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.acks: list[asyncio.Future[object]] = []
        self.failure: Exception | None = None
        self.on_send: Callable[[dict[str, bytes]], None] = lambda headers: None

    async def send(
        self, topic: str, *, value: bytes, key: bytes | None, headers: list[tuple[str, bytes]], partition: int | None = None
    ) -> asyncio.Future[object]:
        if self.failure is not None:
            raise self.failure
        self.sent.append({"topic": topic, "value": value, "key": key, "headers": dict(headers), "partition": partition})
        ack: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.acks.append(ack)
        self.on_send(dict(headers))
        return ack

    async def stop(self) -> None:
        for ack in self.acks:
            ack.cancel()


async def reads_on() -> None:
    """Takes the place of the task that reads the replies."""
    await asyncio.Event().wait()


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
async def client(broker: Broker) -> AsyncIterator[RiffleClient]:
    client = RiffleClient(SETTINGS, max_waiting=2)
    client._producer = broker
    client._reader = asyncio.create_task(reads_on())
    yield client
    await client.stop()


def reply(slate: Slate, correlation_id: str, framing: Framing) -> tuple[bytes, list[tuple[str, bytes]]]:
    headers = [("Faust-Ag-CorrelationId", correlation_id.encode())]
    body: dict[str, Any] = slate.to_json()
    if framing is Framing.JSON:
        envelope = {"key": slate.user_id, "value": body, "correlation_id": correlation_id}
        return orjson.dumps(envelope), [*headers, *JSON_HEADERS]
    for entry in body["items"]:
        entry["explanation"] = orjson.dumps(entry["explanation"]).decode() if "explanation" in entry else None
    return encode("slate", {**body, "error": None, "correlation_id": correlation_id}), headers


@pytest.mark.parametrize("framing", [Framing.JSON, Framing.SINGLE_OBJECT])
def test_a_slate_survives_its_reply(framing: Framing) -> None:
    assert slate_from(*reply(SLATE, "c", framing)) == SLATE


@pytest.mark.parametrize("framing", [Framing.JSON, Framing.SINGLE_OBJECT])
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("deadline_exceeded", DeadlineExceeded),
        ("not_ready", NotReady),
        ("registry_unavailable", NotReady),
        ("key_mismatch", BadRequest),
        ("invalid_field", BadRequest),
        ("internal", RiffleError),
    ],
)
def test_an_error_reply_becomes_the_error_it_names(framing: Framing, code: str, kind: type[RiffleError]) -> None:
    error = {"code": code, "message": "why", "field": "k"}
    if framing is Framing.JSON:
        value, headers = orjson.dumps({"key": "u", "value": {"error": error}, "correlation_id": "c"}), JSON_HEADERS
    else:
        value, headers = encode("slate", {"request_id": "", "user_id": "u", "error": error}), []
    with pytest.raises(RiffleError) as caught:
        slate_from(value, headers)
    assert type(caught.value) is kind
    assert caught.value.to_json() == error


@given(st.one_of(st.none(), st.binary(max_size=60)), st.booleans())
def test_an_unreadable_reply_is_one_kind_of_error(value: bytes | None, is_json: bool) -> None:
    with pytest.raises(RiffleError) as caught:
        slate_from(value, JSON_HEADERS if is_json else [])
    assert caught.value.code == "unreadable_reply"


async def test_a_request_is_registered_before_it_is_sent(client: RiffleClient, broker: Broker) -> None:
    def answer_at_once(headers: dict[str, bytes]) -> None:
        client._receive(*reply(SLATE, headers["Faust-Ag-CorrelationId"].decode(), Framing.SINGLE_OBJECT))

    broker.on_send = answer_at_once
    request = Request("r", "u", k=3, exclude=("x",), after=After(1, 7))
    assert await client.recommend(request, 1_000) == SLATE
    sent = broker.sent[0]
    assert (sent["topic"], sent["key"]) == ("riffle.requests", b"u")
    assert sent["headers"]["Faust-Ag-ReplyTo"] == b"riffle.replies"
    assert 0 < int(sent["headers"]["deadline-ms"]) <= 1_000
    datum, framing = decode("request", sent["value"])
    assert framing is Framing.SINGLE_OBJECT
    assert datum["exclude"] == ["x"]
    assert datum["after"] == {"partition": 1, "offset": 7}
    assert client.waiting == 0


async def test_users_of_a_partition_are_asked_for_on_that_partition(client: RiffleClient, broker: Broker) -> None:
    page = UserPage(3, 4, ("a", "b"), "b")

    def answer_at_once(headers: dict[str, bytes]) -> None:
        correlation = headers["Faust-Ag-CorrelationId"].decode()
        body = orjson.dumps({"key": "", "value": page.to_json(), "correlation_id": correlation})
        client._receive(body, [("Faust-Ag-CorrelationId", correlation.encode()), *JSON_HEADERS])

    broker.on_send = answer_at_once
    assert await client.users(3, UserQuery("", 2), 1_000) == page
    sent = broker.sent[0]
    assert (sent["topic"], sent["key"], sent["partition"]) == ("riffle.requests", None, 3)
    assert sent["headers"]["riffle-op"] == b"users"
    assert orjson.loads(sent["value"]) == {"after": "", "limit": 2}
    assert client.waiting == 0


async def test_a_body_is_answered_with_a_slate_or_the_error_it_deserves(client: RiffleClient, broker: Broker) -> None:
    broker.on_send = lambda headers: client._receive(*reply(SLATE, headers["Faust-Ag-CorrelationId"].decode(), Framing.JSON))
    assert await client.ask({"user_id": "u", "k": 3}, 1_000) == SLATE.to_json()
    refused = await client.ask({"user_id": "u", "k": 0})
    assert refused["error"]["field"] == "k"
    assert len(broker.sent) == 1


async def test_a_late_reply_is_dropped_and_counted(client: RiffleClient, broker: Broker) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.recommend(Request("r", "u"), 1)
    assert client.waiting == 0
    correlation_id = broker.sent[0]["headers"]["Faust-Ag-CorrelationId"].decode()
    client._receive(*reply(SLATE, correlation_id, Framing.JSON))
    client._receive(*reply(SLATE, "of-another-client", Framing.JSON))
    assert client.counters == {"sent": 1, "deadline": 1, "late": 1, "foreign": 1}


async def test_what_waits_is_bounded_and_ends_when_the_client_stops(client: RiffleClient, broker: Broker) -> None:
    both_sent = asyncio.Event()
    broker.on_send = lambda headers: both_sent.set() if len(broker.sent) == 2 else None
    asked = [asyncio.create_task(client.recommend(Request("r", "u"), 60_000)) for _ in range(2)]
    await both_sent.wait()
    with pytest.raises(NotReady) as caught:
        await client.recommend(Request("r", "u"), 60_000)
    assert caught.value.code == "too_many_waiting"
    await client.stop()
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, NotReady)
    assert client.waiting == 0


async def test_a_request_that_the_broker_refuses_fails_at_once(client: RiffleClient, broker: Broker) -> None:
    broker.on_send = lambda headers: broker.acks[-1].set_exception(KafkaError("gone"))
    with pytest.raises(NotReady):
        await client.recommend(Request("r", "u"), 60_000)
    broker.failure = KafkaError("gone")
    with pytest.raises(NotReady):
        await client.recommend(Request("r", "u"), 60_000)
    assert client.waiting == 0


async def test_nothing_is_sent_before_start() -> None:
    with pytest.raises(NotReady):
        await RiffleClient(SETTINGS).recommend(Request("r", "u"))
    with pytest.raises(NotReady):
        await EventProducer(SETTINGS).send_events([Interaction("e", "u", "i", 0)])


async def test_nothing_is_sent_while_the_registry_does_not_know_the_schema(broker: Broker) -> None:
    away = FakeRegistry(names=dict.fromkeys(("interaction", "item", "request"), NotReady("registry_unavailable", "away")))
    client = RiffleClient(SETTINGS, framing=Framing.CONFLUENT, registry=away)
    client._producer = client._events._producer = broker
    client._reader = asyncio.create_task(reads_on())
    event = Interaction("e", "u", "i", 1)
    for work in (client.recommend(Request("r", "u")), client.send_events([event]), client.put_item(Item("i"))):
        with pytest.raises(NotReady, match="away"):
            await work
    assert (broker.sent, client.waiting) == ([], 0)
    await client.stop()


async def test_a_reply_in_confluent_framing_is_read(broker: Broker) -> None:
    registry = FakeRegistry.of("request", "slate")
    client = RiffleClient(SETTINGS, framing=Framing.CONFLUENT, registry=registry)
    client._producer = broker
    client._reader = asyncio.create_task(reads_on())

    def answer(headers: dict[str, bytes]) -> None:
        value, heads = reply(SLATE, headers["Faust-Ag-CorrelationId"].decode(), Framing.SINGLE_OBJECT)
        client._receive(b"\0\0\0\0\2" + value[10:], heads)

    broker.on_send = answer
    assert await client.recommend(Request("r", "u"), 1_000) == SLATE
    assert decode("request", broker.sent[0]["value"], (), registry)[1] is Framing.CONFLUENT
    await client.stop()


@pytest.mark.parametrize("score", ["1", 10**400, None, [], "x", True])
def test_a_score_that_is_none_makes_a_reply_unreadable_or_a_number(score: object) -> None:
    body = SLATE.to_json() | {"items": [{"item_id": "i", "score": score, "sources": []}]}
    value = json.dumps({"key": "u", "value": body}).encode()
    try:
        assert isinstance(slate_from(value, JSON_HEADERS).items[0].score, float)
    except RiffleError as error:
        assert error.code == "unreadable_reply"
