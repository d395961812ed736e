"""A worker's connections are replaced before their login expires: the broker closes none, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from conftest import WorkerProcess
from secured_broker import EXPIRED, SESSION_MS, Secured

from schemas.records import Interaction, Item, Request
from schemas.settings import Settings
from streams.kafka.client import RiffleClient

pytestmark = pytest.mark.integration


async def served(settings: Settings, for_s: float) -> int:
    """Send events and requests by turns, over Kafka and HTTP; returns the number of events. Each must be answered."""
    until, sent = time.monotonic() + for_s, 0
    async with RiffleClient(settings) as client, aiohttp.ClientSession() as session:
        await client.put_item(Item(item_id="i0", title="item"))
        while time.monotonic() < until:
            event = Interaction(f"e{sent}", f"u{sent % 7}", f"i{sent}", 1_700_000_000_000 + sent, "like")
            (token,) = await client.send_events([event])
            slate = await client.recommend(Request(f"r{sent}", event.user_id, k=3, after=token))
            assert "stale" not in slate.degraded
            over_http = {"user_id": event.user_id, "item_id": "other", "event_id": f"h{sent}"}
            async with session.post(f"{settings.web}/v1/events", json=over_http) as response:
                assert response.status == 202, await response.text()
            async with session.get(f"{settings.web}/v1/recommend/{event.user_id}?deadline_ms=5000") as response:
                assert response.status == 200, await response.text()
            sent += 1
            await asyncio.sleep(0.2)
        last = await client.send_events([Interaction(f"last{n}", f"u{n}", "i", 1_700_000_000_000) for n in range(7)])
        for n, token in enumerate(last):
            await client.recommend(Request(f"last{n}", f"u{n}", k=1, after=token))
        async with session.get(f"{settings.web}/metrics") as response:
            metrics = await response.text()
    applied = sum(float(n) for n in re.findall(r'^riffle_events_total\{outcome="applied"\} (\S+)$', metrics, re.MULTILINE))
    assert applied == 2 * sent + len(last), metrics
    return sent


@pytest.mark.parametrize("fault", ["", "wrong_keeps_expiring_connections"])
async def test_connections_are_replaced_before_their_login_expires(secured: Secured, tmp_path: Path, fault: str) -> None:
    """With the fault, which leaves aiokafka's connections open, the broker closes them: so this test can fail."""
    name = "expired" if fault else "expiring"
    settings = replace(secured.by("OAUTHBEARER", tmp_path), topic_prefix=f"{name}.", app_id=name)
    before, issued = len(secured.log.read_text()), len(secured.issuer.issued)
    worker = WorkerProcess(settings)
    await asyncio.to_thread(worker.start, fault=fault)
    try:
        life_s = secured.issuer.life_s
        await served(settings, 2.2 * life_s if not fault else 3 * SESSION_MS / 1e3)
    finally:
        await asyncio.to_thread(worker.stop)
    expired = secured.log.read_text()[before:].count(EXPIRED)
    if fault:
        assert expired
        return
    assert not expired
    # of this process and of the worker each
    assert len(secured.issuer.issued) - issued >= 2 * 2
    log = worker.log.read_text()
    assert "Traceback" not in log
    assert not any(token in log for token in secured.issuer.issued)
