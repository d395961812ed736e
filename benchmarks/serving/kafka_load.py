"""Requests over Kafka: with the client that programs embed, and with a plain one that reads the broker's clock."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from itertools import count
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.errors import RiffleError
from schemas.records import After, Interaction, Request
from schemas.settings import Settings
from serving.open_loop import paced
from serving.sample import Sample
from serving.summary import Answer, normal_after_s, percentiles, summary
from streams.kafka.client import RiffleClient

LEFT_S = 5.0
"Seconds in which the last answers may come."


class Embedded:
    """`RiffleClient`, with requests that were built before."""

    def __init__(self, client: RiffleClient, sample: Sample, deadline_ms: int) -> None:
        self._client, self._sample, self._deadline_ms = client, sample, deadline_ms
        self._requests = [Request(f"r{n}", user) for n, user in enumerate(random.sample(sample.users, len(sample.users)))]

    async def ask(self, n: int) -> Answer:
        try:
            slate = await self._client.recommend(self._requests[n % len(self._requests)], self._deadline_ms)
        except RiffleError as error:
            return Answer(0, 0, refused=error.code)
        return Answer(0, 0, slate.degraded, items=len(slate.items), timings=dict(slate.timings_ms))

    async def fresh(self, times: int) -> dict[str, Any]:
        """Milliseconds from the send of an event, a like of the item shown first, to a slate that reflects it."""
        took, stale, unchanged = [], 0, 0
        action, value = self._sample.positive
        for n in range(times):
            request = self._requests[n % len(self._requests)]
            shown = (await self._client.recommend(request, 5_000)).items[0].item_id
            start = time.perf_counter()
            event = Interaction(uuid.uuid4().hex, request.user_id, shown, int(time.time() * 1e3), action, value)
            token: After = (await self._client.send_events([event]))[0]
            slate = await self._client.recommend(Request(f"f{n}", request.user_id, after=token), 5_000)
            took.append((time.perf_counter() - start) * 1e3)
            stale += "stale" in slate.degraded
            unchanged += any(item.item_id == shown for item in slate.items)
        return {**percentiles(took), "requests": times, "stale": stale, "unchanged": unchanged}


class Stamped:
    """A plain producer and consumer. Time runs from the broker's stamp of a request to the broker's stamp of its answer."""

    def __init__(self, settings: Settings, sample: Sample) -> None:
        self._settings, self._bootstrap, self._topic = settings, settings.bootstrap_servers, f"replies-{uuid.uuid4().hex}"
        self._bodies = [(user.encode(), orjson.dumps({"user_id": user, "k": 10})) for user in sample.users]
        self._due: dict[bytes, float] = {}
        self._sent: dict[bytes, asyncio.Future[Any]] = {}
        self._answers: dict[bytes, tuple[int, bytes]] = {}
        self._names = count()
        self._twice = 0

    async def __aenter__(self) -> Stamped:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        stamped = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics([NewTopic(self._topic, 1, 1, topic_configs=stamped)])
        await admin.close()
        self._producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap)
        self._consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, auto_offset_reset="earliest")
        await self._producer.start()
        await self._producer.partitions_for(self._settings.topic("requests"))
        await self._consumer.start()
        self._consumer.assign([TopicPartition(self._topic, 0)])
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._producer.stop()
        await self._consumer.stop()

    async def _read(self) -> None:
        while True:
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    name = dict(record.headers)["Faust-Ag-CorrelationId"]
                    self._twice += name in self._answers
                    self._answers.setdefault(name, (record.timestamp, record.value))

    @property
    def count(self) -> int:
        """Number of requests since `answers` was called."""
        return len(self._due)

    async def send(self, due_s: float, deadline_ms: int) -> None:
        number = next(self._names)
        user, body = self._bodies[number % len(self._bodies)]
        name = b"%d" % number
        headers = [
            ("Faust-Ag-ReplyTo", self._topic.encode()),
            ("Faust-Ag-CorrelationId", name),
            ("deadline-ms", b"%d" % deadline_ms),
            ("content-type", b"application/json"),
        ]
        self._due[name] = due_s
        self._sent[name] = await self._producer.send(self._settings.topic("requests"), body, key=user, headers=headers)

    async def answers(self) -> list[Answer]:
        """Outcomes of all requests so far, when they are there, in the order of sending. They are then forgotten."""
        until = time.perf_counter() + LEFT_S
        while len(self._answers) < len(self._due) and time.perf_counter() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        stamps = {name: (await sent).timestamp for name, sent in self._sent.items()}
        found = [self._answer(name, due_s, stamps[name]) for name, due_s in self._due.items()]
        self._due, self._sent, self._answers = {}, {}, {}
        return found

    def _answer(self, name: bytes, due_s: float, asked: int) -> Answer:
        if name not in self._answers:
            return Answer(due_s, float("inf"), refused="unanswered")
        stamp, body = self._answers[name]
        value = orjson.loads(body)["value"]
        refused = value["error"]["code"] if "error" in value else ""
        return Answer(due_s, float(stamp - asked), tuple(value.get("degraded", ())), refused, len(value.get("items", ())))

    def figures(self, answers: list[Answer], deadline_ms: int) -> dict[str, Any]:
        """Besides the summary: answers of any kind that the broker has stamped later than the deadline."""
        there = [answer.ms for answer in answers if answer.refused != "unanswered"]
        late = {"late": sum(ms > deadline_ms for ms in there), "latest_ms": max(there, default=None), "twice": self._twice}
        slates = sum(not answer.refused for answer in answers)
        return {**summary(answers), "slates": slates, **late}


async def burst(settings: Settings, sample: Sample, number: int, deadline_ms: int) -> dict[str, Any]:
    """Send `number` requests at once, to a reply topic that the worker does not know."""
    async with Stamped(settings, sample) as client:
        for _ in range(number):
            await client.send(0.0, deadline_ms)
        return client.figures(await client.answers(), deadline_ms)


async def overload(settings: Settings, sample: Sample, usual: float, seconds: float, deadline_ms: int) -> dict[str, Any]:
    """Half of the rate `usual` for 4 s, then three times it for `seconds`, then half of it again."""
    async with Stamped(settings, sample) as client:

        async def at(rate: float, seconds: float) -> None:
            await paced(rate, seconds, lambda _, due_s: client.send(due_s, deadline_ms))

        await at(usual / 2, 4)
        before = summary(await client.answers())
        await at(3 * usual, seconds)
        over = client.count
        await at(usual / 2, 6)
        answers = await client.answers()
        quiet = {"usual_p99": before["p99"], "normal_after_s": normal_after_s(answers[over:], before["p99"])}
        return {"rate": 3 * usual, **client.figures(answers[:over], deadline_ms), **quiet}
