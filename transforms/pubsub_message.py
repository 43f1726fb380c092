"""From a Pub/Sub message to a row or a dead letter: any bytes, any attributes, exactly one of them."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import pvalue
from apache_beam.metrics import Metrics
from google.protobuf.timestamp_pb2 import Timestamp

from transforms import timestamps
from transforms.bigquery_rows import Row, Stage, dead_letter_row, to_row, to_rows
from transforms.replay import event_id_of
from transforms.signin_columns import decode_together
from transforms.signin_event import UNDECODABLE, EventError, decode, decode_quickly, is_event_id

DEAD_LETTERS = "dead_letters"
METRICS_NAMESPACE = "signin"

_log = logging.getLogger(__name__)
_SAMPLED = 32  # one of so many messages
_NO_ATTRIBUTES: Mapping[str, str] = {}


class DeadLetter(dict[str, Any]):
    """The row of the dead-letter table that a message became, told from a sign-in's by its type."""


class Extracted(NamedTuple):
    """Rows, the message of each of them beside it, and the dead letters of all other messages."""

    rows: list[Row]
    messages: Sequence[Any]
    letters: Sequence[DeadLetter]


class _Message(NamedTuple):
    data: bytes
    attributes: Mapping[str, str]
    message_id: str | None
    published_at: str | None


class Extractor:
    """Turns messages into rows or dead letters, and counts what it did until `report`.

    A message is a raw protobuf `google.pubsub.v1.PubsubMessage`, Beam's `PubsubMessage`, or the bytes of
    its payload alone. Rows and dead letters are dictionaries in the form that insertAll takes.
    """

    def __init__(self, *, pipeline_version: str = "", job_id: str = "") -> None:
        self._pipeline_version = pipeline_version
        self._job_id = job_id
        self.parsed = 0  # messages that became a row; whoever extracts counts them
        self._counts: Counter[str] = Counter()
        self._seconds = self._nanos = 0
        self._publish_time_text: str | None = None

    def begin(self) -> None:
        """Forgets what was counted."""
        self.parsed = 0
        self._counts = Counter()

    def extract(self, element: Any) -> Row | DeadLetter:
        """The row of the message's sign-in, or its dead letter. Never raises."""
        try:
            if type(element) is bytes:
                return to_row(decode_quickly(element) or decode(element))
            data = element.data
            event = decode_quickly(data) or decode(data)
            row = to_row(event, self._published_at(element.publish_time))
            if event.event_id is None and (event_id := _attributed_id(element)):
                row["event_id"] = event_id
        except Exception as error:  # noqa: BLE001 - the law: never an exception that Beam sees
            return self._letter(element, error)
        return row

    def extract_all(self, elements: Sequence[Any], payloads: Sequence[bytes]) -> Extracted:
        """What `extract` gives for each, for less. `payloads` are the messages' own."""
        try:
            columns = decode_together(payloads)
            if elements == payloads:  # bytes alone
                rows = to_rows(columns)
            else:
                rows = to_rows(columns, self._publish_times(elements))
                _add_attributed_ids(rows, elements)
            doubtful = columns.doubtful
        except Exception:  # noqa: BLE001 - a message is stranger than its payload; one by one it is found
            rows, doubtful = [{}] * len(elements), set(range(len(elements)))
        if not doubtful:
            return Extracted(rows, elements, ())
        return self._resolved(rows, elements, doubtful)

    def refuse(
        self, element: Any, stage: Stage, reason: str, detail: str, row: Row | None = None
    ) -> DeadLetter:
        """The dead letter of a message; `row` is what it became before it was refused."""
        message = self._read(element)
        event_id = row.get("event_id") if row else None
        self._count(reason)
        return DeadLetter(
            dead_letter_row(
                stage=stage,
                reason=reason,
                detail=detail,
                payload=message.data,
                attributes=message.attributes,
                message_id=message.message_id,
                publish_time=message.published_at,
                event_id=event_id or event_id_of(message.attributes),
                pipeline_version=self._pipeline_version,
                job_id=self._job_id,
            )
        )

    def report(self) -> None:
        """Adds to Beam's counters: `signins_parsed`, `dead_letters` and `dead_letters_<reason>`."""
        if self.parsed:
            Metrics.counter(METRICS_NAMESPACE, "signins_parsed").inc(self.parsed)
        for name, count in self._counts.items():
            Metrics.counter(METRICS_NAMESPACE, name).inc(count)
        self.begin()

    def _resolved(self, rows: list[Row], elements: Sequence[Any], doubtful: set[int]) -> Extracted:
        """The same with the doubtful ones judged each by itself."""
        good, letters, messages = [], [], []
        for index, element in enumerate(elements):
            row = self.extract(element) if index in doubtful else rows[index]
            if type(row) is DeadLetter:
                letters.append(row)
            else:
                good.append(row)
                messages.append(element)
        return Extracted(good, messages, letters)

    def _publish_times(self, elements: Sequence[Any]) -> list[str | None]:
        """As `_published_at` says them."""
        found: list[str | None] = []
        seconds = nanos = 0
        text: str | None = None
        for element in elements:
            time: Any = None if type(element) is bytes else element.publish_time
            if type(time) is not Timestamp:
                found.append(self._published_at(time))
                continue
            if time.nanos != nanos or time.seconds != seconds:
                seconds, nanos, text = time.seconds, time.nanos, _timestamp_text(time)
            found.append(text)
        return found

    def _letter(self, element: Any, error: Exception) -> DeadLetter:
        try:
            if isinstance(error, EventError):
                stage: Stage = "decode" if error.code in UNDECODABLE else "validate"
                return self.refuse(element, stage, error.code, error.detail)
        except Exception as further:  # noqa: BLE001 - the message is stranger than its payload
            error = further
        _log.error("A message could not be read: %s", type(error).__name__)  # its text may quote the data
        return self._give_up(element, error)

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
        if type(publish_time) is Timestamp:
            seconds, nanos = publish_time.seconds, publish_time.nanos
            # All messages of one Publish call share their time.
            if nanos != self._nanos or seconds != self._seconds:
                self._seconds, self._nanos = seconds, nanos
                self._publish_time_text = _timestamp_text(publish_time)
            return self._publish_time_text
        if publish_time is None:
            return None
        try:
            return timestamps.from_datetime(publish_time)
        except OverflowError:
            return None

    def _give_up(self, element: Any, error: Exception) -> DeadLetter:
        """The dead letter of an error that nobody foresaw: it keeps what is surely there."""
        data = element if isinstance(element, bytes) else getattr(element, "data", b"")
        if isinstance(data, str):
            data = data.encode("utf-8", "backslashreplace")
        attributes = getattr(element, "attributes", None)
        texts = attributes.items() if isinstance(attributes, Mapping) else ()
        self._count("internal_error")
        return DeadLetter(
            dead_letter_row(
                stage="validate",
                reason="internal_error",
                detail=f"{type(error).__name__} at a message of the type {type(element).__name__}",
                payload=data if isinstance(data, bytes) else b"",
                attributes={k: v for k, v in texts if isinstance(k, str) and isinstance(v, str)},
                pipeline_version=self._pipeline_version,
                job_id=self._job_id,
            )
        )

    def _count(self, reason: str) -> None:
        self._counts["dead_letters"] += 1
        self._counts[f"dead_letters_{reason}"] += 1


class MessageExtractingFn(beam.DoFn):  # type: ignore[misc]
    """Turns each message into a row, or into a dead letter on the output `DEAD_LETTERS`.

    What a message is, and what is counted for each bundle, is said at `Extractor`.
    """

    def __init__(self, *, pipeline_version: str = "", job_id: str = "") -> None:
        super().__init__()
        self._extractor = Extractor(pipeline_version=pipeline_version, job_id=job_id)

    def start_bundle(self) -> None:
        self._extractor.begin()

    def process(self, element: Any) -> Iterable[Any]:
        row = self._extractor.extract(element)
        if type(row) is DeadLetter:
            return (pvalue.TaggedOutput(DEAD_LETTERS, dict(row)),)
        self._extractor.parsed += 1
        return (row,)

    def finish_bundle(self) -> None:
        self._extractor.report()


def attribute_bytes(elements: Sequence[Any]) -> int:
    """About how many bytes the messages' attributes have together, by a sample of them.

    A look at each would cost a third of all that is done to it.
    """
    sample = elements[random.randrange(min(_SAMPLED, len(elements))) :: _SAMPLED]  # noqa: S311 - no secret
    return sum(map(_attribute_bytes, sample)) * len(elements) // len(sample)


def _attribute_bytes(message: Any) -> int:
    try:
        attributes = None if type(message) is bytes else message.attributes
        return sum(map(len, chain(attributes, attributes.values()))) if attributes else 0
    except Exception:  # noqa: BLE001 - no message at all, which the extractor has an answer to
        return 0


def _attributed_id(message: Any) -> str | None:
    """The event id that a message's attributes give it, where that is a valid one."""
    attributes = message.attributes
    event_id = event_id_of(attributes) if attributes else None
    return event_id if event_id is not None and is_event_id(event_id) else None


def _add_attributed_ids(rows: Sequence[Row], elements: Sequence[Any]) -> None:
    for row, element in zip(rows, elements, strict=True):
        if "event_id" not in row and type(element) is not bytes and (event_id := _attributed_id(element)):
            row["event_id"] = event_id


def _timestamp_text(timestamp: Any) -> str | None:
    if not timestamp.seconds and not timestamp.nanos:
        return None  # what a message has that was never published
    try:
        return timestamps.from_datetime(timestamp.ToDatetime())
    except (ValueError, OverflowError):
        return None
