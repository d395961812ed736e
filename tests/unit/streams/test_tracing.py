"""Traces: what reaches a collector, sampling, and that nothing is imported while they are off."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from collector import collecting
from fakes import FakeService
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from agents.requests.traced import noted, over_http, over_kafka, replying
from agents.web.protocol import Wanted, always
from agents.web.routes import build_app
from schemas.errors import ConfigError, NotReady
from schemas.records import Request, Slate
from schemas.settings import Settings
from streams.logs import Json
from streams.tracing import CLIENT, CONSUMER, SERVER, TRACEPARENT, parent_in, tracing_of

ROOT = Path(__file__).resolve().parents[3]
REQUEST = Request("r1", "a-user", k=5)
SAMPLED, LEFT_OUT = f"00-{'1' * 32}-{'2' * 16}-01", f"00-{'1' * 32}-{'2' * 16}-00"


def test_the_spans_of_a_request_reach_the_collector_in_one_trace() -> None:
    with collecting() as collector:
        tracing = tracing_of(Settings(traces=collector.url), "a-service")
        assert tracing is not None
        asked = tracing.begin("recommend", CLIENT, "")
        assert asked is not None
        span = over_kafka(tracing, REQUEST, [(TRACEPARENT, asked.traceparent.encode())])
        assert span is not None
        done: list[int] = []
        ended = replying(span, lambda: done.append(1))
        timings = {"hydrate": 1.0, "retrieve": 2.0, "rank": 0.5}
        noted("r1", span, Slate("r1", "a-user", (), "rel", "default", ("stale",), timings_ms=timings), "degraded", 0.01)
        ended()
        asked.end()
        asked.end(error="twice")
        tracing.stop()
        spans = {one.name: one for one in collector.trace(asked.trace_id)}
    assert collector.paths == {"/v1/traces"}
    assert len(collector.spans) == len(spans) == 7, "one trace, each span once"
    assert {one.service for one in spans.values()} == {"a-service"}
    assert done == [1]
    request = spans["request"]
    assert (spans["recommend"].parent, request.parent) == ("", spans["recommend"].id)
    assert {spans[name].parent for name in ("queue", *timings, "reply")} == {request.id}
    facts = {
        "request_id": "r1",
        "interface": "kafka",
        "k": 5,
        "outcome": "degraded",
        "release": "rel",
        "items": 0,
        "degraded": "stale",
    }
    assert request.attributes == {f"riffle.{name}": value for name, value in facts.items()}
    assert not any(one.failed for one in spans.values())
    # the stages follow each other, within the request
    order = [spans["queue"], *(spans[name] for name in timings)]
    assert all(one.ended == other.began for one, other in itertools.pairwise(order))
    assert request.began == order[0].began <= order[-1].ended <= request.ended
    assert "a-user" not in repr(collector.spans)


def test_an_error_marks_the_span() -> None:
    with collecting() as collector:
        tracing = tracing_of(Settings(traces=collector.url), "s")
        assert tracing is not None
        span = over_kafka(tracing, REQUEST, [])
        noted("r1", span, NotReady("not_ready", "restoring"), "not_ready", 0.01)
        tracing.stop()
    (request,) = collector.spans
    assert (request.failed, request.attributes["riffle.outcome"], request.parent) == (True, "not_ready", "")


def test_a_request_is_traced_by_the_share_unless_senders_are_trusted() -> None:
    with collecting() as collector:
        never, always = (tracing_of(Settings(traces=collector.url, trace_share=share), "s") for share in (0.0, 1.0))
        assert never is not None
        assert always is not None
        assert never.begin("request", SERVER, "") is None
        assert never.begin("request", SERVER, SAMPLED) is None, "a sender cannot have every request traced"
        trusting = tracing_of(Settings(traces=collector.url, trace_share=0.0, trace_parents="yes"), "s")
        assert trusting is not None
        assert trusting.begin("request", SERVER, SAMPLED) is not None
        assert trusting.begin("request", SERVER, LEFT_OUT) is None
        assert always.begin("request", SERVER, LEFT_OUT) is None
        assert always.begin("request", SERVER, always.not_sampled()) is None
        assert always.begin("rank", CONSUMER, "", root=False) is None
        assert always.begin("rank", CONSUMER, SAMPLED, root=False) is not None
        half = tracing_of(Settings(traces=collector.url, trace_share=0.5), "s")
        assert half is not None
        kept = sum(half.begin("request", SERVER, "") is not None for _ in range(400))
        assert 120 < kept < 280
        other = tracing_of(Settings(traces=collector.url, trace_share=0.5), "of another process")
        assert other is not None
        for _ in range(50):  # processes with the same share agree on each trace
            if (span := half.begin("request", SERVER, "")) is not None:
                assert other.begin("rank", CONSUMER, span.traceparent, root=False) is not None
        for one in (never, always, half, trusting, other):
            one.stop()


@given(st.lists(st.tuples(st.sampled_from([TRACEPARENT, "x", "Traceparent"]), st.none() | st.binary(max_size=200))))
def test_any_header_begins_at_most_a_new_trace(headers: list[tuple[str, bytes | None]]) -> None:
    assert TRACING is not None
    span = TRACING.begin("request", SERVER, parent_in(headers))
    assert span is None or re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", span.traceparent)


TRACING = tracing_of(Settings(traces="http://127.0.0.1:9", trace_share=1.0), "s")
"No span of it is ended, so that nothing is sent."

OFF = """
import sys
import agents.wiring, agents.ranker.app, streams.kafka.client
from schemas.settings import Settings
from streams.tracing import tracing_of
assert tracing_of(Settings(), "s") is None
print([name for name in sys.modules if name.partition(".")[0] == "opentelemetry"])
"""
MISSING = """
import sys
sys.modules["opentelemetry"] = None
from agents.wiring import create_app
from schemas.settings import Settings
create_app(Settings.from_env())
"""


def ran(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", program], env=known, capture_output=True, text=True, check=False)


def test_nothing_is_imported_while_traces_are_off() -> None:
    found = ran(OFF)
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr


def test_without_the_packages_a_worker_says_what_to_install(tmp_path: Path) -> None:
    found = ran(MISSING, RIFFLE_TRACES="http://127.0.0.1:9", RIFFLE_HOME=str(tmp_path))
    assert found.returncode != 0
    assert "the packages of the group `tracing`" in found.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"traces": "127.0.0.1:4318"},
        {"traces": "ftp://x"},
        {"trace_share": 1.5},
        {"trace_share": float("nan")},
        {"log_format": "xml"},
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(Settings(), **changes)  # type: ignore[arg-type]


class Notes(logging.Handler):
    """Keeps lines as JSON, formatted where they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(Json().format(record)))


class Noting(FakeService):
    """Notes each request for a slate as a worker does, and fails for one user."""

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        over_http(TRACING, request)
        if request.user_id == "bad":
            raise RuntimeError("broken")
        return await super().recommend(request, deadline_ms, wanted)


async def test_a_line_names_its_own_request_and_not_the_one_before_on_the_connection() -> None:
    service, notes = Noting(), Notes()
    logger = logging.getLogger("agents.web.error_replies")
    logger.addHandler(notes)
    try:
        async with TestClient(Served(build_app(service), service.metrics)) as client:
            headers = {TRACEPARENT: SAMPLED}
            assert (await client.get("/v1/recommend/bad?request_id=r7", headers=headers)).status == 500
            service.failure = RuntimeError("broken, too")
            assert (await client.get("/v1/users/u")).status == 500
    finally:
        logger.removeHandler(notes)
    first, second = notes.lines
    assert (first["request_id"], first["trace_id"]) == ("r7", "1" * 32)
    assert "request_id" not in second
    assert "broken, too" in second["error"]
