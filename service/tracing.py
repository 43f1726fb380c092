"""Whether this process makes spans: as the standard variables of OpenTelemetry say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.config import Settings
from service.errors import ConfigError
from transforms import telemetry_export

if TYPE_CHECKING:
    from service.spans import Traces

SERVICE_NAME = "signin"


def from_environment(settings: Settings, version: str) -> Traces | None:
    """What makes the spans; None where none are wanted. Raises ConfigError for unknown propagators."""
    provider = telemetry_export.tracer_provider(SERVICE_NAME, **{"service.version": version})
    if provider is None:
        return None
    try:
        import opentelemetry.propagate  # noqa: F401 - it reads OTEL_PROPAGATORS
    except ValueError as error:
        raise ConfigError(f"OTEL_PROPAGATORS names what is not installed: {error}") from error
    from service.spans import Traces

    return Traces(settings, provider)
