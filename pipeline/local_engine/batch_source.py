"""The local read step: it emits the messages of the micro-batch that is running."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

from pipeline.pubsub_source import RawMessage

# The embedded worker runs in this process, on the thread that started the run.
_run = threading.local()


@contextmanager
def lease(messages: Sequence[Any]) -> Iterator[None]:
    """Makes these raw protobuf `PubsubMessage`s the elements of the runs of this thread within the block."""
    _run.messages = messages
    try:
        yield
    finally:
        del _run.messages


def leased() -> Sequence[Any]:
    """The elements of the run that is under way on this thread.

    Raises RuntimeError on a thread that has none: a run without its messages would succeed, and they would be
    acknowledged unwritten.
    """
    messages: Sequence[Any] | None = getattr(_run, "messages", None)
    if messages is None:
        raise RuntimeError("Beam runs this step on another thread than the run's: it has no messages here")
    return messages


class ReadLeasedMessages(beam.PTransform):  # type: ignore[misc]
    """Stands where `ReadMessages` stands on Dataflow; its elements are raw protobuf messages."""

    def __init__(self, timestamp_attribute: str = "") -> None:
        super().__init__()
        self._timestamp_attribute = timestamp_attribute

    def expand(self, pbegin: Any) -> Any:
        """One impulse, from which the leased messages come."""
        emit = beam.ParDo(_EmitFn(self._timestamp_attribute)).with_output_types(RawMessage)
        return pbegin | "Begin a batch" >> beam.Impulse() | "Emit its messages" >> emit


class _EmitFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, timestamp_attribute: str) -> None:
        super().__init__()
        self._attribute = timestamp_attribute

    def process(self, _: bytes) -> Iterator[Any]:
        previous, stamped = None, GlobalWindows.windowed_value(None)
        for message in leased():
            named = message.attributes.get(self._attribute) if self._attribute else None
            published = message.publish_time
            key = named or (published.seconds, published.nanos)
            if key != previous:  # the messages of one Publish call share their time
                previous = key
                stamped = GlobalWindows.windowed_value(None, _event_time(named, published))
            yield stamped.with_value(message)  # a TimestampedValue would have its window made anew


def _event_time(named: str | None, published: Any) -> Timestamp:
    """The attribute's time (RFC 3339 or milliseconds), else the time of publication.

    Dataflow fails for ever at a malformed attribute; here the message goes on.
    """
    if named:
        try:
            time = Timestamp(micros=int(named) * 1000) if named.isdigit() else Timestamp.from_rfc3339(named)
            time = time.to_precision(Timestamp.MICROS_PRECISION, allow_lossy_conversion=True)
            if MIN_TIMESTAMP <= time <= MAX_TIMESTAMP:
                return time
        except (ValueError, OverflowError):
            pass
    return Timestamp(micros=published.seconds * 1_000_000 + published.nanos // 1000)
