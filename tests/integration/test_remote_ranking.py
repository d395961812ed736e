"""Ranking by processes of their own: the same answers, and none is lost or doubled whatever these processes do."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from ranking_stack import RankingProcess, count, filled, ranking, remotely

from schemas.settings import Settings
from streams.kafka.client import RiffleClient
from training.release.learned import Learned

pytestmark = pytest.mark.integration
DEADLINE_MS = 5_000
USERS = [f"u{n}" for n in range(12)]


async def answered_remotely(settings: Settings, client: RiffleClient, outcome: str = "answered") -> None:
    """Ask until a ranking process answers."""
    async with asyncio.timeout(60):
        while not count(settings, "riffle_rank_tasks_total", outcome=outcome):
            assert "error" not in await client.ask({"user_id": "u0"}, DEADLINE_MS)


async def slates(client: RiffleClient, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await client.ask(body, DEADLINE_MS) for body in bodies]


def ids(answers: list[dict[str, Any]]) -> list[list[str]]:
    return [[item["item_id"] for item in slate["items"]] for slate in answers]


async def steady(client: RiffleClient, bodies: list[dict[str, Any]]) -> None:
    """Wait until events and the statistics that follow from them are applied, so that answers stay the same."""
    async with asyncio.timeout(90):
        before, same = ids(await slates(client, bodies)), 0
        while same < 3:
            await asyncio.sleep(1.0)
            now = ids(await slates(client, bodies))
            before, same = now, same + 1 if now == before else 0


def remote_partitions(settings: Settings) -> float:
    return count(settings, "riffle_rank_partitions", state="answered")


async def test_remote_answers_are_local_answers(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any]
) -> None:
    release = await filled(fresh, learned)
    settings = remotely(fresh)
    bodies: list[dict[str, Any]] = [{"user_id": user, "k": 7, "explain": user != "u3"} for user in USERS]
    bodies[1]["candidates"] = [f"i{n}" for n in range(30)]
    bodies[2]["k"] = 500
    bodies[4] = {"user_id": "a stranger", "k": 20}
    async with ranking(settings, 1, release) as (process,):
        await asyncio.to_thread(worker_of(settings).start)
        async with RiffleClient(settings) as client:
            await answered_remotely(settings, client)
            await steady(client, bodies)
            before = count(settings, "riffle_rank_tasks_total", outcome="answered")
            there = await slates(client, bodies)
            assert count(settings, "riffle_rank_tasks_total", outcome="answered") > before
            async with aiohttp.ClientSession() as session:
                async with session.post(f"{settings.web}/v1/recommend?deadline_ms={DEADLINE_MS}", json=bodies) as response:
                    over_http = (await response.json())["answers"]
            assert count(settings, "riffle_rank_tasks_total", outcome="ranked") > 0
            assert process.state()["provider"] == "CPUExecutionProvider"
            assert b'riffle_rank_provider{provider="CPUExecutionProvider"} 1.0' in process.get("/metrics")[1]
            assert await process.end() == 0
            async with asyncio.timeout(60):
                while remote_partitions(settings):
                    await client.ask({"user_id": "u0"}, DEADLINE_MS)
            before = count(settings, "riffle_rank_tasks_total", outcome="answered")
            here = await slates(client, bodies)
            assert count(settings, "riffle_rank_tasks_total", outcome="answered") == before
    for remote in (there, over_http):
        assert ids(remote) == ids(here)
        for theirs, mine in zip(remote, here, strict=True):
            assert theirs["items"] == [
                {**item, "score": pytest.approx(item["score"], abs=1e-5)} | approximate(item) for item in mine["items"]
            ]
            assert {theirs["release"], mine["release"]} == {release}
            assert theirs["degraded"] == mine["degraded"] == []
            assert theirs["as_of"] == mine["as_of"]
            assert theirs["timings_ms"].keys() == mine["timings_ms"].keys()


def approximate(item: dict[str, Any]) -> dict[str, Any]:
    """The explanation of an item, in which the ranker's rounding may differ."""
    found = item.get("explanation")
    if found is None:
        return {}
    close = {name: pytest.approx(found[name], abs=1e-5) for name in ("sources", "light", "heads")}
    return {"explanation": {**found, **close}}


class Asking:
    """Requests at a steady pace over Kafka, each of which must be answered once."""

    def __init__(self, settings: Settings, deadline_ms: int = DEADLINE_MS) -> None:
        self._settings, self._deadline_ms = settings, deadline_ms
        self.answers: list[dict[str, Any]] = []
        self.stopping = False
        self.client = RiffleClient(settings)

    async def run(self) -> None:
        """Ask until `stopping`, several at once."""
        async with self.client, asyncio.TaskGroup() as group:
            for user in itertools.cycle(USERS):
                if self.stopping:
                    break
                group.create_task(self.ask(user))
                await asyncio.sleep(0.05)

    async def ask(self, user: str) -> None:
        self.answers.append(await self.client.ask({"user_id": user, "k": 5}, self._deadline_ms))

    def check(self) -> None:
        assert not [answer for answer in self.answers if "error" in answer]
        assert self.client.counters["sent"] == self.client.counters["answered"] == len(self.answers)
        assert all(len(answer["items"]) == 5 for answer in self.answers)
        # a second answer to the same request would be counted as late
        assert self.client.counters["late"] == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_no_request_fails_while_ranking_processes_are_away(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any], how: signal.Signals
) -> None:
    release = await filled(fresh, learned)
    settings = remotely(fresh)
    async with ranking(settings, 1, release) as (process,):
        await asyncio.to_thread(worker_of(settings).start)
        asking = Asking(settings)
        running = asyncio.create_task(asking.run())

        async def until(check: Callable[[], bool]) -> None:
            async with asyncio.timeout(90):
                while not await asyncio.to_thread(check):
                    assert not running.done()
                    await asyncio.sleep(0.2)

        def answered() -> float:
            return count(settings, "riffle_rank_tasks_total", outcome="answered")

        await until(lambda: answered() > 5 and remote_partitions(settings) == settings.partitions)
        process.process.send_signal(how)
        await until(lambda: remote_partitions(settings) == 0)
        before, asked = answered(), len(asking.answers)
        await until(lambda: len(asking.answers) > asked + 20)
        assert answered() == before, "without processes, all is ranked here"
        await until(lambda: count(settings, "riffle_rank_tasks_total", outcome="probe_unanswered") > 0)
        if how == signal.SIGSTOP:
            process.process.send_signal(signal.SIGCONT)
            back = None
        else:
            back = RankingProcess(settings)
        try:
            await until(lambda: answered() > before and remote_partitions(settings) == settings.partitions)
        finally:
            if back is not None:
                await back.end()
        asking.stopping = True
        await running
        asking.check()
