"""Where spans and metrics go: OpenTelemetry by its standard environment variables.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ says what they mean. One
thing differs: without `OTEL_..._EXPORTER` and without an endpoint nothing is exported, and nothing of
OpenTelemetry's SDK is imported. No provider is made global, so no library adds spans of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Literal

Signal = Literal["traces", "metrics"]
_DEFAULT_PROTOCOL = "http/protobuf"
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
# `prometheus` is what GET /metrics does anyway.
_NOTHING = frozenset(("", "none", "prometheus"))

_log = logging.getLogger(__name__)


def is_disabled(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether OTEL_SDK_DISABLED forbids all of it."""
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exporter_names(signal: Signal, environment: Mapping[str, str] = os.environ) -> list[str]:
    """The exporters that the environment asks for, `otlp` where it names an endpoint alone; often none."""
    if is_disabled(environment):
        return []
    name = signal.upper()
    listed = environment.get(f"OTEL_{name}_EXPORTER", "").strip()
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT")
    if not listed and any(environment.get(each) for each in endpoints):
        listed = "otlp"
    return [each for each in (part.strip() for part in listed.split(",")) if each not in _NOTHING]


def exporters(signal: Signal) -> list[Any]:
    """The exporters of the environment; one that is not installed is left out with a warning."""
    made = [_exporter(signal, name) for name in exporter_names(signal)]
    return [each for each in made if each is not None]


def resource(service_name: str, **attributes: str) -> Any:
    """What all telemetry of this process says of it; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own: dict[str, Any] = {"service.name": service_name, "process.pid": os.getpid(), **attributes}
    return Resource.create(own).merge(OTELResourceDetector().detect())


def tracer_provider(service_name: str, endpoint: str = "", **attributes: str) -> Any | None:
    """Makes what spans are made with and sent by; None where none are wanted.

    `endpoint` is the base URL of an OTLP/HTTP receiver, in the place of what the environment says. The
    queue of spans is bounded: what does not fit is dropped, and nobody waits.
    """
    made = [_at(endpoint)] if endpoint and not is_disabled() else exporters("traces")
    if not made:
        return None
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Its own end of the process may wait for a receiver that is away: see `close`.
    provider = TracerProvider(resource=resource(service_name, **attributes), shutdown_on_exit=False)
    for each in made:
        provider.add_span_processor(BatchSpanProcessor(each))
    return provider


def close(provider: Any, seconds: float) -> None:
    """Sends what is left; gives up after so many seconds."""
    thread = threading.Thread(target=provider.shutdown, name="telemetry", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _log.warning("the last spans could not be sent within %g s", seconds)


def _at(endpoint: str) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")


def _exporter(signal: Signal, name: str) -> Any | None:
    if name == "otlp":
        found = _protocol(signal)
        if found not in _PROTOCOLS:
            _log.warning("OTLP over %s is not known, so no %s are exported", found, signal)
            return None
        name = _PROTOCOLS[found]
    from importlib.metadata import entry_points

    for entry in entry_points(group=f"opentelemetry_{signal}_exporter", name=name):
        return entry.load()()
    _log.warning("the exporter %s is not installed, so no %s go there", name, signal)
    return None


def _protocol(signal: Signal) -> str:
    return (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or _DEFAULT_PROTOCOL
    )
