"""Requests over Kafka are accepted or refused by headers and key, which may have any content."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson
import pytest
from fakes import FakeRegistry, KnowsTopics, registry_server

from agents.metrics import Metrics
from agents.requests.outbox import Queued
from agents.requests.parsing import Accepted
from agents.requests.recommend import Recommend
from schemas.codec import Framing, decode, encode, schema_text
from schemas.errors import NotReady
from schemas.kernels import partition_of
from schemas.registry import ConfluentRegistry
from schemas.settings import Settings
from streams.kafka.chunks import Chunk
from streams.kafka.client import slate_from

JSON = ("content-type", b"application/json")
REPLY = ("Faust-Ag-ReplyTo", b"replies")
ONE = partition_of(b"1", 4)


def recommend(registry: Any = None, owned: tuple[int, ...] = (ONE,)) -> Recommend:
    return Recommend(Settings(), None, dict.fromkeys(owned), KnowsTopics(), Metrics(), registry)  # type: ignore[arg-type]


def taken(
    headers: list[tuple[str, Any]], body: Any = None, key: bytes = b"1", partition: int = ONE, **given: Any
) -> tuple[Any, Queued | None]:
    """Return the accepted request, or the record that is sent."""
    made = recommend(**given)
    value = orjson.dumps(body or {"user_id": "1"})
    chunk = Chunk("riffle.requests", partition, [7], [key], [value], [int(time.time() * 1000)], [headers])
    parsed = made._parser.parse(chunk, 0)
    if isinstance(parsed, Accepted):
        return parsed, None
    made._refuse(parsed, chunk, 0, lambda: None)
    (letter,) = [*made._outbox._queue, *made._outputs._queue]
    return None, letter


def error(letter: Queued) -> Any:
    if letter.what == "dead_letter":
        return decode("dead_letter", letter.encoded())[0]["code"]
    return orjson.loads(letter.encoded())["value"]["error"]["code"]


@pytest.mark.parametrize(
    "given",
    [b"2_50", b" 250", b"250 ", b"+250", "٢٥٠".encode(), b"\xff", b"1e3", b"250.0", b"0x10", b"-5", b"0", b"60001", b"9" * 30],
)
def test_a_deadline_is_digits_or_an_error_that_names_it(given: bytes) -> None:
    _, letter = taken([JSON, REPLY, ("deadline-ms", given)])
    assert letter is not None
    told = orjson.loads(letter.encoded())["value"]["error"]
    assert (told["code"], told["field"]) == ("invalid_field", "deadline-ms")


@pytest.mark.parametrize(("given", "ms"), [(b"250", 250), (b"60000", 60_000), (b"007", 7), (None, 250), (b"", 250)])
def test_a_deadline_is_counted_from_the_stamp(given: bytes | None, ms: int) -> None:
    pending, _ = taken([JSON, REPLY, ("deadline-ms", given)])
    assert pending.deadline - time.monotonic() <= ms / 1000


@pytest.mark.parametrize("name", ["deadline-ms", "Faust-Ag-ReplyTo", "content-type", "Faust-Ag-CorrelationId"])
def test_of_a_repeated_header_the_last_counts(name: str) -> None:
    sound = {"content-type": b"application/json", "Faust-Ag-ReplyTo": b"replies", "deadline-ms": b"100"}
    sound["Faust-Ag-CorrelationId"] = b"mine"
    first, last = [(name, b"2_50")], list(sound.items())
    pending, _ = taken([*first, *last])
    assert pending is not None
    assert pending.request.request_id == "mine"
    pending, letter = taken([*last, (name, b"__odd")])
    assert (pending is None) == (name != "Faust-Ag-CorrelationId")
    if letter is not None:
        code = {"deadline-ms": "invalid_field", "Faust-Ag-ReplyTo": "invalid_reply_to", "content-type": "unknown_framing"}[name]
        assert error(letter) == code


@pytest.mark.parametrize(
    "topic", [b"riffle.items", b"riffle.models", b"..", b".", b"__x", b"a b", b"\xff", b"x" * 250, b"", None]
)
@pytest.mark.parametrize("body", [{"user_id": "1"}, {"user_id": "1", "k": 0}])
def test_no_answer_goes_where_none_may_go_whatever_else_is_wrong(topic: bytes | None, body: dict[str, Any]) -> None:
    _, letter = taken([JSON, ("Faust-Ag-ReplyTo", topic)], body)
    assert letter is not None
    assert (letter.what, letter.topic) == ("dead_letter", "riffle.dead-letters")


@pytest.mark.parametrize("correlation", [b"\xff\xfe", b"\xff" * 300, "ü".encode() * 300, b"\x00", b"", None])
def test_any_correlation_id_comes_back_and_names_the_request_in_text(correlation: bytes | None) -> None:
    pending, _ = taken([JSON, REPLY, ("Faust-Ag-CorrelationId", correlation)])
    assert 0 < len(pending.request.request_id.encode()) <= 256
    _, letter = taken([JSON, REPLY, ("Faust-Ag-CorrelationId", correlation)], {"user_id": ""})
    assert letter is not None
    assert dict(letter.headers)["Faust-Ag-CorrelationId"] == (correlation or b"")


def test_a_request_whose_correlation_id_cannot_come_back_is_a_counted_dead_letter_and_gets_no_answer() -> None:
    made = recommend()
    headers = [[JSON, REPLY, ("Faust-Ag-CorrelationId", b"x" * size)] for size in (1_024, 1_025)]
    now = int(time.time() * 1000)
    made._take_in(Chunk("riffle.requests", ONE, [7], [b"1"], [b'{"user_id": "1"}'], [now], headers[:1]), 0)
    assert len(made._ranking.backlog) == 1
    made._take_in(Chunk("riffle.requests", ONE, [8], [b"1"], [b'{"user_id": "1"}'], [now], headers[1:]), 0)
    assert not made._outbox._queue
    (letter,) = made._outputs._queue
    assert (letter.what, letter.topic, error(letter)) == ("dead_letter", "riffle.dead-letters", "invalid_field")
    assert 'riffle_requests_total{code="invalid_field",outcome="malformed"} 1' in made._metrics.render()


@pytest.mark.parametrize(
    ("key", "partition", "owned", "code"),
    [
        (b"1", ONE, (ONE,), ""),
        (b"1", ONE, (), ""),  # being restored: that passes
        (b"2", (ONE + 1) % 4, (ONE,), ""),
        (b"2", (ONE + 1) % 4, (), "key_mismatch"),
        (b"\xff", (ONE + 1) % 4, ((ONE + 1) % 4,), "key_mismatch"),
        (b"1", (ONE + 1) % 4, (), "wrong_partition"),
    ],
)
def test_a_request_that_went_to_another_worker_is_told_why(
    key: bytes, partition: int, owned: tuple[int, ...], code: str
) -> None:
    pending, letter = taken([JSON, REPLY], None, key, partition, owned=owned)
    assert (pending is None) == bool(code)
    if letter is not None:
        assert error(letter) == code
        assert orjson.loads(letter.encoded())["key"] == "1"


def confluent(schema_id: int = 1) -> bytes:
    return b"\x00" + schema_id.to_bytes(4, "big") + encode("request", {"user_id": "1"})[10:]


async def test_a_request_waits_for_its_schema_beside_others_and_not_beyond_its_deadline() -> None:
    with registry_server(schemas=[schema_text("request")], mood="hang") as server:
        registry = ConfluentRegistry(server.url, attempt_s=0.1, first_retry_s=0.02)
        made = recommend(registry)
        headers = [REPLY, ("deadline-ms", b"300")]
        values, heads = [confluent(), orjson.dumps({"user_id": "1"}), confluent()], [headers, [JSON, REPLY], headers]
        now = int(time.time() * 1000)
        chunk = Chunk("riffle.requests", ONE, [7, 8, 9], [b"1"] * 3, values, [now] * 3, heads)
        made.on_chunk(chunk)
        assert len(made._ranking.backlog) == 1, "the one in JSON"
        assert made.committable() == {ONE: 7}
        await asyncio.wait(set(made._waiting._tasks))
        letters = [*made._outbox._queue]
        assert [error(letter) for letter in letters] == ["registry_unavailable"] * 2
        with pytest.raises(NotReady):
            slate_from(letters[0].encoded(), letters[0].headers)
        server.mood = "sound"
        server.released.set()
        await asyncio.gather(registry.answered(1), registry.answered("slate"))
        made.on_chunk(Chunk("riffle.requests", ONE, [10], [b"1"], [confluent()], [now + 60_000], [headers]))
        assert not len(made._waiting), "nothing is waited for"
        assert len(made._ranking.backlog) == 2
        registry.close()


async def test_an_answer_is_in_json_where_the_registry_has_no_schema_for_it() -> None:
    registry = FakeRegistry({1: schema_text("request")}, {"slate": NotReady("registry_unavailable", "away")})
    made = recommend(registry)
    chunk = Chunk("riffle.requests", ONE, [7], [b"1"], [confluent()], [int(time.time() * 1000)], [[REPLY]])
    parsed = made._parser.parse(chunk, 0)
    assert isinstance(parsed, Accepted)
    made._replies.send(parsed.address, NotReady("not_ready", "later"), lambda: None)
    letter = made._outbox._queue[0]
    assert decode("slate", letter.encoded(), letter.headers)[1] is Framing.JSON
