"""The archiver on a real broker: a crash at any point neither loses nor repeats a record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from aiokafka import AIOKafkaProducer
from fakes import FakeRegistry

from models.archive.files import ArchiveFile, read_archive
from models.archive.target import LocalFolder
from schemas.codec import Framing, encode
from schemas.columns import ERASE
from schemas.errors import ConfigError, NotReady
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.archive.archiver import Archiver
from streams.kafka.dead_letters import read_letters, replay_letters
from streams.kafka.produce import produce_events, produce_items
from streams.kafka.topics import ensure_topics
from training.data.corpus import open_corpus

pytestmark = pytest.mark.integration


def events(start: int, stop: int) -> list[Interaction]:
    return [Interaction(f"e{n}", f"u{n % 17}", f"i{n % 29}", 1_700_000_000_000 + n) for n in range(start, stop)]


async def until(archiver: Archiver, enough: Callable[[Archiver], bool]) -> asyncio.Task[None]:
    task = asyncio.create_task(archiver.run())
    async with asyncio.timeout(60):
        while not enough(archiver):
            if task.done():
                task.result()
            await asyncio.sleep(0.05)
    return task


async def finish(archiver: Archiver, task: asyncio.Task[None]) -> None:
    archiver.stop()
    await task


class DiesAfter(LocalFolder):
    """A disk that stores `whole` files. The worker dies right after the next file, before its commit."""

    whole = 2

    def write(self, path: str, data: bytes) -> None:
        super().write(path, data)
        self.whole -= 1
        if self.whole < 0:
            raise OSError("killed")


async def killed(fresh: Settings) -> tuple[Settings, LocalFolder]:
    """An archive whose worker died between a file and its commit, with 600 events on the topic."""
    settings = replace(fresh, archive_rows=50, archive_interval_s=0.2)
    await ensure_topics(settings)
    folder = LocalFolder(settings.home / "archive")
    await produce_events(settings, events(0, 600))
    with pytest.raises(OSError, match="killed"):
        await Archiver(settings, target=DiesAfter(folder.root)).run()
    return settings, folder


async def test_killed_between_file_and_commit_then_restarted(fresh: Settings) -> None:
    settings, folder = await killed(fresh)
    held = read_archive(folder, "interactions").collect().height
    await produce_events(settings, events(600, 800))
    second = Archiver(settings, target=folder)
    await finish(second, await until(second, lambda a: a.counters["records"] >= 800 - held))
    found = read_archive(folder, "interactions").collect()
    assert sorted(found["event_id"]) == sorted(f"e{n}" for n in range(800))
    files = sorted(f for p in folder.names("topic=interactions/") if (f := ArchiveFile.parse(p)))
    ranges = sorted((f.partition, f.first, f.last) for f in files)
    assert all(a[0] != b[0] or a[2] < b[1] for a, b in pairwise(ranges)), "ranges overlap"


class SlowToList(LocalFolder):
    """A folder that is slow to list, like a bucket with many files."""

    def names(self, prefix: str) -> list[str]:
        time.sleep(0.5)
        return super().names(prefix)


async def test_what_is_read_before_the_end_of_the_archive_is_known_is_not_archived_twice(fresh: Settings) -> None:
    settings, folder = await killed(fresh)
    await produce_events(settings, events(600, 800))
    # long enough that one file holds records read before and after
    settings = replace(settings, archive_rows=1_000, archive_interval_s=3)
    second = Archiver(settings, target=SlowToList(folder.root))
    await finish(second, await until(second, lambda _: read_archive(folder, "interactions").collect().height >= 800))
    assert sorted(read_archive(folder, "interactions").collect()["event_id"]) == sorted(f"e{n}" for n in range(800))


async def test_what_cannot_be_decoded_is_counted_and_passed_over(fresh: Settings) -> None:
    settings = replace(fresh, archive_interval_s=0.2)
    await ensure_topics(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for key, value in ((b"u", b"rubbish"), (None, b""), (b"u", b"\xc3\x01tooshort")):
            await producer.send_and_wait(settings.topic("interactions"), value, key=key)
        event = b'{"user_id": "u", "item_id": "i", "event_time": 5, "value": 0.1, "position": 3}'
        header = [("content-type", b"application/json")]
        await producer.send_and_wait(settings.topic("interactions"), event, key=b"u", headers=header)
        await producer.send_and_wait(settings.topic("interactions"), event, key=b"other", headers=header)
        await producer.send_and_wait(settings.topic("impressions"), b'{"items": 3}', key=b"u", headers=header)
    archiver = Archiver(settings)
    await finish(archiver, await until(archiver, lambda a: a.counters["bad"] + a.counters["records"] >= 6))
    assert (archiver.counters["bad"], archiver.counters["records"]) == (5, 1)
    found = read_archive(LocalFolder(settings.home / "archive"), "interactions").collect().to_dicts()
    assert [(e["user_id"], e["event_time"], e["value"], e["position"]) for e in found] == [("u", 5, 0.1, 3)]


async def test_a_bad_catalogue_entry_is_one_dead_letter_and_its_neighbours_are_archived(fresh: Settings) -> None:
    settings = replace(fresh, archive_interval_s=0.2)
    await ensure_topics(settings)
    topic, json_headers = settings.topic("items"), [("content-type", b"application/json")]
    bad: list[tuple[bytes, bytes | None]] = [
        (b"i1", b'{"title": "no id"}'),
        (b"i2", b"\x7fgarbage"),
        (b"\xff", None),
        (b"i3", b'{"item_id": "i3", "price": "dear"}'),
    ]
    origins = {}
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for n, (key, value) in enumerate(bad):
            sent = await producer.send_and_wait(topic, value, key=key, headers=json_headers, partition=0)
            origins[sent.offset] = (key, value)
            await producer.send_and_wait(topic, b'{"item_id": "g%d"}' % n, key=b"g%d" % n, headers=json_headers)
    archiver = Archiver(settings)
    await finish(archiver, await until(archiver, lambda a: a.counters["bad"] + a.counters["records"] >= 8))
    again = Archiver(settings)
    await produce_items(settings, [Item("g4")])
    await finish(again, await until(again, lambda a: a.counters["records"] >= 1))
    letters = [letter async for letter in read_letters(settings)]
    assert {letter["offset"]: (letter["key"], letter["value"]) for letter in letters} == origins
    assert len(letters) == len(bad), "a restart repeats none"
    assert [letter["code"] for letter in letters] == ["missing_field", "not_json", "invalid_key", "invalid_field"]
    assert all(letter["topic"] == topic and letter["reason"] for letter in letters)
    found = read_archive(LocalFolder(settings.home / "archive"), "items").collect()
    assert set(found["item_id"]) == {f"g{n}" for n in range(5)}


async def test_a_catalogue_of_which_nothing_can_be_used_is_told_once(fresh: Settings) -> None:
    settings = replace(fresh, archive_interval_s=0.2)
    await ensure_topics(settings)
    for n in range(2):
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            await producer.send_and_wait(settings.topic("items"), b"\x7fgarbage", key=b"i%d" % n)
        archiver = Archiver(settings)
        await finish(archiver, await until(archiver, lambda a: a.counters["files"] >= 1))
        assert archiver.counters["letters"] == 1
    assert [letter["key"] async for letter in read_letters(settings)] == [b"i0", b"i1"]
    assert read_archive(LocalFolder(settings.home / "archive"), "items").collect().is_empty()
    archiver = Archiver(settings)
    await produce_items(settings, [Item("g")])
    await finish(archiver, await until(archiver, lambda a: a.counters["records"] >= 1))
    assert (archiver.counters["bad"], archiver.counters["letters"]) == (0, 0)


class AwayAtFirst(FakeRegistry):
    """A schema registry that answers only the third call."""

    asked = 0

    def schema_of(self, schema_id: int) -> str:
        self.asked += 1
        if self.asked < 3:
            raise NotReady("registry_unavailable", "away")
        return super().schema_of(schema_id)


async def test_the_archive_waits_for_a_schema_and_what_needs_none_goes_on(
    fresh: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.archive.archiver.WAIT_S", 2.0)
    settings = replace(fresh, archive_interval_s=0.2)
    await ensure_topics(settings)
    registry = AwayAtFirst.of("item")
    await produce_items(settings, [Item("before")])
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        value = encode("item", {"item_id": "i", "title": "a thing"}, Framing.CONFLUENT, registry)
        await producer.send_and_wait(settings.topic("items"), value, key=b"i")
    await produce_items(settings, [Item("after")])
    archiver = Archiver(settings, registry)
    task = await until(archiver, lambda a: a.counters["waits"] >= 1)
    await produce_events(settings, events(0, 50))
    folder = LocalFolder(settings.home / "archive")
    async with asyncio.timeout(60):
        found: list[str] = []
        while len(found) < 3:
            found = read_archive(folder, "items").collect()["item_id"].to_list()
            assert found == ["before", "i", "after"][: len(found)], "none is passed over"
            await asyncio.sleep(0.05)
    await finish(archiver, task)
    assert read_archive(folder, "items").collect()["item_id"].to_list() == ["before", "i", "after"]
    assert read_archive(folder, "interactions").collect().height == 50
    assert (archiver.counters["waits"], archiver.counters["bad"]) == (2, 0)


async def test_an_entry_is_produced_again_unless_a_newer_one_came(fresh: Settings) -> None:
    settings = replace(fresh, archive_interval_s=0.2)
    await ensure_topics(settings)
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for key in (b"mended", b"alone"):
            await producer.send_and_wait(settings.topic("items"), b"\x7fgarbage", key=key)
    await produce_items(settings, [Item("mended")])
    archiver = Archiver(settings)
    await finish(archiver, await until(archiver, lambda a: a.counters["records"] >= 1))
    letters = [letter async for letter in read_letters(settings)]
    sent = {"sent": 1, "cut": 0, "unreadable": 0, "superseded": 1, "erased": 0, "failed": 0}
    assert await replay_letters(settings, letters) == sent
    # once more: records that were produced again are newer, too
    assert (await replay_letters(settings, letters))["superseded"] == 2


async def test_what_is_deleted_and_who_is_erased_are_archived_once_however_the_worker_dies(fresh: Settings) -> None:
    settings = replace(fresh, archive_rows=20, archive_interval_s=0.2)
    await ensure_topics(settings)
    folder = LocalFolder(settings.home / "archive")
    await produce_items(settings, [Item(f"i{n}", f"thing {n}") for n in range(30)])
    await produce_events(settings, events(0, 100))
    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        for item in (b"i3", b"i4"):
            await producer.send_and_wait(settings.topic("items"), None, key=item)
        for user in (b"u1", b"u2"):
            await producer.send_and_wait(settings.topic("interactions"), None, key=user, headers=[ERASE])
    await produce_items(settings, [Item("i4", "thing 4, again")])
    await produce_events(settings, events(100, 140))
    with pytest.raises(OSError, match="killed"):
        await Archiver(settings, target=DiesAfter(folder.root)).run()
    held = sum(read_archive(folder, topic).collect().height for topic in ("interactions", "items"))
    second = Archiver(settings, target=folder)
    done = ("records", "deletions", "erasures", "bad")
    await finish(second, await until(second, lambda a: sum(a.counters[name] for name in done) >= 175 - held))
    assert read_archive(folder, "items").collect()["_removed"].sum() == 2
    assert read_archive(folder, "interactions").collect()["_removed"].sum() == 2
    corpus = open_corpus(str(folder.root))
    titles = {item.item_id: item.title for item in corpus.items}
    assert set(titles) == {f"i{n}" for n in range(30)} - {"i3"}
    assert titles["i4"] == "thing 4, again"
    left = [e for n, e in enumerate(events(0, 140)) if n >= 100 or e.user_id not in {"u1", "u2"}]
    assert corpus.events == left


async def test_an_archive_ahead_of_its_topic_is_refused(fresh: Settings) -> None:
    await ensure_topics(fresh)
    target = LocalFolder(fresh.home / "archive")
    target.write(ArchiveFile.of("interactions", 0, 0, 99, 0).path, b"")
    with pytest.raises(ConfigError, match="recreated"):
        await Archiver(fresh, target=target).run()
