"""Traces of requests: a span for each part of a request's way, in every process that it passes, joined by W3C `traceparent`.

OpenTelemetry is imported only if `RIFFLE_TRACES` names a collector. Without it, or if a request is not sampled, a request has
no span (None), and nothing is done for it. Spans hold ids of requests, never of users or items: erasing a user must not have
to reach the store of traces.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Protocol

from schemas.errors import ConfigError
from schemas.settings import Settings

__all__ = [
    "CLIENT",
    "CONSUMER",
    "MAX_PARENT_BYTES",
    "PRODUCER",
    "SERVER",
    "TRACEPARENT",
    "Span",
    "Tracing",
    "incoming",
    "parent_in",
    "tracing_of",
]

TRACEPARENT = "traceparent"
"Header of Kafka records and of HTTP requests: https://www.w3.org/TR/trace-context/"
SERVER, CLIENT, PRODUCER, CONSUMER = "SERVER", "CLIENT", "PRODUCER", "CONSUMER"
"Kinds of spans, as OpenTelemetry names them."
MAX_PARENT_BYTES = 128
Attribute = str | int | float | bool
NONE: Mapping[str, Attribute] = MappingProxyType({})

incoming: ContextVar[str] = ContextVar("incoming", default="")
"The `traceparent` of the HTTP request that this task answers; empty without one."


class Span(Protocol):
    """One part of a request's way. Ending it twice has no effect."""

    @property
    def traceparent(self) -> str:
        """The header by which another process continues the trace."""

    @property
    def trace_id(self) -> str:
        """Id of the trace, 32 hexadecimal digits."""

    def child(self, name: str, kind: str, **attributes: Attribute) -> Span:
        """Begin a part of this one."""

    def stages(self, timings_ms: Mapping[str, float]) -> None:
        """Add parts that followed each other and end now, and what came before them as `queue`. Milliseconds by name."""

    def end(self, **attributes: Attribute) -> None:
        """End it now. The attribute `error` marks it as failed."""


class Tracing(Protocol):
    """Begins traces, and sends ended spans in the background."""

    def begin(
        self, name: str, kind: str, parent: str, attributes: Mapping[str, Attribute] = NONE, *, root: bool = True
    ) -> Span | None:
        """Begin a span below `parent`, a `traceparent`; None if the request is not sampled.

        An empty or invalid `parent` begins a trace, or none unless `root`.
        """

    def not_sampled(self) -> str:
        """Return a `traceparent` by which the receiver does not sample, either."""

    def stop(self) -> None:
        """Send what is left, for at most some seconds. Blocks."""


def tracing_of(settings: Settings, service: str) -> Tracing | None:
    """Return the tracing of a process, None without a collector. `service`: its name in traces.

    Raises:
        ConfigError: the packages of the group `tracing` are not installed.
    """
    if not settings.traces:
        return None
    try:
        module = importlib.import_module("streams.otel")
    except ImportError as exc:
        message = (
            "RIFFLE_TRACES needs OpenTelemetry: install the packages of the group `tracing` (pip install 'riffle[tracing]')"
        )
        raise ConfigError("missing_packages", message) from exc
    make: Callable[..., Tracing] = module.OtelTracing
    instance = settings.instance or f"{settings.web_host}:{settings.web_port}"
    return make(settings.traces, settings.trace_share, service, instance, trust_parents=settings.trace_parents == "yes")


def parent_in(headers: Iterable[tuple[str, bytes | None]]) -> str:
    """Return the `traceparent` among the headers of a record, empty without one."""
    found = next((value for name, value in headers if name == TRACEPARENT), None)
    return found.decode("ascii", "replace") if found is not None and len(found) <= MAX_PARENT_BYTES else ""
