"""The spans of the write step: for each sampled trace among the messages of a request, one of its write.

A span is a child of the one that the message names as its `traceparent`, whichever process that was in, and
begins and ends with the write. Without an exporter nothing of OpenTelemetry is imported and nothing is
looked at.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from transforms import telemetry_export, trace_context
from transforms.trace_context import TRACEPARENT

SERVICE_NAME = "signin-pipeline"
CLOSE_SECONDS = 3.0


class WriteTraces(NamedTuple):
    """Whose messages are written, as `projects/…/subscriptions/…` or a topic, and where the spans go.

    `endpoint` is the base URL of an OTLP/HTTP receiver; empty means what the environment of the process says.
    """

    source: str = ""
    endpoint: str = ""

    def of_messages(self, messages: Sequence[Any], table: str) -> AbstractContextManager[None]:
        """The spans of the messages that the block writes to `table`; its exception makes them failures."""
        tracer = _tracer(self.endpoint)
        if tracer is None:
            return nullcontext()
        return self._writing(tracer, (_traceparent(message) for message in messages), table)

    def of_dead_letters(self, letters: Sequence[dict[str, Any]], table: str) -> AbstractContextManager[None]:
        """The spans of the dead letters that the block writes: failures, each with its reason."""
        tracer = _tracer(self.endpoint)
        if tracer is None:
            return nullcontext()
        reasons = {_traceparent_of_letter(letter): letter["reason"] for letter in letters}
        texts = (_traceparent_of_letter(letter) for letter in letters)
        return self._writing(tracer, texts, table, reasons)

    @contextmanager
    def _writing(
        self,
        tracer: Any,
        traceparents: Iterable[str | None],
        table: str,
        reasons: dict[str | None, str] | None = None,
    ) -> Iterator[None]:
        from opentelemetry.trace import StatusCode

        spans = {
            text: self._span(tracer, place, count, table)
            for text, (place, count) in trace_context.sampled(traceparents).items()
        }
        failure = ""
        try:
            yield
        except Exception as error:
            failure = type(error).__name__
            raise
        finally:
            for text, span in spans.items():
                if error_type := failure or (reasons or {}).get(text):
                    span.set_attribute("error.type", error_type)
                    span.set_status(StatusCode.ERROR)
                span.end()

    def _span(self, tracer: Any, place: trace_context.TraceContext, count: int, table: str) -> Any:
        from opentelemetry.context import Context
        from opentelemetry.trace import NonRecordingSpan, SpanKind, set_span_in_context

        name = self.source.rpartition("/")[2]
        attributes: dict[str, Any] = {
            "messaging.system": "gcp_pubsub",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": name,
            "messaging.batch.message_count": count,
            "db.system.name": "gcp.bigquery",
            "db.collection.name": table,
        }
        if "/subscriptions/" in self.source:
            attributes["messaging.destination.subscription.name"] = name
        parent = set_span_in_context(NonRecordingSpan(trace_context.remote(place)), Context())
        return tracer.start_span(f"process {name}".strip(), parent, SpanKind.CONSUMER, attributes)


BY_ENVIRONMENT = WriteTraces()


def close() -> None:
    """Sends what is left, for at most CLOSE_SECONDS. A worker of Dataflow is killed without being asked."""
    for provider in _providers:
        telemetry_export.close(provider, CLOSE_SECONDS)
    _providers.clear()
    _opened.cache_clear()


_providers: list[Any] = []
_log = logging.getLogger(__name__)


_opening = threading.Lock()


def _tracer(endpoint: str) -> Any | None:
    """One for each process and receiver, as long as the process lives."""
    with _opening:  # several batches are written at once
        return _opened(endpoint)


@functools.cache
def _opened(endpoint: str) -> Any | None:
    try:
        provider = telemetry_export.tracer_provider(SERVICE_NAME, endpoint)
    except Exception as error:  # noqa: BLE001 - rows are written whatever the variables of traces say
        _log.warning("There are no traces of what is written: %s", type(error).__name__)
        return None
    if provider is None:
        return None
    _providers.append(provider)
    return provider.get_tracer("signin.pipeline")


def _traceparent(message: Any) -> str | None:
    attributes = getattr(message, "attributes", None)  # the bytes of a payload have none
    return attributes.get(TRACEPARENT) if attributes else None


def _traceparent_of_letter(letter: dict[str, Any]) -> str | None:
    return next((each["value"] for each in letter.get("attributes", ()) if each["key"] == TRACEPARENT), None)
