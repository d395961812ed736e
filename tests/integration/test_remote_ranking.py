"""Ranking by processes of their own: the same answers, and none is lost or doubled whatever these processes do."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import fastavro
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from made_tasks import made_task
from ranking_stack import RankingProcess, count, filled, metrics_of, ranking, remotely, until, warnings_of

from agents.requests.rank_records import ANSWERED, RANKED, REFUSED, VERSION, Ack, Envelope, decode_ack, encode_task
from agents.requests.replies import Address
from schemas.codec import Framing, decode, encode, fingerprint, schema_text
from schemas.errors import RiffleError
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.client import RiffleClient
from training.release.learned import Learned

pytestmark = pytest.mark.integration
DEADLINE_MS = 15_000
"Long, because a busy machine may hold up a process for seconds. Ranking processes get 1 s of it."
HEADS = 2
"Number of heads of the release."
USERS = [f"u{n}" for n in range(12)]


async def answered_remotely(settings: Settings, client: RiffleClient, outcome: str = "answered") -> None:
    """Ask until a ranking process answers."""
    async with asyncio.timeout(60):
        while not count(settings, "riffle_rank_tasks_total", outcome=outcome):
            assert "error" not in await client.ask({"user_id": "u0"}, DEADLINE_MS)


async def slates(client: RiffleClient, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await client.ask(body, DEADLINE_MS) for body in bodies]


async def over_http_of(settings: Settings, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    url = f"{settings.web}/v1/recommend?deadline_ms={DEADLINE_MS}"
    async with aiohttp.ClientSession() as session, session.post(url, json=bodies) as response:
        return list((await response.json())["answers"])


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
            over_http = await over_http_of(settings, bodies)
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
        self.failed: list[str] = []
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
        try:
            self.answers.append(await self.client.ask({"user_id": user, "k": 5}, self._deadline_ms))
        except RiffleError as error:
            self.failed.append(f"{user}: {error.message}")

    def check(self, *, killed: bool = False) -> None:
        """Each request was answered once; twice, perhaps, where a process was `killed` between reply and acknowledgement."""
        assert not self.failed, (self.client.counters, metrics_of(self._settings))
        assert not [answer for answer in self.answers if "error" in answer]
        assert self.client.counters["sent"] == self.client.counters["answered"] == len(self.answers)
        assert all(len(answer["items"]) == 5 for answer in self.answers)
        # the second answer to a request counts as late: there is none, unless a busy machine held up its acknowledgement
        outcomes = ("late", "unanswered") if killed else ("late",)
        twice = sum(count(self._settings, "riffle_rank_tasks_total", outcome=outcome) for outcome in outcomes)
        assert self.client.counters["late"] <= twice


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

        def answered() -> float:
            return count(settings, "riffle_rank_tasks_total", outcome="answered")

        await until(lambda: answered() > 5 and remote_partitions(settings) == settings.partitions, going=running)
        process.process.send_signal(how)
        await until(lambda: remote_partitions(settings) == 0, going=running)
        before, asked = answered(), len(asking.answers)
        await until(lambda: len(asking.answers) > asked + 20, going=running)
        assert answered() == before, "without processes, all is ranked here"
        await until(lambda: "ranking" in warnings_of(settings), going=running)
        await until(lambda: count(settings, "riffle_rank_tasks_total", outcome="probe_unanswered") > 0, going=running)
        if how == signal.SIGSTOP:
            process.process.send_signal(signal.SIGCONT)
            back = None
        else:
            back = RankingProcess(settings)
        try:
            await until(lambda: answered() > before and remote_partitions(settings) == settings.partitions, going=running)
        finally:
            if back is not None:
                await back.end()
        asking.stopping = True
        await running
        asking.check(killed=how == signal.SIGKILL)


async def test_requests_are_answered_while_one_of_two_processes_leaves_and_another_joins(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any]
) -> None:
    release = await filled(fresh, learned)
    settings = remotely(fresh)
    await asyncio.to_thread(worker_of(settings).start)
    asking = Asking(settings)
    async with ranking(settings, 2, release) as (first, second):
        running = asyncio.create_task(asking.run())

        def all_answered() -> bool:
            return remote_partitions(settings) == settings.partitions

        await until(lambda: all_answered() and len(asking.answers) > 20, going=running)
        assert await first.end() == 0
        third = await RankingProcess(settings).ready(release)
        try:
            await until(all_answered, going=running)
            assert await second.end() == 0
            await until(
                lambda: all_answered() and sorted(third.state()["partitions"]) == list(range(settings.partitions)),
                going=running,
            )
            before = count(settings, "riffle_rank_tasks_total", outcome="answered")
            await until(lambda: count(settings, "riffle_rank_tasks_total", outcome="answered") > before, going=running)
            asking.stopping = True
            await running
        finally:
            await third.end()
    asking.check()


async def test_without_the_workers_release_processes_refuse_and_the_worker_ranks(
    fresh: Settings, learned: Learned, worker_of: Callable[[Settings], Any], tmp_path: Path
) -> None:
    await filled(fresh, learned)
    settings = remotely(fresh)
    elsewhere = replace(settings, releases=str(tmp_path / "no releases"))
    async with ranking(elsewhere, release="none") as (process,):
        state = process.state()
        assert (state["ready"], state["release"]) == (False, "none")
        await asyncio.to_thread(worker_of(settings).start)
        asking = Asking(settings)
        running = asyncio.create_task(asking.run())
        await until(lambda: count(settings, "riffle_rank_tasks_total", outcome="probe_refused", code="release"), going=running)
        asking.stopping = True
        await running
        asking.check()
        assert count(settings, "riffle_rank_tasks_total", outcome="answered") == 0


class Acks:
    """A worker of the test's own, which sends tasks and reads what becomes of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.found: dict[bytes, list[Ack]] = defaultdict(list)
        self.replies: list[bytes] = []

    async def __aenter__(self) -> Acks:
        settings = self._settings
        admin = connect.admin(settings.kafka)
        await admin.start()
        await admin.create_topics([NewTopic(settings.topic("answers"), 1, 1)])
        await admin.close()
        self._producer = connect.producer(settings.kafka, connect.OUTPUTS)
        self._consumer = connect.consumer(settings.kafka, connect.COMMITTED)
        await self._producer.start()
        await self._consumer.start()
        acks = TopicPartition(settings.topic("rank-acks"), 1)
        self._consumer.assign([acks, TopicPartition(settings.topic("answers"), 0)])
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self) -> None:
        async for record in self._consumer:
            headers = dict(record.headers)
            if record.topic == self._settings.topic("answers"):
                self.replies.append(headers["Faust-Ag-CorrelationId"])
            elif record.key == b"tester":
                self.found[headers["riffle-task"]].append(decode_ack(record.value, VERSION, 3, HEADS))

    async def send(self, name: bytes, value: bytes | None, within_s: float = 30.0, version: int = VERSION) -> None:
        envelope = Envelope(name, b"tester", 1, int((time.time() + within_s) * 1e3), version)
        await self._producer.send_and_wait(self._settings.topic("rank"), value, headers=envelope.headers(), partition=2)

    async def outcome(self, name: bytes) -> Ack:
        await until(lambda: self.found[name])
        return self.found[name][0]


async def test_a_process_refuses_what_it_cannot_rank_and_goes_on(fresh: Settings, learned: Learned) -> None:
    release = await filled(fresh, learned)
    settings = remotely(fresh)
    good = replace(made_task(), release=release)
    address = Address(settings.topic("answers"), b"c1", Framing.JSON, "u1")
    async with ranking(settings, 1, release) as (process,), Acks(settings) as acks:
        datum = decode("rank_task", encode_task(good, None))[0]
        odd = {
            b"corrupt": (b"\xff\x00garbage", "unknown_framing"),
            b"empty": (b"", "unknown_framing"),
            b"cut": (encode_task(good, None)[:-3], "truncated"),
            b"shape": (encode("rank_task", {**datum, "features": b"\0" * 8}), "wrong_shape"),
            b"spec": (encode("rank_task", {**datum, "feature_spec": "f0"}), "feature_spec"),
            b"release": (encode_task(replace(good, release="another"), None), "release"),
        }
        for name, (value, _) in odd.items():
            await acks.send(name, value)
        await acks._producer.send_and_wait(settings.topic("rank"), b"nobody's", partition=2)
        await acks.send(b"expired", encode_task(good, replace(address, correlation=b"expired")), -0.001)
        await acks.send(b"good", encode_task(good, None))
        for name, (_, code) in odd.items():
            assert await acks.outcome(name) == Ack(REFUSED, code)
        assert (await acks.outcome(b"good")).outcome == RANKED
        # both versions at once: the next one has more fields at its end
        text = json.loads(schema_text("rank_task"))
        later = fastavro.parse_schema({**text, "fields": [*text["fields"], {"name": "later", "type": "string", "default": ""}]})
        out = io.BytesIO()
        fastavro.schemaless_writer(out, later, {**datum, "later": "x"})
        await acks.send(b"next", b"\xc3\x01" + fingerprint(later) + out.getvalue(), version=VERSION + 1)
        await acks.send(b"this", encode_task(good, None))
        following, this = await acks.outcome(b"next"), await acks.outcome(b"this")
        assert following.outcome == this.outcome == RANKED
        assert following.result is not None
        assert this.result is not None
        assert following.result.chosen.tolist() == this.result.chosen.tolist()
        # a client's topic is looked up first, then replied to; the worker is told either way
        for n in range(100):
            await acks.send(b"reply%d" % n, encode_task(good, replace(address, correlation=b"%d" % n)))
            if (await acks.outcome(b"reply%d" % n)).outcome == ANSWERED:
                break
        else:
            pytest.fail("the client gets no reply")
        await until(lambda: acks.replies)
        assert acks.replies == [b"%d" % n], "once, and nothing that has expired"
        assert b"expired" not in acks.found
        assert all(len(found) == 1 for found in acks.found.values())
        assert process.process.poll() is None
        metrics = process.get("/metrics")[1].decode()
        assert 'riffle_ranked_total{outcome="late"} 1.0' in metrics
        assert 'riffle_ranked_total{outcome="unaddressed"} 1.0' in metrics
