"""The encoder process: a new item is retrieved by its text and image without a restart, and a kill loses no vector."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from learning_corpus import corpus, pictured

from agents.cli.release import promote
from models.items.vectors import ItemVector, fingerprint, vectors_from
from schemas.codec import decode
from schemas.records import Item
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.encoding import ItemEncoding
from streams.kafka.client import RiffleClient
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics
from training.encoders.live import LiveEncoders
from training.release.learned import Learned

pytestmark = pytest.mark.integration

DEADLINE_MS = 10_000


def encoder(settings: Settings, *options: str) -> subprocess.Popen[bytes]:
    with (settings.home / "encoder.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", "from agents.cli import main; main()", "encode", *options],
            env={**os.environ, **settings.environment(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
        )


async def published(settings: Settings) -> dict[str, list[tuple[ItemVector, ...] | None]]:
    """Return all committed records of the item-vectors topic, by item, in order."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    found: dict[str, list[tuple[ItemVector, ...] | None]] = {}
    try:
        partition = TopicPartition(settings.topic("item-vectors"), 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        while await consumer.position(partition) < end:
            for record in (await consumer.getmany(timeout_ms=200)).get(partition, ()):
                value = vectors_from(decode("item_vectors", record.value)[0])[1] if record.value else None
                found.setdefault(record.key.decode(), []).append(value)
    finally:
        await consumer.stop()
    return found


def metrics(settings: Settings) -> str:
    with urllib.request.urlopen(f"{settings.web}/metrics", timeout=5) as response:
        return str(response.read().decode())


def get(settings: Settings, path: str) -> Any:
    with urllib.request.urlopen(f"{settings.web}{path}", timeout=10) as response:
        return json.load(response)


def put(settings: Settings, item_id: str, item: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{settings.web}/v1/items/{item_id}",
        json.dumps(item).encode(),
        {"Content-Type": "application/json"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 202


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve the folder over HTTP; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def learned_score(settings: Settings, item_id: str) -> float | None:
    """Return the learned source's score of an item for u0, None if it does not retrieve the item."""
    client = RiffleClient(settings)
    await client.start()
    try:
        slate = await client.ask({"user_id": "u0", "k": 100, "explain": True}, DEADLINE_MS)
    finally:
        await client.stop()
    assert slate["degraded"] == []
    for item in slate["items"]:
        if item["item_id"] == item_id and "learned" in item["explanation"]["sources"]:
            return float(item["explanation"]["sources"]["learned"])
    return None


async def test_a_new_item_gets_its_text_and_image_into_the_worker_that_serves(
    worker: Settings, learned: Learned, vectors: Path
) -> None:
    _, unmet = pictured(vectors / "images")
    await produce_items(worker, corpus()[0])
    await produce_events(worker, corpus()[1])
    folder = learned.write(worker.releases_dir, {"gate": {"passed": True}})
    await asyncio.to_thread(promote, worker, folder.name)
    assert await asyncio.to_thread(wait_until, lambda: get(worker, "/readyz")["release"] == folder.name, 30)
    new = Item("arrived", "", "", (), unmet[0].image, published_at=1_000_000_000 + 3_600_000 * 900)
    await produce_items(worker, [new])
    async with asyncio.timeout(30):
        # it is retrieved at once, by its content
        while (before := await learned_score(worker, "arrived")) is None:
            pass
    process = encoder(replace(worker, image_hosts="127.0.0.1"))
    try:
        assert await asyncio.to_thread(
            wait_until, lambda: f'item_vectors_total{{outcome="applied"}} {len(corpus()[0]) + 1}' in metrics(worker), 200
        ), (worker.home / "encoder.log").read_text()[-2000:]
        after = await learned_score(worker, "arrived")
        assert after is not None
        assert after != before, "its image has moved the tower's vector"
        with served(vectors / "images") as images:
            put(worker, "put", {"title": "red bowl", "text": "made of red glass", "image": f"{images}/red3.png"})
            assert await asyncio.to_thread(
                wait_until, lambda: f'item_vectors_total{{outcome="applied"}} {len(corpus()[0]) + 2}' in metrics(worker), 60
            ), (worker.home / "encoder.log").read_text()[-2000:]
        ((text, image),) = (kinds for kinds in (await published(worker))["put"] if kinds is not None)
        assert (text.modality, image.modality) == ("text", "image")
        assert text.values is not None
        assert image.values is not None
        assert await learned_score(worker, "put") is not None
        assert "put" in {item["item_id"] for item in get(worker, "/v1/similar/i0?k=40")["items"]}, "i0 is of red glass too"
        like = [item["item_id"] for item in get(worker, "/v1/similar/put?k=5")["items"]]
        assert {int(item_id[1:]) % 3 for item_id in like} == {0}, "of the red ones"
        async with asyncio.timeout(30):
            async with AIOKafkaProducer(bootstrap_servers=worker.bootstrap_servers) as producer:
                await producer.send_and_wait(worker.topic("items"), None, key=b"arrived")
            while 'item_vectors_total{outcome="removed"} 1' not in metrics(worker):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        process.terminate()
        assert await asyncio.to_thread(process.wait, 30) == 0
        assert process.stdout is not None
        process.stdout.close()


class Deterministic:
    """Encoders without weights that record their inputs. The process `dies` at a given item."""

    def __init__(self, dies: str = "", name: str = "t") -> None:
        self.asked: list[str] = []
        self.counters: dict[str, int] = {}
        self.names = [name]
        self._dies = dies

    def fingerprints(self, items: Sequence[Item]) -> list[int]:
        return [fingerprint([("text", self.names[0], item.title.encode())]) for item in items]

    def encode(self, items: Sequence[Item]) -> list[tuple[ItemVector, ...]]:
        if any(item.item_id == self._dies for item in items):
            raise KeyboardInterrupt
        self.asked.extend(item.item_id for item in items)
        values = [np.full(3, len(item.title), np.float16) for item in items]
        return [(ItemVector("text", self.names[0], item.title.encode(), v),) for item, v in zip(items, values, strict=True)]


async def test_what_dies_in_the_middle_goes_on_there_and_only_what_changed_is_encoded(fresh: Settings) -> None:
    await ensure_topics(fresh)
    many = [Item(f"i{n}", f"title {n}") for n in range(200)]
    await produce_items(fresh, many)
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as producer:
        await producer.send_and_wait(fresh.topic("items"), b"rubbish", key=b"x")
    first = Deterministic(dies="i150")
    with pytest.raises(KeyboardInterrupt):
        await ItemEncoding(fresh, first).run(once=True)
    async with asyncio.timeout(30):
        # a transaction is visible a moment after its commit is acknowledged
        while set(done := await published(fresh)) != set(first.asked):
            assert set(done) < set(first.asked)
    assert 0 < len(done) < 200
    second, third = Deterministic(), Deterministic()
    await ItemEncoding(fresh, second).run(once=True)
    assert not set(first.asked) & set(second.asked)
    async with asyncio.timeout(30):
        while len(every := await published(fresh)) < 200:
            pass
    assert {item_id: len(records) for item_id, records in every.items()} == {f"i{n}": 1 for n in range(200)}
    # a price is not content, a title is, and an item may be deleted
    changed = [Item("i3", "title 3", price=9.5), Item("i4", "another")]
    await produce_items(fresh, changed)
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as producer:
        await producer.send_and_wait(fresh.topic("items"), None, key=b"i5")
        await producer.send_and_wait(fresh.topic("items"), None, key=b"never-there")
    encoding = ItemEncoding(fresh, third)
    await encoding.run(once=True)
    assert third.asked == ["i4"]
    assert encoding.counters["deleted"] == 1
    async with asyncio.timeout(30):
        while (last := await published(fresh))["i5"][-1] is not None:
            pass
    assert len(last["i3"]) == 1
    assert len(last["i4"]) == 2
    assert last["i4"][-1] is not None
    assert "never-there" not in last


async def test_what_another_encoder_made_is_made_anew_and_only_once(fresh: Settings) -> None:
    await ensure_topics(fresh)
    many = [Item(f"i{n}", f"title {n}") for n in range(20)]
    await produce_items(fresh, many)
    asked = []
    for name in ("t", "t", "u", "u"):
        encoders = Deterministic(name=name)
        await ItemEncoding(fresh, encoders).run(once=True)
        async with asyncio.timeout(30):
            while {records[-1][0].encoder for records in (await published(fresh)).values() if records[-1]} != {name}:
                pass
        asked.append(sorted(encoders.asked))
    everything = sorted(item.item_id for item in many)
    assert asked == [everything, [], everything, []]


def test_a_killed_encoder_is_replaced_and_nothing_is_missing(fresh: Settings, vectors: Path) -> None:
    asyncio.run(ensure_topics(fresh))
    items = [Item(f"i{n}", f"thing number {n} of glass") for n in range(300)]
    asyncio.run(produce_items(fresh, items))
    process = encoder(fresh)
    assert wait_until(lambda: bool(asyncio.run(published(fresh))), 100)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    again = encoder(fresh, "--once", "--json")
    out, _ = again.communicate(timeout=200)
    assert again.returncode == 0, (fresh.home / "encoder.log").read_text()[-2000:]
    assert json.loads(out.decode().splitlines()[-1])["items"] < 300
    assert wait_until(lambda: len(asyncio.run(published(fresh))) == len(items), 30)
    found = asyncio.run(published(fresh))
    assert {item_id: len(records) for item_id, records in found.items()} == {item.item_id: 1 for item in items}
    expected = LiveEncoders(fresh.cache / "vectors").encode(items[:3])
    for item, (text, image) in zip(items, expected, strict=False):
        mine = found[item.item_id][0]
        assert mine is not None
        assert np.array_equal(mine[0].values, text.values)  # type: ignore[arg-type]
        assert mine[1].values is None
        assert image.values is None
