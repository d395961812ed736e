"""Traces by OpenTelemetry, sent to a collector by OTLP over HTTP. Imported only where traces are on; see `streams.tracing`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["OtelSpan", "OtelTracing"]

PATH = "/v1/traces"
EXPORT_S, DELAY_MS = 5, 1_000
"Time limit of an export in seconds, and milliseconds between exports."
QUEUED, AT_ONCE = 8_192, 512
"Maximum number of spans that wait, and in one export. Further ones are dropped: a collector that is away costs no more memory."
PROPAGATOR = TraceContextTextMapPropagator()
Attribute = str | int | float | bool
NONE: Mapping[str, Attribute] = MappingProxyType({})


class OtelSpan:
    """A span of OpenTelemetry that is recorded."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span, began_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._began_ns = began_ns

    @property
    def traceparent(self) -> str:
        """The header by which another process continues the trace."""
        of = self._span.get_span_context()
        return f"00-{of.trace_id:032x}-{of.span_id:016x}-{int(of.trace_flags):02x}"

    @property
    def trace_id(self) -> str:
        """Id of the trace, 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def child(self, name: str, kind: str, **attributes: Attribute) -> OtelSpan:
        """Begin a part of this one."""
        now_ns = time.time_ns()
        context = trace.set_span_in_context(self._span)
        made = self._tracer.start_span(name, context, SpanKind[kind], _named(attributes), start_time=now_ns)
        return OtelSpan(self._tracer, made, now_ns)

    def stages(self, timings_ms: Mapping[str, float]) -> None:
        """Add parts that followed each other and end now, and what came before them as `queue`. Milliseconds by name."""
        context = trace.set_span_in_context(self._span)
        now_ns = time.time_ns()
        at_ns = max(now_ns - int(sum(timings_ms.values()) * 1e6), self._began_ns)
        self._tracer.start_span("queue", context, start_time=self._began_ns).end(at_ns)
        for name, ms in timings_ms.items():
            until_ns = min(at_ns + int(ms * 1e6), now_ns)
            self._tracer.start_span(name, context, start_time=at_ns).end(until_ns)
            at_ns = until_ns

    def end(self, **attributes: Attribute) -> None:
        """End it now. The attribute `error` marks it as failed."""
        if not self._span.is_recording():
            return
        if error := attributes.pop("error", ""):
            self._span.set_status(StatusCode.ERROR, str(error))
        for name, value in _named(attributes).items():
            self._span.set_attribute(name, value)
        self._span.end(time.time_ns())


class OtelTracing:
    """Spans of one process.

    `share`: of the requests, so many are traced (0 to 1), by the id of their trace, so that processes with one share agree.
    `trust_parents`: all requests are traced whose sender traces them. What a sender does not trace is never traced.
    """

    def __init__(self, collector: str, share: float, service: str, instance: str, *, trust_parents: bool = False) -> None:
        resource = Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance})
        by_share = TraceIdRatioBased(share)
        sampler = ParentBased(by_share, remote_parent_sampled=ALWAYS_ON if trust_parents else by_share)
        self._provider = TracerProvider(sampler=sampler, resource=resource)
        exporter = OTLPSpanExporter(collector.rstrip("/") + PATH, timeout=EXPORT_S)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=QUEUED, max_export_batch_size=AT_ONCE, schedule_delay_millis=DELAY_MS)
        )
        self._tracer = self._provider.get_tracer("riffle")
        self._ids = RandomIdGenerator()

    def begin(
        self, name: str, kind: str, parent: str, attributes: Mapping[str, Attribute] = NONE, *, root: bool = True
    ) -> OtelSpan | None:
        """Begin a span below `parent`; None if the request is not sampled. See `streams.tracing.Tracing`."""
        context = PROPAGATOR.extract({"traceparent": parent}) if parent else Context()
        if not root and not trace.get_current_span(context).get_span_context().is_valid:
            return None
        now_ns = time.time_ns()
        made = self._tracer.start_span(name, context, SpanKind[kind], _named(attributes), start_time=now_ns)
        return OtelSpan(self._tracer, made, now_ns) if made.is_recording() else None

    def not_sampled(self) -> str:
        """Return a `traceparent` by which the receiver does not sample, either."""
        return f"00-{self._ids.generate_trace_id():032x}-{self._ids.generate_span_id():016x}-00"

    def stop(self) -> None:
        """Send what is left. Blocks, for at most some seconds."""
        self._provider.shutdown()


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {f"riffle.{name}": value for name, value in attributes.items()}
