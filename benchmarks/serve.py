"""Latency of recommendation requests over Kafka, beside an echo on the same broker.

serve.py [--items 10000] [--events 50000] [--peers PATH/echo.py] [--json]

First one request in flight, then open loop at 50 and 100 requests a second for 5 s. Latency counts from the time a request was
due. Then, three times, 300 simultaneous requests with a 250 ms deadline, to a new reply topic: the number answered with a
slate, the number rejected for lack of time, and the number of answers that Kafka stamped after the deadline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from common import await_ready, fill, instance, peers, stack, worker

from schemas.errors import RiffleError
from schemas.settings import Settings
from streams.kafka.client import RiffleClient


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1e3, 2) for p in (50, 99)}


async def measure(settings: Settings, users: int) -> dict[str, object]:
    client = RiffleClient(settings)
    await client.start()
    rng = np.random.default_rng(3)
    failed = 0

    async def one(due: float | None = None) -> float:
        nonlocal failed
        start = due or time.perf_counter()
        try:
            answer = await client.ask({"user_id": f"u{rng.integers(users)}", "k": 10}, 5_000)
            failed += "error" in answer
        except RiffleError:
            failed += 1
        return time.perf_counter() - start

    for _ in range(50):
        await one()
    out: dict[str, object] = {"sequential": percentiles([await one() for _ in range(300)])}
    for rate in (50, 100):
        tasks, start = [], time.perf_counter()
        for k in range(rate * 5):
            due = start + k / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(due)))
        out[f"{rate}/s"] = percentiles(list(await asyncio.gather(*tasks)))
    await client.stop()
    for n in range(1, 4):
        out[f"burst {n} of 300, 250 ms each"] = await burst(settings, users)
    return {**out, "failed": failed}


async def burst(settings: Settings, users: int, count: int = 300, deadline_ms: int = 250) -> dict[str, object]:
    """Send `count` requests at once through plain aiokafka, with a reply topic of their own, and read Kafka's stamps.

    Time runs from the broker's stamp of a request (when it was appended) to the stamp of its reply.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    topic = f"replies-{uuid.uuid4().hex}"
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers, auto_offset_reset="earliest")
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    sent = {}
    for n in range(count):
        name, user = uuid.uuid4().hex.encode(), f"u{n % users}"
        headers = [
            ("Faust-Ag-ReplyTo", topic.encode()),
            ("Faust-Ag-CorrelationId", name),
            ("deadline-ms", str(deadline_ms).encode()),
            ("content-type", b"application/json"),
        ]
        body = json.dumps({"user_id": user, "k": 10}).encode()
        sent[name] = await producer.send(settings.topic("requests"), body, key=user.encode(), headers=headers)
    asked = {name: (await future).timestamp for name, future in sent.items()}
    took: dict[bytes, float] = {}
    slates = answers = 0
    until = time.perf_counter() + 5
    while time.perf_counter() < until:
        for records in (await consumer.getmany(timeout_ms=100)).values():
            for record in records:
                name = dict(record.headers)["Faust-Ag-CorrelationId"]
                took.setdefault(name, record.timestamp - asked[name])
                slates += "error" not in json.loads(record.value)["value"]
                answers += 1
    await producer.stop()
    await consumer.stop()
    ms = np.asarray(list(took.values()))
    return {
        "slates": slates,
        "refused": answers - slates,
        "unanswered": count - len(took),
        "twice": answers - len(took),
        "late": int((ms > deadline_ms).sum()),
        "p50": round(float(np.median(ms)), 1),
        "max": round(float(ms.max()), 1),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--items", type=int, default=10_000)
    options.add_argument("--events", type=int, default=50_000)
    options.add_argument("--peers", type=Path, help="script of the echo peers; without it only Riffle runs")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with stack() as running:
        settings = instance(running)
        fill(settings, asked.events, 2_000, asked.items, "zipf")
        with worker(settings):
            await_ready(settings)
            figures: dict[str, object] = {"riffle": asyncio.run(measure(settings, 2_000))}
        if asked.peers:
            figures |= peers(asked.peers, settings)
    if asked.json:
        print(json.dumps(figures))
    else:
        for name, values in figures.items():
            print(name, values)


if __name__ == "__main__":
    main()
