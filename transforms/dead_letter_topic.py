"""Dead letters as messages of a topic, for alerts that cannot wait until somebody looks at the table."""

from __future__ import annotations

import base64
import functools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grpc

from transforms.bigquery_rows import Row

GOOGLE = "pubsub.googleapis.com:443"
SCOPES = ("https://www.googleapis.com/auth/pubsub",)
PREFIX = "dead_letter_"
_MARK = f"{PREFIX}reason"
CALL_SECONDS = 10.0
PUBLISH_SECONDS = 20.0  # for all letters that are published together
MAX_CALL_MESSAGES = 500
MAX_CALL_BYTES = 8_000_000
MAX_ATTRIBUTES = 100
MAX_KEY_BYTES = 256
MAX_VALUE_BYTES = 1024
_ATTEMPTS = 3
_MESSAGE_BYTES = 500  # what a message has around its payload and attributes, at most
_COLUMNS = (
    "stage",
    "reason",
    "detail",
    "failed_at",
    "message_id",
    "publish_time",
    "event_id",
    "pipeline_version",
    "job_id",
)
_TRANSIENT = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)
_log = logging.getLogger(__name__)


class Topic(NamedTuple):
    """`projects/PROJECT/topics/NAME`, and the `host:port` of an emulator; empty means Google."""

    path: str
    emulator_host: str = ""


class Publisher:
    """Publishes dead letters. The table is the record of them: a topic that is away holds up nobody."""

    def __init__(self, channel: grpc.Channel, topic: str) -> None:
        from google.pubsub_v1 import types

        self._topic = topic
        self._message = types.PubsubMessage.pb()
        self._request = types.PublishRequest.pb()
        self._publish = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            request_serializer=self._request.SerializeToString,
            response_deserializer=types.PublishResponse.pb().FromString,
        )

    def publish(self, letters: Sequence[Row]) -> int:
        """Publishes what it can within PUBLISH_SECONDS; returns how many letters it could not.

        What has been a letter of a topic before goes to its table alone: where a job reads that topic, the
        letters would feed themselves for ever.
        """
        letters = [letter for letter in letters if not came_back(letter)]
        failed = 0
        until = time.monotonic() + PUBLISH_SECONDS
        for messages in self._calls(letters):
            try:
                self._persist(self._request(topic=self._topic, messages=messages), until)
            except grpc.RpcError as error:
                failed += len(messages)
                _log.error(
                    "%d dead letters are not in %s, but in their table: %s: %s",
                    len(messages),
                    self._topic,
                    error.code().name,
                    error.details(),
                )
        return failed

    def _persist(self, request: Any, until: float) -> None:
        metadata = (("x-goog-request-params", f"topic={self._topic}"),)
        for left in reversed(range(_ATTEMPTS)):
            seconds = max(0.0, min(CALL_SECONDS, until - time.monotonic()))  # without any it fails at once
            try:
                self._publish(request, timeout=seconds, metadata=metadata)
            except grpc.RpcError as error:
                if not left or error.code() not in _TRANSIENT:
                    raise
            else:
                return

    def _calls(self, letters: Sequence[Row]) -> Iterator[list[Any]]:
        messages: list[Any] = []
        size = 0
        for letter in letters:
            message = self._message(
                data=base64.b64decode(letter["payload"])[:MAX_CALL_BYTES], attributes=attributes(letter)
            )
            length = message.ByteSize() + _MESSAGE_BYTES
            if messages and (len(messages) >= MAX_CALL_MESSAGES or size + length > MAX_CALL_BYTES):
                yield messages
                messages, size = [], 0
            messages.append(message)
            size += length
        if messages:
            yield messages


def attributes(letter: Row) -> dict[str, str]:
    """The attributes of a letter's message: its columns as `dead_letter_<column>`, then the message's own.

    Both within Pub/Sub's limits: values are cut, and what is too much is left out.
    """
    found = {f"{PREFIX}{name}": _cut(letter[name]) for name in _COLUMNS if letter.get(name)}
    for record in letter.get("attributes", ()):
        name = record["key"]
        fits = len(found) < MAX_ATTRIBUTES and 0 < len(name.encode()) <= MAX_KEY_BYTES
        if fits and name not in found and not name.startswith("goog"):  # those names are Google's own
            found[name] = _cut(record["value"])
    return found


def came_back(letter: Row) -> bool:
    """Whether the message of a letter has been a letter of a topic before."""
    return any(record["key"] == _MARK for record in letter.get("attributes", ()))


def _cut(text: str) -> str:
    return text.encode()[:MAX_VALUE_BYTES].decode(errors="ignore")


@functools.lru_cache(maxsize=4)
def shared_publisher(topic: Topic) -> Publisher:
    """The one publisher of this process to a topic."""
    return Publisher(_open_channel(topic.emulator_host), topic.path)


def _open_channel(emulator_host: str) -> grpc.Channel:
    if emulator_host:
        return grpc.insecure_channel(emulator_host)
    import google.auth
    from google.auth.transport.grpc import secure_authorized_channel
    from google.auth.transport.requests import Request

    credentials, _ = google.auth.default(scopes=SCOPES)
    return secure_authorized_channel(credentials, Request(), GOOGLE)
