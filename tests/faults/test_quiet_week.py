"""A quiet week, simulated in minutes: state that the broker forgets meanwhile costs only a short delay.

The broker of this test forgets transactional ids after 3 s, producers after 2 s and offsets of an empty group after a minute.
It begins a new segment every second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from stream_check import Sent

from schemas.settings import Settings
from streams.embedded import kafka as embedded
from streams.embedded.kafka import EmbeddedKafka
from streams.embedded.redis import EmbeddedRedis
from streams.kafka.topics import ensure_topics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

FORGETFUL = """\
transactional.id.expiration.ms=3000
transaction.remove.expired.transaction.cleanup.interval.ms=500
producer.id.expiration.ms=2000
producer.id.expiration.check.interval.ms=500
offsets.retention.minutes=1
offsets.retention.check.interval.ms=1000
log.roll.ms=1000
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=500
"""


@pytest.fixture
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr(embedded, "SERVER", embedded.SERVER + FORGETFUL)
    ports = {f"{name}_port": free_port() for name in ("kafka", "controller", "redis", "web")}
    settings = Settings(home=tmp_path, commit_interval_s=0.2, session_timeout_s=6.0, **ports).resolved()  # type: ignore[arg-type]
    kafka, redis = EmbeddedKafka(settings), EmbeddedRedis(settings)
    try:
        kafka.start()
        redis.start()
        yield settings
    finally:
        redis.stop()
        kafka.stop()


async def test_a_worker_goes_on_after_a_quiet_week(forgetful: Settings, worker_of: Callable[[Settings], Any]) -> None:
    await ensure_topics(forgetful)
    worker, sent = worker_of(forgetful), Sent(forgetful, seed=7)
    await asyncio.to_thread(worker.start)
    pid = worker.process.pid
    await sent.start()
    for _ in range(3):
        await sent.events(200)
        await sent.check()
        await asyncio.sleep(8)  # no client connects until everything is forgotten
    await sent.events(200)
    await sent.check()
    assert worker.process.poll() is None
    assert worker.process.pid == pid
    # switched off for longer than the offsets of an empty group are kept
    await asyncio.to_thread(worker.stop)
    await asyncio.sleep(75)
    await asyncio.to_thread(worker.start)
    await sent.events(200)
    await sent.check()
    assert worker.alive()
    await sent.stop()
