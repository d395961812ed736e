"""Two workers, one of which dies or leaves under requests over HTTP: no request fails, and answers from copies are marked."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import free_port

from schemas.kernels import partition_of
from schemas.records import Item
from schemas.settings import Settings
from streams.kafka.produce import produce_items
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration
USERS = [f"u{n}" for n in range(24)]
PARTITIONS = {0, 1, 2, 3}
ITEMS = [f"i{n}" for n in range(150)]
UNTOUCHED = [f"f{n}" for n in range(5)]
BASE_MS = 1_700_000_000_000
DEADLINE_MS = 1_000
NEWEST = 10
SETTLED_S = 60.0


class Story:
    """The events of the test, sent over HTTP: user after user interacts with item after item."""

    def __init__(self) -> None:
        self.events: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        "Offset, event time and item of each event, by user."
        self.stopping = False

    async def send(self, session: aiohttp.ClientSession, to: Settings, users: list[str]) -> None:
        """Send one event of each user, and wait until Kafka has them."""
        new = [(user, BASE_MS + len(self.events[user]), ITEMS[len(self.events[user])]) for user in users]
        sent = [{"user_id": user, "event_time": event_time, "item_id": item} for user, event_time, item in new]
        async with session.post(f"{to.web}/v1/events", json=sent) as response:
            assert response.status == 202
            tokens = (await response.json())["tokens"]
        for (user, event_time, item), token in zip(new, tokens, strict=True):
            self.events[user].append((token["offset"], event_time, item))

    async def run(self, to: Settings) -> None:
        """Send events until `stopping`."""
        async with aiohttp.ClientSession() as session:
            for user in itertools.cycle(USERS):
                if self.stopping:
                    return
                await self.send(session, to, [user])
                await asyncio.sleep(0.02)

    def seen(self, user: str, offset: int) -> set[str]:
        """Items of the user's events up to an offset."""
        return {item for at, _, item in self.events[user] if at <= offset}

    def newest_ms(self, partition: int, offset: int) -> int:
        """Newest event time of a partition's events up to an offset."""
        times = [
            event_time
            for user, events in self.events.items()
            for at, event_time, _ in events
            if at <= offset and partition_of(user.encode(), len(PARTITIONS)) == partition
        ]
        return max(times, default=0)


@dataclass
class Load:
    """Steady requests to one worker, for each user in turn, each over a connection of its own."""

    settings: Settings
    story: Story
    slates: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    "Times of requests without a connection."
    answered: list[float] = field(default_factory=list)
    slowest_s: float = 0.0
    stopping: bool = False

    async def run(self) -> None:
        """Send requests until `stopping`."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            for user in itertools.cycle(USERS):
                if self.stopping:
                    return
                await self.ask(session, user)
                await asyncio.sleep(0.01)

    async def ask(self, session: aiohttp.ClientSession, user: str) -> None:
        """Ask to rank the items of the user's newest events, most of which must not be shown, and some others."""
        candidates = [item for _, _, item in self.story.events[user][-NEWEST:]] + UNTOUCHED
        body = {"user_id": user, "k": len(candidates), "candidates": candidates}
        started = time.monotonic()
        try:
            async with session.post(f"{self.settings.web}/v1/recommend?deadline_ms={DEADLINE_MS}", json=body) as response:
                slate = await response.json()
        except aiohttp.ClientError:
            self.refused.append(started)
            return
        self.answered.append(started)
        self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        if response.status != 200:
            self.failures.append(f"{user}: {response.status} {slate}")
            return
        self.slates.append(slate)
        self.check(user, slate)

    def check(self, user: str, slate: dict[str, Any]) -> None:
        """`as_of` claims no event that the rows lack: the items of all events up to it are left out as seen."""
        assert slate["user_id"] == user
        shown, as_of = {item["item_id"] for item in slate["items"]}, slate["as_of"]
        assert set(UNTOUCHED) <= shown
        if as_of is not None:
            assert as_of["partition"] == partition_of(user.encode(), len(PARTITIONS))
            assert not shown & self.story.seen(user, as_of["offset"]), slate
            if "standby" in slate["degraded"]:
                assert as_of["event_time"] <= self.story.newest_ms(as_of["partition"], as_of["offset"])

    @property
    def marks(self) -> Counter[str]:
        """How often each value of `degraded` came; an answer without any counts as `none`."""
        return Counter(mark for slate in self.slates for mark in slate["degraded"] or ["none"])


async def until(check: Callable[[], Awaitable[bool]], seconds: float = SETTLED_S) -> None:
    """Wait until `check` returns a true value."""
    async with asyncio.timeout(seconds):
        while not await check():  # noqa: ASYNC110 - what happens in other processes sets no event here
            await asyncio.sleep(0.1)


async def roles(*workers: Settings) -> Counter[str]:
    """How the workers hold the partitions of the user table."""
    found: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        for settings in workers:
            async with session.get(f"{settings.web}/v1/tables") as response:
                found.update(t["role"] for t in (await response.json())["tables"] if t["table"] == "users")
    return found


async def all_normal(settings: Settings, story: Story) -> bool:
    """Whether this worker has a normal answer for every user, with all events."""
    load = Load(settings, story)
    async with aiohttp.ClientSession() as session:
        for user in USERS:
            await load.ask(session, user)
    newest = [{item["item_id"] for item in slate["items"]} == set(UNTOUCHED) for slate in load.slates]
    return len(newest) == len(USERS) and all(newest) and load.marks.keys() == {"none"}


async def pair(fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]) -> Any:
    """Two workers that have shared the partitions and follow each other's."""
    fresh = replace(fresh, session_timeout_s=10.0)
    await ensure_topics(fresh)
    await produce_items(fresh, [Item(item, f"thing {item}") for item in (*ITEMS, *UNTOUCHED)])
    other = replace(fresh, home=tmp_path / "other", web_port=free_port())
    other.home.mkdir()
    workers = [worker_of(settings) for settings in (fresh, other)]
    for worker in workers:
        await asyncio.to_thread(worker.start)
    story = Story()
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            await story.send(session, fresh, USERS)
    assert {partition_of(user.encode(), len(PARTITIONS)) for user in USERS} == PARTITIONS

    async def shared() -> bool:
        return await roles(fresh, other) == {"owner": len(PARTITIONS), "standby": len(PARTITIONS)}

    await until(shared)
    for settings in (fresh, other):
        await until(lambda settings=settings: all_normal(settings, story))  # type: ignore[misc]
    return fresh, other, workers, story


async def test_no_request_fails_when_a_worker_is_killed(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    _, alive, workers, story = await pair(fresh, tmp_path, worker_of)
    load = Load(alive, story)
    running = [asyncio.create_task(load.run()), asyncio.create_task(story.run(alive))]
    await asyncio.sleep(2.0)
    assert load.marks.keys() == {"none"}
    before = len(load.slates)
    await asyncio.to_thread(workers[0].kill)

    async def taken_over() -> bool:
        return (await roles(alive))["owner"] == len(PARTITIONS)

    await until(taken_over)
    story.stopping = True
    await running[1]
    await until(lambda: all_normal(alive, story))
    load.stopping = True
    await running[0]
    assert not load.failures
    assert not load.refused
    assert load.marks.keys() == {"none", "standby"}
    copies = [slate["as_of"] for slate in load.slates[before:] if "standby" in slate["degraded"]]
    assert all(as_of["offset"] >= 0 for as_of in copies), "a copy knows what it includes"


async def test_no_request_fails_when_a_worker_is_told_to_stop(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    leaving, staying, workers, story = await pair(fresh, tmp_path, worker_of)
    loads = [Load(settings, story) for settings in (leaving, staying)]
    running = [asyncio.create_task(work) for work in (*(load.run() for load in loads), story.run(staying))]
    await asyncio.sleep(1.0)
    workers[0].process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(workers[0].process.wait, 30) == 0
    await asyncio.sleep(1.0)
    story.stopping = True
    await running[2]
    await until(lambda: all_normal(staying, story))
    for load in loads:
        load.stopping = True
    await asyncio.gather(*running)
    gone, stayed = loads
    assert gone.failures + stayed.failures == []
    assert not stayed.refused
    assert gone.marks.keys() == {"none"}, "it answers from its own rows to the end"
    assert stayed.marks.keys() <= {"none", "standby"}
    # a closed port stays closed: before, every request was answered
    assert max(gone.answered) < min(gone.refused)
