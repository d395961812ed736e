"""One request in one trace, across processes: client, worker, each stage, a ranking process, the reply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import aiohttp
import pytest
from collector import Collector, Received, collecting
from conftest import WorkerProcess
from ranking_stack import count, filled, ranking, remotely, until

from schemas.records import Request
from schemas.settings import Settings
from streams.kafka.client import RiffleClient
from streams.tracing import Tracing, tracing_of

if TYPE_CHECKING:
    from training.release.learned import Learned

pytestmark = pytest.mark.integration
WORKER, RANKING, CLIENT = "riffle-worker", "riffle-ranking", "a-shop"
BEFORE, AFTER = ("hydrate", "retrieve", "merge", "filter", "light"), ("rank", "select")
PARENT = f"00-{'5' * 32}-{'6' * 16}-01"


async def spans_of(collector: Collector, trace: str, names: set[tuple[str, str]]) -> dict[tuple[str, str], Received]:
    """The spans of a trace by service and name, as soon as all of these are there."""

    def come() -> bool:
        return {(span.service, span.name) for span in collector.trace(trace)} >= names

    await until(come, 30)
    return {(span.service, span.name): span for span in collector.trace(trace)}


async def ask(settings: Settings, tracing: Tracing, request_id: str) -> None:
    async with RiffleClient(settings, tracing=tracing) as client:
        slate = await client.recommend(Request(request_id, "u1", k=3), 20_000)
        assert len(slate.items) == 3


async def test_one_request_is_one_trace_from_the_client_to_the_reply(
    fresh: Settings, worker_of: Callable[[Settings], WorkerProcess], learned: Learned
) -> None:
    with collecting() as collector:
        settings = replace(fresh, traces=collector.url, log_level="DEBUG", log_format="json")
        name = await filled(settings, learned)
        tracing = tracing_of(settings, CLIENT)
        assert tracing is not None
        worker = worker_of(remotely(settings))
        await asyncio.to_thread(worker.start)
        async with ranking(settings, release=name), aiohttp.ClientSession(settings.web) as http:
            # the first requests are ranked by the worker, until a ranking process has answered a probe
            asked = 0

            def answered() -> bool:
                return count(settings, "riffle_rank_tasks_total", outcome="answered") > 0

            async with asyncio.timeout(60):
                while not await asyncio.to_thread(answered):
                    asked += 1
                    await ask(settings, tracing, f"request-{asked}")
            # and one over HTTP, whose sender has traced it already
            headers = {"traceparent": PARENT}
            async with http.get("/v1/recommend/u2?k=2&request_id=over-http&deadline_ms=20000", headers=headers) as response:
                assert response.status == 200
            await asyncio.to_thread(tracing.stop)
            await until(lambda: request_of(collector, f"request-{asked}") is not None, 30)
            remote = request_of(collector, f"request-{asked}")
            assert remote is not None
            wanted = {(CLIENT, "recommend"), (CLIENT, "send request"), (WORKER, "request"), (WORKER, "rank task")}
            wanted |= {(WORKER, stage) for stage in ("queue", *BEFORE, *AFTER)}
            wanted |= {(RANKING, part) for part in ("rank", "select", "queue", "reply")}
            spans = await spans_of(collector, remote.trace, wanted)
            over_http = await spans_of(
                collector, "5" * 32, {(WORKER, "request"), *((WORKER, stage) for stage in (*BEFORE, *AFTER))}
            )
        worker.stop()

        first, sent = spans[CLIENT, "recommend"], spans[CLIENT, "send request"]
        task = spans[WORKER, "rank task"]
        assert (first.parent, sent.parent, remote.parent, task.parent) == ("", first.id, sent.id, remote.id)
        ranks = [span for span in collector.trace(remote.trace) if (span.service, span.name) == (RANKING, "rank")]
        assert {span.parent for span in ranks} == {task.id, next(span.id for span in ranks if span.parent == task.id)}
        assert first.began <= remote.began <= task.began <= task.ended <= remote.ended
        assert remote.attributes["riffle.release"] == name
        assert not any(span.failed for span in spans.values())
        own = over_http[WORKER, "request"]
        assert (own.parent, own.attributes["riffle.interface"]) == ("6" * 16, "http")
        assert "u1" not in {str(value) for span in collector.spans for value in span.attributes.values()}

    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
    named = {line["request_id"]: line["trace_id"] for line in lines if line["message"].startswith("answered with slate")}
    assert named["over-http"] == "5" * 32
    assert named[f"request-{asked}"] == remote.trace


def request_of(collector: Collector, request_id: str) -> Received | None:
    """The worker's span of a request."""
    found = (span for span in list(collector.spans) if (span.service, span.name) == (WORKER, "request"))
    return next((span for span in found if span.attributes["riffle.request_id"] == request_id), None)
