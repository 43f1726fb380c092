"""The spans of the service: requests, what is sent to Pub/Sub, calls of Google's APIs, ticks.

Names and attributes follow OpenTelemetry's semantic conventions (HTTP servers, messaging with `gcp_pubsub`,
RPC). No span has anything of a payload, a query or a header. This module is imported only where spans are
wanted: whoever makes some holds a `Traces` or None. https://opentelemetry.io/docs/specs/semconv/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    get_current_span,
    set_span_in_context,
)

from service.config import Settings
from service.metrics.values import METHODS, route_of
from transforms import telemetry_export, trace_context
from transforms.trace_context import TRACEPARENT, TRACESTATE, current_traceparent

CLOSE_SECONDS = 2.0
# They are asked every few seconds, by machines.
_UNTRACED = frozenset(("/healthz", "/startupz", "/readyz", "/metrics"))
_MOST_PATH = 256
_PUBLISH = "google.pubsub.v1.Publisher/Publish"
_DATAFLOW = "google.dataflow.v1beta3"
_DATAFLOW_METHODS = {
    "launch_flex_template": f"{_DATAFLOW}.FlexTemplatesService/LaunchFlexTemplate",
    "get_job": f"{_DATAFLOW}.JobsV1Beta3/GetJob",
    "list_jobs": f"{_DATAFLOW}.JobsV1Beta3/ListJobs",
    "update_job": f"{_DATAFLOW}.JobsV1Beta3/UpdateJob",
    "list_job_messages": f"{_DATAFLOW}.MessagesV1Beta3/ListJobMessages",
    "get_job_metrics": f"{_DATAFLOW}.MetricsV1Beta3/GetJobMetrics",
}
Attributes = dict[str, str | int]


class Traces:
    """Makes the spans of one process with the provider, and closes it at the end."""

    def __init__(self, settings: Settings, provider: Any) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("signin.service")
        propagator = propagate.get_global_textmap()
        self._extract = propagator.extract
        self._trace_headers = [name.lower().encode() for name in propagator.fields]
        self._sends: Attributes = {
            "messaging.system": "gcp_pubsub",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": settings.topic,
        }
        self._send_name = f"send {settings.topic}"
        self._publishes = self._sends | _call(
            _PUBLISH, settings.pubsub_emulator_host or settings.pubsub_endpoint
        )
        self._dataflow = settings.dataflow_emulator_host or settings.dataflow_endpoint

    def request(self, scope: MutableMapping[str, Any], headers: Mapping[bytes, bytes]) -> RequestSpan | None:
        """Begins the span of a request, the child of its caller's; None for a look at our health."""
        path: str = scope["path"]
        if path in _UNTRACED:
            return None
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes: Attributes = {
            "http.request.method": method,
            "url.path": path[:_MOST_PATH],
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
        }
        if server := scope.get("server"):
            attributes["server.address"] = server[0]
            if server[1] is not None:
                attributes["server.port"] = server[1]
        parent = _NOBODY
        if not headers.keys().isdisjoint(self._trace_headers):
            parent = self._extract(headers, parent, _HEADERS)
        name = "HTTP" if method == "_OTHER" else method
        return RequestSpan(self._tracer.start_span(name, parent, SpanKind.SERVER, attributes))

    def sending(self, count: int) -> SendingSpan:
        """Begins the span of so many messages of one request, from here until they are safe."""
        current = get_current_span()
        if not current.is_recording() and current.get_span_context().is_valid:
            return SendingSpan(current, current_traceparent.get())  # nobody would see another one
        attributes = self._sends if count == 1 else self._sends | {"messaging.batch.message_count": count}
        return SendingSpan(self._tracer.start_span(self._send_name, None, SpanKind.PRODUCER, attributes))

    def publish_call(self, messages: Sequence[tuple[bytes, Mapping[str, str]]]) -> CallSpan | None:
        """Begins the span of one Publish call; None where no message belongs to a sampled trace.

        Its parent is the span that the first of those messages names, and it links to those of the others.
        """
        found = trace_context.sampled(attributes.get(TRACEPARENT) for _, attributes in messages)
        if not found:
            return None
        parent, *others = (trace_context.remote(place) for place, _ in found.values())
        span = self._tracer.start_span(
            _PUBLISH,
            set_span_in_context(NonRecordingSpan(parent), Context()),
            SpanKind.CLIENT,
            self._publishes | {"messaging.batch.message_count": len(messages)},
            [Link(other) for other in others],
        )
        return CallSpan(span)

    @contextmanager
    def dataflow_call(self, method: str) -> Iterator[None]:
        """The span of the call that the block makes, the child of what is under way."""
        name = _DATAFLOW_METHODS.get(method, f"{_DATAFLOW}/{method}")
        span = CallSpan(self._tracer.start_span(name, None, SpanKind.CLIENT, _call(name, self._dataflow)))
        status = "CANCELLED"
        try:
            yield
            status = "OK"
        except Exception as error:
            status = getattr(error, "status", "") or "UNKNOWN"
            raise
        finally:
            span.end(status)

    @contextmanager
    def tick(self) -> Iterator[None]:
        """The span of a look at all jobs; what the block calls and logs belongs to it."""
        span = self._tracer.start_span("reconcile", Context(), SpanKind.INTERNAL)
        token = context.attach(set_span_in_context(span))
        told = current_traceparent.set(_text(span.get_span_context()))
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(StatusCode.ERROR)
            raise
        finally:
            current_traceparent.reset(told)
            context.detach(token)
            span.end()

    def close(self) -> None:
        """Sends what is left, for at most CLOSE_SECONDS."""
        telemetry_export.close(self._provider, CLOSE_SECONDS)


class RequestSpan:
    """The span of one request, the current one of its task until it ends."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = context.attach(set_span_in_context(span))
        current_traceparent.set(_text(span.get_span_context()))

    def end(self, scope: MutableMapping[str, Any], status: int) -> None:
        """Ends it with the status of the answer; 499 stands for a caller that went away."""
        span = self._span
        if span.is_recording():
            if route := route_of(scope):
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.set_attribute("http.response.status_code", status)
            if status >= 499:
                span.set_attribute("error.type", str(status))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()
        context.detach(self._token)


class SendingSpan:
    """The span of messages on their way to safety, which each of them carries."""

    __slots__ = ("_span", "_state", "_text")

    def __init__(self, span: Span, text: str = "") -> None:
        self._span = span
        found = span.get_span_context()
        self._text = text or _text(found)
        self._state = found.trace_state.to_header() if found.trace_state else ""

    def carried(self, attributes: Mapping[str, str]) -> dict[str, str]:
        """The attributes of a message, with this span in the place of the trace that they name."""
        carried = {**attributes, TRACEPARENT: self._text}
        if self._state:
            carried[TRACESTATE] = self._state
        else:
            carried.pop(TRACESTATE, None)
        return carried

    def end(self, attributes: Mapping[str, str | int], error_type: str = "") -> None:
        """Ends it; `error_type` is the code of the problem where a message is not safe."""
        span = self._span
        if span.is_recording():
            span.set_attributes(attributes)
            if error_type:
                span.set_attribute("error.type", error_type)
                span.set_status(StatusCode.ERROR)
        span.end()


class CallSpan:
    """The span of one call of a Google API."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, status: str) -> None:
        """Ends it with the name of the gRPC status."""
        self._span.set_attribute("rpc.response.status_code", status)
        if status != "OK":
            self._span.set_attribute("error.type", status)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class _Headers(Getter[Mapping[bytes, bytes]]):
    """How OpenTelemetry reads the headers of a request."""

    def get(self, carrier: Mapping[bytes, bytes], key: str) -> list[str] | None:
        found = carrier.get(key.lower().encode())
        return None if found is None else [found.decode("latin-1")]

    def keys(self, carrier: Mapping[bytes, bytes]) -> list[str]:
        return [name.decode("latin-1") for name in carrier]


_HEADERS = _Headers()
_NOBODY = Context()


def _call(method: str, endpoint: str) -> Attributes:
    host, _, port = endpoint.rpartition(":")
    attributes: Attributes = {"rpc.system.name": "grpc", "rpc.method": method, "server.address": host}
    return attributes | {"server.port": int(port)} if port.isdecimal() else attributes


def _text(place: SpanContext) -> str:
    return f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
