"""A worker killed in the middle of a replay loses nothing and counts nothing twice."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import Any

import pytest
from stream_check import Sent

from schemas.settings import Settings
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("instance", ["", "one"])
async def test_tables_equal_an_offline_recomputation_after_kills(fresh: Settings, worker_of: Any, instance: str) -> None:
    fresh = replace(fresh, instance=instance, session_timeout_s=6.0)
    await ensure_topics(fresh)
    sent = Sent(fresh, seed=11)
    await sent.start()
    worker = worker_of(fresh).start()
    for kill in range(5):
        await sent.events(1_500)
        if kill < 4:
            await asyncio.sleep(sent.rng.random() * 0.6)
            worker.kill()
            if kill == 2:
                shutil.rmtree(fresh.data_dir / "tables" / "users" / "1")
            worker.start()
    await sent.stop()
    assert sent.sent == 7_500
    await sent.check()
    worker.stop()
    await sent.check_disk(fresh)
