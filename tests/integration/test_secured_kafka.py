"""A worker serves on a broker that requires TLS, with a client certificate of a private authority or with a login."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiokafka.errors import KafkaError
from click.testing import CliRunner
from conftest import WorkerProcess
from secured_broker import CLIENT_SECRET, PASSWORD, Secured

from agents.cli.doctor import doctor
from agents.cli.states import kafka_answers
from schemas.records import Interaction, Item, Request
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.client import RiffleClient
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["SSL", "PLAIN", "OAUTHBEARER"])
async def test_a_worker_serves_on_a_secured_broker(secured: Secured, tmp_path: Path, kind: str) -> None:
    """All clients connect: topics, groups, transactions, changelogs, broadcasts, requests, replies, the archive."""
    settings = secured.by(kind, tmp_path)
    worker = WorkerProcess(settings)
    await asyncio.to_thread(worker.start)
    try:
        await used(settings)
    finally:
        await asyncio.to_thread(worker.stop)
    assert worker.process is not None
    assert worker.process.returncode == 0
    log = worker.log.read_text()
    assert PASSWORD not in log
    assert CLIENT_SECRET not in log
    assert not any(token in log for token in secured.issuer.issued)
    assert "Traceback" not in log
    assert "\x1b" not in log, "no codes of terminals"


async def used(settings: Settings) -> None:
    async with RiffleClient(settings) as client:
        items = [Item(item_id=f"i{n}", title=f"item {n}", categories=("films",)) for n in range(5)]
        await asyncio.gather(*(client.put_item(item) for item in items))
        after = await client.send_events([Interaction("e1", "ann", "i1", 1_700_000_000_000, "like")])
        # `after` waits for the user's partition, not for the catalogue, which is broadcast
        for _ in range(200):
            slate = await client.recommend(Request("r1", "ann", k=3, after=after[0]))
            if slate.items:
                break
            await asyncio.sleep(0.05)
        assert slate.items
        assert "i1" not in {item.item_id for item in slate.items}
        async with aiohttp.ClientSession() as session, session.get(f"{settings.web}/readyz") as response:
            found = await response.json()
        assert found["ready"], found
        assert not found.get("warnings"), found
        assert await asyncio.to_thread(kafka_answers, settings)
        done = await asyncio.to_thread(CliRunner().invoke, doctor, [], env=settings.environment(secrets=True))
        assert f"({settings.kafka.described()})" in done.output
        assert PASSWORD not in done.output


@pytest.mark.parametrize("change", ["another password", "no authority", "plain text"])
async def test_a_client_that_may_not_is_refused(secured: Secured, tmp_path: Path, change: str) -> None:
    settings = replace(secured.by("PLAIN", tmp_path), topic_prefix="refused.")
    if change == "another password":
        settings = replace(settings, kafka_password_file="", kafka_password="other")
    elif change == "no authority":
        settings = replace(settings, kafka_ca_file="")
    else:
        settings = replace(Settings(home=tmp_path), bootstrap=settings.bootstrap)
    with pytest.raises(KafkaError) as caught:
        await ensure_topics(settings)
    assert PASSWORD not in str(caught.value)
    assert await connect.any_answers(settings.kafka, 2.0) == (change == "another password")
