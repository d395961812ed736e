"""Tokens are renewed before they expire, and connections are replaced before their login does."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from streams.kafka.connection import Connection
from streams.kafka.tokens import FreshTokens, _expiry_of

SECRET = "s3cret"


@given(st.floats(1, 10_000), st.lists(st.tuples(st.floats(0, 3_000), st.booleans()), min_size=1, max_size=50))
def test_no_expired_token_is_given(lives_s: float, steps: list[tuple[float, bool]]) -> None:
    now, fails, made = 0.0, False, list[float]()

    def fetch() -> tuple[str, float]:
        if fails:
            raise ConfigError("token_refused", "the endpoint answers with status 500")
        made.append(now + lives_s)
        return str(len(made) - 1), made[-1]

    tokens = FreshTokens("the endpoint", fetch, lambda: now)
    for step_s, down in steps:
        now, fails = now + step_s, down
        try:
            found = tokens.current()
        except KafkaConnectionError:
            assert fails
            assert not made or made[-1] <= now
        else:
            assert made[int(found)] > now
            assert int(found) == len(made) - 1


def test_an_error_of_the_source_is_not_repeated() -> None:
    def fetch() -> tuple[str, float]:
        raise RuntimeError(SECRET)

    with pytest.raises(KafkaConnectionError) as caught:
        FreshTokens("the endpoint", fetch).current()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_expiry_of_a_jwt_is_read() -> None:
    body = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).decode().rstrip("=")
    assert _expiry_of(f"e30.{body}.x") == 1_700_000_000
    assert _expiry_of("opaque") == _expiry_of("a.b.c") == 0.0


class _Stream:
    def at_eof(self) -> bool:
        return False


async def test_a_retiring_connection_answers_what_is_under_way_and_takes_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = Connection("127.0.0.1", 1)
    closed: list[object] = []
    monkeypatch.setattr(connection, "close", lambda *why: closed.append(why))
    connection._reader = _Stream()
    assert connection.connected()
    connection._requests.append((None, None, asyncio.get_running_loop().create_future()))
    connection.retire()
    assert not connection.connected()
    assert not closed
    connection._handle_frame(b"answer")
    assert len(closed) == 1
    connection._retirement.cancel()
    connection._reader = None
