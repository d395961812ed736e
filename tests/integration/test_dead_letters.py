"""`riffle dlq` lists dead letters and produces them again."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner

from agents.cli.dlq import dlq
from schemas.codec import encode
from schemas.columns import ERASE
from schemas.settings import Settings
from streams.kafka.dead_letters import REPLAYED_FROM, origins_of, read_letters, replay_letters

pytestmark = pytest.mark.integration
NOTHING = {"sent": 0, "cut": 0, "unreadable": 0, "superseded": 0, "erased": 0, "failed": 0}
EVENT = {"event_id": "e", "user_id": "ann", "item_id": "i", "event_time": 1_700_000_000_000}


def run(settings: Settings, *arguments: str) -> str:
    done = CliRunner().invoke(dlq, arguments, env=settings.environment(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def listed(settings: Settings, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(100):
        found = json.loads(run(settings, "list", "--json").splitlines()[-1])
        if found["total"] >= count:
            break
    return found


async def produced(settings: Settings, *records: tuple[bytes | None, bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all")
    await producer.start()
    for key, value in records:
        await producer.send_and_wait(settings.topic("interactions"), value, key=key)
    await producer.stop()


def test_letters_are_listed_shown_and_replayed(worker: Settings) -> None:
    wrong = encode("interaction", EVENT)
    asyncio.run(produced(worker, (b"bob", wrong), (None, b"\x07nonsense"), (b"ann", b"x" * (300 << 10))))
    found = listed(worker, 3)
    assert found["codes"] == {"key_mismatch": 1, "null_key": 1, "unknown_framing": 1}
    mismatch = next(letter for letter in found["letters"] if letter["code"] == "key_mismatch")
    assert mismatch["key"] == "bob"
    shown = json.loads(run(worker, "show", str(mismatch["letter"])))
    assert shown["topic"] == worker.topic("interactions")
    assert "no dead letter 999" in str(CliRunner().invoke(dlq, ["show", "999"], env=worker.environment()).exception)
    # the cause persists: each comes back, with its first origin
    outcome = json.loads(run(worker, "replay", "--all", "--json").splitlines()[-1])
    assert outcome == {"sent": 2, "cut": 1, "unreadable": 0, "superseded": 0, "erased": 0, "failed": 0}
    again = listed(worker, 5)
    assert again["codes"] == {"key_mismatch": 2, "null_key": 2, "unknown_framing": 1}
    assert [letter["headers"].get(REPLAYED_FROM) is not None for letter in again["letters"]] == [False] * 3 + [True] * 2
    assert CliRunner().invoke(dlq, ["replay"]).exit_code == 2
    # once more: each record is sent once, however often it came back
    outcome = json.loads(run(worker, "replay", "--all", "--json").splitlines()[-1])
    assert outcome == {"sent": 2, "cut": 1, "unreadable": 0, "superseded": 2, "erased": 0, "failed": 0}
    assert listed(worker, 7)["total"] == 7
    assert "no dead letter" in str(CliRunner().invoke(dlq, ["replay", "--letter", "999"], env=worker.environment()).exception)


async def test_what_an_erased_user_did_before_is_not_replayed(worker: Settings) -> None:
    await produced(worker, (b"ann", b"before"), (b"bob", b"before"))
    await asyncio.to_thread(listed, worker, 2)
    producer = AIOKafkaProducer(bootstrap_servers=worker.bootstrap_servers, acks="all")
    await producer.start()
    await producer.send_and_wait(worker.topic("interactions"), None, key=b"ann", headers=[ERASE])
    await producer.stop()
    await produced(worker, (b"ann", b"after"))
    await asyncio.to_thread(listed, worker, 3)
    letters = [letter async for letter in read_letters(worker)]
    assert await replay_letters(worker, letters) == {**NOTHING, "sent": 2, "erased": 1}
    await asyncio.to_thread(listed, worker, 5)
    replayed = [one["value"] async for one in read_letters(worker) if REPLAYED_FROM in one["headers"]]
    assert sorted(replayed) == [b"after", b"before"], "bob's, and what ann did afterwards"
    # a record that came back as a letter which is not chosen is not sent once more
    letters = [letter async for letter in read_letters(worker)]
    assert await replay_letters(worker, letters[:3], origins_of(letters)) == {**NOTHING, "superseded": 2, "erased": 1}


def test_a_key_is_shown_as_it_is_and_a_terminal_gets_no_control_characters(worker: Settings) -> None:
    asyncio.run(
        produced(worker, (b"[/b] [red]x\x1b[31m\xc2\x9b\xe2\x80\xae", b"\x07nonsense"), (b"k" * 5_000, b"\x07nonsense"))
    )
    found = listed(worker, 2)
    plain = run(worker, "list")
    assert "[/b][red]x\\u001b[31m" in "".join(plain.split())
    odd = next(letter for letter in found["letters"] if letter["key"][0] == "[")
    shown = run(worker, "show", str(odd["letter"]))
    assert all(c.isprintable() or c == "\n" for c in plain + shown)
    assert json.loads(shown)["key"] == "[/b] [red]x\x1b[31m\x9b\u202e"
    outcome = json.loads(run(worker, "replay", "--all", "--json").splitlines()[-1])
    assert (outcome["sent"], outcome["cut"]) == (1, 1), "a key that was cut is not sent"
