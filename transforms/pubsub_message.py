"""From a Pub/Sub message to a row or a dead letter: any bytes, any attributes, exactly one of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics import Metrics

from transforms import timestamps
from transforms.bigquery_rows import Row, dead_letter_row, to_row
from transforms.signin_event import (
    UNDECODABLE,
    EventError,
    decode,
    is_event_id,
)

DEAD_LETTERS = "dead_letters"
METRICS_NAMESPACE = "signin"
EVENT_ID_ATTRIBUTE = "event_id"

_log = logging.getLogger(__name__)
_NO_ATTRIBUTES: Mapping[str, str] = {}


class _Message(NamedTuple):
    data: bytes
    attributes: Mapping[str, str]
    message_id: str | None
    published_at: str | None


class MessageExtractingFn(beam.DoFn):  # type: ignore[misc]
    """Turns each message into a row, or into a dead letter on the output `DEAD_LETTERS`.

    A message is a raw protobuf `google.pubsub.v1.PubsubMessage`, Beam's `PubsubMessage`, or the bytes
    of its payload alone. Rows and dead letters are dictionaries in the form that insertAll takes.
    Counts, for each bundle: `signins_parsed`, `dead_letters` and `dead_letters_<reason>`.
    """

    def __init__(self, *, pipeline_version: str = "", job_id: str = "") -> None:
        super().__init__()
        self._pipeline_version = pipeline_version
        self._job_id = job_id
        self._counts: Counter[str] = Counter()
        self._parsed = 0
        self._publish_time: tuple[int, int] | None = None
        self._publish_time_text: str | None = None

    def start_bundle(self) -> None:
        self._counts = Counter()
        self._parsed = 0

    def process(self, element: Any) -> Iterable[Any]:
        try:
            message = self._read(element)
            try:
                row = _row(message)
            except EventError as error:
                return (pvalue.TaggedOutput(DEAD_LETTERS, self._refuse(message, error)),)
        except Exception as error:  # noqa: BLE001 - the law: never an exception that Beam sees
            _log.error("A message could not be read: %s", type(error).__name__)  # its text may quote the data
            return (pvalue.TaggedOutput(DEAD_LETTERS, self._give_up(element, error)),)
        self._parsed += 1
        return (row,)

    def finish_bundle(self) -> None:
        if self._parsed:
            Metrics.counter(METRICS_NAMESPACE, "signins_parsed").inc(self._parsed)
        for name, count in self._counts.items():
            Metrics.counter(METRICS_NAMESPACE, name).inc(count)

    def _read(self, element: Any) -> _Message:
        if isinstance(element, bytes):
            return _Message(element, _NO_ATTRIBUTES, None, None)
        attributes = element.attributes
        return _Message(
            bytes(element.data or b""),
            attributes if attributes is not None else _NO_ATTRIBUTES,
            element.message_id or None,
            self._published_at(element.publish_time),
        )

    def _published_at(self, publish_time: Any) -> str | None:
        """The text of a datetime or of a protobuf Timestamp; None where it is not set or out of range."""
        if publish_time is None:
            return None
        if hasattr(publish_time, "nanos"):
            key = (publish_time.seconds, publish_time.nanos)
            if key != self._publish_time:  # all messages of one Publish call share their time
                self._publish_time, self._publish_time_text = key, _timestamp_text(publish_time)
            return self._publish_time_text
        try:
            return timestamps.from_datetime(publish_time)
        except OverflowError:
            return None

    def _refuse(self, message: _Message, error: EventError) -> Row:
        row = dead_letter_row(
            stage="decode" if error.code in UNDECODABLE else "validate",
            reason=error.code,
            detail=error.detail,
            payload=message.data,
            attributes=message.attributes,
            message_id=message.message_id,
            publish_time=message.published_at,
            event_id=message.attributes.get(EVENT_ID_ATTRIBUTE),
            pipeline_version=self._pipeline_version,
            job_id=self._job_id,
        )
        self._count(error.code)
        return row

    def _give_up(self, element: Any, error: Exception) -> Row:
        """The dead letter of an error that nobody foresaw: it keeps what is surely there."""
        data = element if isinstance(element, bytes) else getattr(element, "data", b"")
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        attributes = getattr(element, "attributes", None)
        texts = attributes.items() if isinstance(attributes, Mapping) else ()
        row = dead_letter_row(
            stage="validate",
            reason="internal_error",
            detail=f"{type(error).__name__} at a message of the type {type(element).__name__}",
            payload=data if isinstance(data, bytes) else b"",
            attributes={k: v for k, v in texts if isinstance(k, str) and isinstance(v, str)},
            pipeline_version=self._pipeline_version,
            job_id=self._job_id,
        )
        self._count("internal_error")
        return row

    def _count(self, reason: str) -> None:
        self._counts["dead_letters"] += 1
        self._counts[f"dead_letters_{reason}"] += 1


def _row(message: _Message) -> Row:
    event = decode(message.data)
    if event.event_id is None:
        event_id = message.attributes.get(EVENT_ID_ATTRIBUTE)
        if event_id is not None and is_event_id(event_id):
            event = replace(event, event_id=event_id)
    return to_row(event, message.published_at)


def _timestamp_text(timestamp: Any) -> str | None:
    if not timestamp.seconds and not timestamp.nanos:
        return None  # what a message has that was never published
    try:
        return timestamps.from_datetime(timestamp.ToDatetime())
    except (ValueError, OverflowError):
        return None
