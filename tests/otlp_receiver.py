"""A receiver of OTLP over HTTP: what collectors listen for on port 4318, kept in memory."""

from __future__ import annotations

import gzip
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

# What a process has to be told, so that nobody waits for the usual 5 s.
QUICKLY = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_METRIC_EXPORT_INTERVAL": "200"}


@dataclass
class Span:
    """One span; ids are hexadecimal, `kind` is OTLP's word without its prefix, times are nanoseconds."""

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: list[str]
    attributes: dict[str, Any]
    failed: bool
    began: int
    ended: int


@dataclass
class Point:
    """One number, or a histogram's bucket counts, with its attributes."""

    attributes: dict[str, Any]
    value: float
    buckets: list[int] = field(default_factory=list)
    began: int = 0


class Receiver:
    """Listens on loopback as long as the block runs; `requests` are the bodies as they came."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.metrics: dict[str, list[Point]] = {}
        self.units: dict[str, str] = {}
        self.resources: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver._take(self.path, dict(self.headers), body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, **QUICKLY}

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def until(self, found: Any, seconds: float = 20.0) -> Any:
        """What `found(receiver)` gives as soon as it is true, looked at whenever something has come."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (result := found(self)):
                left = deadline - time.monotonic()
                names = sorted({(span.service, span.name) for span in self.spans})
                assert left > 0, f"not within {seconds} s; there are {names}"
                self._changed.wait(left)
            return result

    def of(self, trace_id: str, *names: str) -> list[Span] | None:
        """The spans of these names of one trace, in this order; None as long as one is missing."""
        mine = {span.name: span for span in self.spans if span.trace_id == trace_id}
        return [mine[name] for name in names] if set(names) <= mine.keys() else None

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        with self._changed:
            self.bodies.append(body)
            self.headers.append(headers)
            if path == "/v1/traces":
                self._take_spans(ExportTraceServiceRequest.FromString(body))
            elif path == "/v1/metrics":
                self._take_metrics(ExportMetricsServiceRequest.FromString(body))
            self._changed.notify_all()

    def _take_spans(self, request: Any) -> None:
        for group in request.resource_spans:
            service = plain(group.resource.attributes)["service.name"]
            self.resources.append(plain(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans += [span_of(service, each) for each in scope.spans]

    def _take_metrics(self, request: Any) -> None:
        self.metrics, self.units = {}, {}
        for group in request.resource_metrics:
            self.resources.append(plain(group.resource.attributes))
            for metric in (each for scope in group.scope_metrics for each in scope.metrics):
                data = getattr(metric, metric.WhichOneof("data"))
                self.metrics[metric.name] = [point_of(each) for each in data.data_points]
                self.units[metric.name] = metric.unit


def span_of(service: str, span: Any) -> Span:
    return Span(
        service,
        span.name,
        type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        [link.span_id.hex() for link in span.links],
        plain(span.attributes),
        span.status.code == 2,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def point_of(point: Any) -> Point:
    if hasattr(point, "bucket_counts"):
        return Point(
            plain(point.attributes), point.sum, list(point.bucket_counts), point.start_time_unix_nano
        )
    kind = point.WhichOneof("value")
    return Point(plain(point.attributes), getattr(point, kind), began=point.start_time_unix_nano)


def plain(attributes: Any) -> dict[str, Any]:
    """The attributes as a dictionary of texts and numbers."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
