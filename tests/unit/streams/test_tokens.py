"""Tokens are renewed before they expire, and connections are replaced before their login does."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError
from schemas.kafka_settings import KafkaSettings
from streams.kafka.connection import Connection
from streams.kafka.tokens import AGAIN_S, RENEW_SHARE, FreshTokens, _expiry_of, tokens_of

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


@given(st.floats(50, 10_000), st.lists(st.floats(0, 3), min_size=2, max_size=60))
def test_a_source_that_fails_is_not_asked_for_each_connection_while_a_token_is_valid(
    lives_s: float, steps: list[float]
) -> None:
    now, fetched = 0.0, list[float]()

    def fetch() -> tuple[str, float]:
        if fetched or now > 0:
            fetched.append(now)
            raise ConfigError("token_refused", "the endpoint answers with status 500")
        return "token", lives_s

    tokens = FreshTokens("the endpoint", fetch, lambda: now)
    tokens.current()
    now = lives_s * RENEW_SHARE
    for step_s in steps:
        now += step_s
        if now < lives_s:
            assert tokens.current() == "token"
    assert all(later - earlier >= AGAIN_S for earlier, later in pairwise(fetched))


def test_a_source_that_recovers_is_asked_again_after_a_while() -> None:
    now, answers = 0.0, iter([("first", 100.0), None, ("second", 200.0)])

    def fetch() -> tuple[str, float]:
        if (found := next(answers)) is None:
            raise ConfigError("token_refused", "the endpoint answers with status 500")
        return found

    tokens = FreshTokens("the endpoint", fetch, lambda: now)
    found = []
    for moment in (0.0, 85.0, 85.0 + AGAIN_S - 1, 85.0 + AGAIN_S):
        now = moment
        found.append(tokens.current())
    assert found == ["first", "first", "first", "second"]


def test_a_file_is_read_for_each_connection_and_one_unreadable_moment_refuses_none(tmp_path: Path) -> None:
    file = tmp_path / "token"
    valid, replaced, expired = jwt(time.time() + 600), jwt(time.time() + 900), jwt(time.time() - 1)
    settings = {"security": "SASL_PLAINTEXT", "sasl_mechanism": "OAUTHBEARER", "token_file": str(file)}
    file.write_text(valid)
    tokens = tokens_of(KafkaSettings("127.0.0.1:1", **settings))
    assert isinstance(tokens, FreshTokens)
    assert tokens.current() == valid
    file.write_text("")
    assert tokens.current() == valid
    file.unlink()
    assert tokens.current() == valid
    for written in (replaced, valid):
        file.write_text(written)
        assert tokens.current() == written
    file.write_text(expired)
    assert tokens.current() == expired
    file.unlink()
    with pytest.raises(KafkaConnectionError):
        tokens.current()
    file.write_text("opaque")
    assert tokens.current() == "opaque"
    file.unlink()
    with pytest.raises(KafkaConnectionError):
        tokens.current()


def jwt(expires: float) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"exp": expires}).encode()).decode().rstrip("=")
    return f"e30.{body}.x"


def test_the_expiry_of_a_jwt_is_read() -> None:
    assert _expiry_of(jwt(1_700_000_000)) == 1_700_000_000
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
