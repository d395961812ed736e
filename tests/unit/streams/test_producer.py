"""A broken producer is replaced once, and the next one sends its unsent records."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    TopicAuthorizationFailedError,
)

from streams.kafka.healing_producer import HealingProducer, Outgoing

GOOD, LARGE = Outgoing("t", b"k", b"small"), Outgoing("t", b"k", b"x" * 100)


class _Sender:
    sender_task: asyncio.Task[None] | None = None


@dataclass
class Producer:
    """An idempotent producer and its broker: after a batch that was refused, every later one is out of order."""

    most: int = 50
    refusal: type[Exception] | None = None
    hole: bool = False
    started: bool = False
    stopped: bool = False
    stored: list[bytes | None] = field(default_factory=list)
    _txn_manager: Any = "it is idempotent"
    _sender: _Sender = field(default_factory=_Sender)

    async def start(self) -> None:
        self.started = True

    async def stop(self) -> None:
        self.stopped = True

    async def send(self, topic: str, *, value: bytes | None, **_: Any) -> asyncio.Future[int]:
        sent: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.refusal is not None:
            sent.set_exception(self.refusal())
        elif self.hole:
            sent.set_exception(OutOfOrderSequenceNumber())
        elif len(value or b"") > self.most:
            self.hole = True
            sent.set_exception(MessageSizeTooLargeError())
        else:
            self.stored.append(value)
            sent.set_result(len(self.stored))
        return sent


@pytest.fixture
def made() -> list[Producer]:
    return []


@pytest.fixture
async def healing(made: list[Producer]) -> Any:
    reasons: list[str] = []

    def make() -> Producer:
        made.append(Producer())
        return made[-1]

    producer = HealingProducer(make, reasons.append)
    producer.reasons = reasons  # type: ignore[attr-defined]
    await producer.start()
    yield producer
    await producer.stop()
    assert all(one.stopped for one in made if one.started)


async def test_a_record_that_is_too_large_does_not_stop_those_after_it(healing: Any, made: list[Producer]) -> None:
    with pytest.raises(MessageSizeTooLargeError):
        await healing.deliver([LARGE])
    assert await healing.deliver([GOOD, GOOD]) == [1, 2]
    assert len(made) == 2
    assert healing.reasons == ["MESSAGE_TOO_LARGE: raise the topic's max.message.bytes"]


async def test_what_a_broken_producer_refused_is_sent_by_the_next(healing: Any, made: list[Producer]) -> None:
    made[0].hole = True
    assert await healing.deliver([GOOD]) == [1]
    assert (len(made), made[1].stored) == (2, [b"small"])


async def test_many_senders_replace_it_once(healing: Any, made: list[Producer]) -> None:
    made[0].hole = True
    await asyncio.gather(*(healing.deliver([GOOD]) for _ in range(20)))
    assert len(made) == 2
    assert len(made[1].stored) == 20


async def test_one_whose_sender_task_ended_is_replaced(healing: Any, made: list[Producer]) -> None:
    made[0]._sender.sender_task = asyncio.create_task(asyncio.sleep(0))
    await made[0]._sender.sender_task
    await (await healing.send("t", b"v"))
    assert (made[0].stored, made[1].stored) == ([], [b"v"])


@pytest.mark.parametrize("refusal", [TopicAuthorizationFailedError, KafkaConnectionError])
async def test_what_another_producer_would_not_mend_is_not_sent_twice(
    healing: Any, made: list[Producer], refusal: type[Exception]
) -> None:
    made[0].refusal = refusal
    with pytest.raises(refusal):
        await healing.deliver([GOOD])
    made[0].refusal = None
    assert await healing.deliver([GOOD]) == [1]  # by another, because the numbers of the first have a hole
    assert len(made) == 2


async def test_a_producer_without_numbers_stays_when_a_record_is_refused(healing: Any, made: list[Producer]) -> None:
    made[0]._txn_manager = None
    with pytest.raises(MessageSizeTooLargeError):
        await healing.deliver([LARGE])
    made[0].hole = False
    await healing.deliver([GOOD])
    assert len(made) == 1
