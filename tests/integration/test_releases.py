"""Releases in a running worker: swapped under load, refused if they differ from the announcement, rolled back."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import MessageSizeTooLargeError
from click.testing import CliRunner
from learning_corpus import corpus
from moto.server import ThreadedMotoServer

from agents.cli.release import promote, release
from agents.promotion import challenge, roll_back
from models.features.compute import FEATURES
from models.release.release import Release, manifest_sha256
from schemas.codec import decode
from schemas.errors import ReleaseRejected
from schemas.settings import Settings
from streams.kafka.announce import CHAMPION, Announcement, announce, announced
from streams.kafka.client import RiffleClient
from streams.kafka.produce import produce_events, produce_items
from streams.release_store import fetch_release, upload_release
from training.release.learned import Learned

pytestmark = pytest.mark.integration

DEADLINE_MS = 10_000


async def filled(settings: Settings) -> dict[str, int]:
    """Produce items and events; returns the token of the newest event of u0."""
    items, events = corpus()
    await produce_items(settings, items)
    tokens = await produce_events(settings, events)
    user = next(p for p in tokens if p == partition_of(settings, "u0"))
    return {"partition": user, "offset": tokens[user]}


def partition_of(settings: Settings, user: str) -> int:
    from aiokafka.partitioner import DefaultPartitioner

    every = list(range(settings.partitions))
    return int(DefaultPartitioner()(user.encode(), every, every))


async def state(settings: Settings) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{settings.web}/readyz") as response:
        return dict(await response.json())


async def until(settings: Settings, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(30):
        while not holds(found := await state(settings)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return found


async def test_a_release_is_swapped_in_under_load_and_each_answer_comes_from_one_release(
    worker: Settings, learned: Learned
) -> None:
    token = await filled(worker)
    first = learned.write(worker.releases_dir, {"gate": {"passed": True}, "n": 1})
    second = learned.write(worker.releases_dir, {"gate": {"passed": True}, "n": 2}, parent=first.name)
    client = RiffleClient(worker)
    await client.start()
    answers: list[dict[str, Any]] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            answers.append(await client.ask({"user_id": "u0", "k": 5, "explain": True, "after": token}, DEADLINE_MS))

    try:
        loading = [asyncio.create_task(load()) for _ in range(4)]
        async with asyncio.timeout(60):
            while not answers:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for folder in (first, second):
            await asyncio.to_thread(promote, worker, folder.name)
            await until(worker, lambda found, name=folder.name: found["release"] == name)  # type: ignore[misc]
            seen = len(answers)
            async with asyncio.timeout(20):
                while len(answers) < seen + 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        stop.set()
        await asyncio.gather(*loading)
    finally:
        stop.set()
        await client.stop()
    assert all("error" not in answer for answer in answers)
    assert all(answer["degraded"] == [] for answer in answers)
    served = [answer["release"] for answer in answers]
    assert list(dict.fromkeys(served)) == ["none", first.name, second.name], "each swap happens once and is never undone"
    for answer in answers:
        assert len(answer["items"]) == 5
        has_heads = ["heads" in item["explanation"] for item in answer["items"]]
        assert all(has_heads) if answer["release"] != "none" else not any(has_heads)


async def test_a_release_that_is_not_what_was_announced_is_refused_and_a_rollback_returns(
    worker: Settings, learned: Learned
) -> None:
    await filled(worker)
    good = learned.write(worker.releases_dir, {"gate": {"passed": True}, "n": 1})
    bad = learned.write(worker.releases_dir, {"gate": {"passed": True}, "n": 2}, parent=good.name)
    other = learned.write(worker.releases_dir, {"gate": {"passed": True}, "n": 3}, parent="another")
    await asyncio.to_thread(promote, worker, good.name)
    with pytest.raises(ReleaseRejected, match="judged against another"):
        await asyncio.to_thread(promote, worker, other.name)
    await until(worker, lambda found: found["release"] == good.name)
    pin = manifest_sha256(bad)
    data = bytearray((bad / "ranker.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bad / "ranker.onnx").write_bytes(bytes(data))
    with pytest.raises(ReleaseRejected, match="checksum"):
        await asyncio.to_thread(promote, worker, bad.name)
    for wanted in (Announcement(bad.name, pin), Announcement("../../etc", "0" * 64), Announcement("nowhere", "0" * 64)):
        await announce(worker, {CHAMPION: wanted})
        found = await until(worker, lambda found, name=wanted.release: name in found["refused"])  # type: ignore[misc]
        assert found["release"] == good.name
        assert found["ready"]
    await announce(worker, {CHAMPION: None})
    await until(worker, lambda found: found["release"] == "none")


async def test_impressions_carry_the_features_as_scored(worker: Settings, learned: Learned) -> None:
    token = await filled(worker)
    folder = learned.write(worker.releases_dir, {"gate": {"passed": True}})
    await asyncio.to_thread(promote, worker, folder.name)
    await until(worker, lambda found: found["release"] == folder.name)
    client = RiffleClient(worker)
    await client.start()
    consumer = AIOKafkaConsumer(
        worker.topic("impressions"), bootstrap_servers=worker.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        slate = await client.ask({"user_id": "u0", "k": 4, "after": token}, DEADLINE_MS)
        async with asyncio.timeout(20):
            async for record in consumer:
                impression = decode("impression", record.value)[0]
                if impression["request_id"] == slate["request_id"]:
                    break
    finally:
        await consumer.stop()
        await client.stop()
    assert impression["release"] == folder.name
    assert impression["feature_spec"] == learned.manifest.feature_spec
    assert [item["item_id"] for item in impression["items"]] == [item["item_id"] for item in slate["items"]]
    assert all(len(item["features"]) == len(FEATURES) for item in impression["items"])


def test_a_worker_that_starts_serves_what_was_announced(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any]
) -> None:
    from streams.kafka.topics import ensure_topics

    asyncio.run(ensure_topics(fresh))
    folder = learned.write(fresh.releases_dir, {"gate": {"passed": True}})
    promote(fresh, folder.name)
    worker_of(fresh).start()
    assert asyncio.run(state(fresh))["release"] == folder.name


def test_the_gate_is_heeded_unless_forced(fresh: Settings, learned: Learned) -> None:
    from streams.kafka.topics import ensure_topics

    asyncio.run(ensure_topics(fresh))
    folder = learned.write(fresh.releases_dir, {"gate": {"passed": False, "reasons": ["worse"]}})
    with pytest.raises(ReleaseRejected, match="worse"):
        promote(fresh, folder.name)
    assert asyncio.run(announced(fresh)) == {}
    assert promote(fresh, folder.name, force=True) == {"champion": folder.name, "previous": "none"}
    found = asyncio.run(announced(fresh))[CHAMPION]
    assert found is not None
    assert found.manifest_sha256 == manifest_sha256(folder)


def batches_of(segment: Path) -> list[int]:
    """Return the number of records of each batch of a log segment; see the format of record batches of Kafka, version 2."""
    data, at, found = segment.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from(">i", data, at + 8)
        found.append(struct.unpack_from(">i", data, at + 57)[0])
        at += 12 + length
    return found


def test_what_belongs_together_is_announced_as_a_whole(stack: Settings, fresh: Settings, learned: Learned) -> None:
    """A promotion or a rollback is one batch, which the broker appends or does not: no cut leaves half of it."""
    from streams.kafka.topics import ensure_topics

    asyncio.run(ensure_topics(fresh))
    first = learned.write(fresh.releases_dir, {"gate": {"passed": True}, "n": 1}).name
    second = learned.write(fresh.releases_dir, {"gate": {"passed": True}, "n": 2}, parent=first).name
    segment = stack.data_dir / "kafka" / "log" / f"{fresh.topic('models')}-0" / f"{0:020}.log"
    promote(fresh, first)
    challenge(fresh, second)
    promote(fresh, second)
    assert roll_back(fresh) == {"champion": first, "previous": second}
    assert roll_back(fresh) == {"champion": second, "previous": first}
    assert batches_of(segment) == [2, 1, 3, 2, 2]
    with pytest.raises(MessageSizeTooLargeError):
        asyncio.run(announce(fresh, {CHAMPION: None, "x" * 20_000: None}))
    assert len(batches_of(segment)) == 5
    named = asyncio.run(announced(fresh))
    assert {alias: found and found.release for alias, found in named.items()} == {
        "previous": first,
        "champion": second,
        "challenger": None,
    }


def test_a_release_travels_through_s3_and_is_verified_on_arrival(
    learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="releases")
        folder = learned.write(tmp_path / "here", {})
        uri = upload_release(folder, "s3://releases/prod", client)
        wanted = Announcement(folder.name, manifest_sha256(folder), uri)
        there = fetch_release(tmp_path / "there", wanted, client)
        assert Release.open(there, wanted.manifest_sha256).name == folder.name
        shutil.rmtree(there)
        client.put_object(Bucket="releases", Key=f"prod/{folder.name}/manifest.json", Body=json.dumps({"format": 1}).encode())
        with pytest.raises(ReleaseRejected):
            fetch_release(tmp_path / "there", wanted, client)
        assert not there.exists()
        assert list((tmp_path / "there").iterdir()) == []
    finally:
        server.stop()


def test_a_challenger_is_recorded_and_serves_nobody(fresh: Settings, learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is listed. It can be neither a refused release nor the champion. Once promoted it is no challenger."""
    from streams.kafka.topics import ensure_topics

    asyncio.run(ensure_topics(fresh))
    for name, value in fresh.environment().items():
        monkeypatch.setenv(name, value)
    passed = learned.write(fresh.releases_dir, {"gate": {"passed": True}}).name
    refused = learned.write(fresh.releases_dir, {"gate": {"passed": False, "reasons": ["too slow"]}}).name

    def riffle(*arguments: str) -> str:
        ran = CliRunner().invoke(release, [*arguments], catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        return ran.stdout.strip().splitlines()[-1]

    def aliases() -> dict[str, list[str]]:
        return {row["release"]: row["aliases"] for row in json.loads(riffle("list", "--json"))}

    with pytest.raises(ReleaseRejected, match="too slow"):
        riffle("alias", "challenger", refused)
    assert json.loads(riffle("alias", "challenger", passed, "--json")) == {"challenger": passed}
    assert aliases() == {passed: ["challenger"], refused: []}
    named = asyncio.run(announced(fresh))
    assert named.get(CHAMPION) is None, "nothing serves by it"
    promote(fresh, passed)
    assert aliases() == {passed: ["champion"], refused: []}
    with pytest.raises(ReleaseRejected, match="is the champion"):
        riffle("alias", "challenger", passed)
    riffle("alias", "challenger", refused, "--force")
    riffle("alias", "challenger", "none")
    assert aliases() == {passed: ["champion"], refused: []}
    with pytest.raises(ReleaseRejected, match="no release"):
        riffle("alias", "challenger", "../up")
