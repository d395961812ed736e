"""A replay of dead letters sends at once, in order, and reports what Kafka did not acknowledge."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import Settings
from streams.kafka import connect, dead_letters


class Producer:
    """Acknowledges by the first letter of a value: `a` at once, `e` with an error, `n` never."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.stopped = False

    async def start(self) -> None: ...

    async def send(self, _topic: str, value: bytes, **_: Any) -> asyncio.Future[None]:
        self.values.append(value)
        future = asyncio.get_running_loop().create_future()
        if value == b"a":
            future.set_result(None)
        elif value == b"e":
            future.set_exception(KafkaTimeoutError())
        return future

    async def stop(self) -> None:
        self.stopped = True


def letter(number: int, value: str) -> dict[str, Any]:
    origin = {"topic": "t", "partition": 0, "offset": number, "timestamp": 1}
    return {"letter": number, **origin, "key": None, "value": value.encode(), "headers": {}}


@given(st.lists(st.sampled_from("aen"), max_size=6))
def test_what_was_sent_is_reported_beside_what_was_not_acknowledged(values: list[str]) -> None:
    producer = Producer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connect, "producer", lambda *_: producer)
        letters = [letter(number, value) for number, value in enumerate(values)]
        outcome = asyncio.run(dead_letters.replay_letters(Settings(), letters, within_s=0.01 if "n" in values else None))
    assert producer.values == [value.encode() for value in values], "all were sent, in their order, none waited for another"
    assert producer.stopped == bool(values)
    others = len(values) - values.count("a")
    assert {name: n for name, n in outcome.items() if n} == {
        name: n for name, n in {"sent": values.count("a"), "failed": others}.items() if n
    }
