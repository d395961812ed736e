"""An OTLP collector in this process: takes spans by HTTP and keeps them as they came."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

__all__ = ["Collector", "Received", "collecting"]

UNPACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress}


@dataclass(frozen=True)
class Received:
    """One span. Times in nanoseconds; `parent` is empty for the first span of a trace."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Collector:
    """What has come."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    def trace(self, trace_id: str) -> list[Received]:
        """The spans of a trace, by their beginning."""
        return sorted((span for span in list(self.spans) if span.trace == trace_id), key=lambda span: span.began)


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


def _read(body: bytes) -> list[Received]:
    found = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        of = {pair.key: _plain(pair.value) for pair in group.resource.attributes}
        for spans in group.scope_spans:
            for span in spans.spans:
                attributes = {pair.key: _plain(pair.value) for pair in span.attributes}
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                times = (span.start_time_unix_nano, span.end_time_unix_nano)
                found.append(
                    Received(of["service.name"], span.name, span.kind, *ids, *times, attributes, span.status.code == 2)
                )
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    """A running collector."""
    state = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.paths.add(self.path)
            state.spans.extend(_read(UNPACK.get(self.headers.get("Content-Encoding", ""), bytes)(body)))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
