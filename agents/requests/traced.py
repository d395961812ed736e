"""Spans and log lines of single requests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from schemas.codec import Headers
from schemas.errors import RiffleError
from schemas.records import Request, Slate
from streams.logs import request_facts
from streams.tracing import CONSUMER, PRODUCER, SERVER, Span, Tracing, incoming, parent_in

__all__ = ["noted", "over_http", "over_kafka", "replying"]

log = logging.getLogger(__name__)


def over_kafka(tracing: Tracing | None, request: Request, headers: Headers) -> Span | None:
    """Begin the span of a request that came over Kafka; None if it is not traced."""
    if tracing is None:
        return None
    return tracing.begin("request", CONSUMER, parent_in(headers), _facts(request, "kafka"))


def over_http(tracing: Tracing | None, request: Request) -> Span | None:
    """Begin the span of a request of this task's HTTP request, and let log lines of the task name both."""
    span = None if tracing is None else tracing.begin("request", SERVER, incoming.get(), _facts(request, "http"))
    request_facts.set(_ids(request.request_id, span))
    return span


def _facts(request: Request, interface: str) -> dict[str, str | int]:
    return {"request_id": request.request_id, "interface": interface, "k": request.k}


def _ids(request_id: str, span: Span | None) -> Mapping[str, str]:
    return {"request_id": request_id} if span is None else {"request_id": request_id, "trace_id": span.trace_id}


def noted(request_id: str, span: Span | None, answer: Slate | RiffleError, outcome: str, seconds: float) -> None:
    """End the span of a request that is answered, with its stages, and log it if the level is DEBUG."""
    if span is not None:
        if isinstance(answer, Slate):
            span.stages(answer.timings_ms)
            span.end(outcome=outcome, release=answer.release, items=len(answer.items), degraded=",".join(answer.degraded))
        else:
            span.end(outcome=outcome, error=answer.code)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("answered with %s in %.1f ms", outcome, seconds * 1000, extra=_ids(request_id, span))


def replying(span: Span | None, done: Callable[[], None]) -> Callable[[], None]:
    """Return `done`, which also ends the span of a reply that begins now."""
    if span is None:
        return done
    reply = span.child("reply", PRODUCER)

    def ended() -> None:
        reply.end()
        done()

    return ended
