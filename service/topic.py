"""The topic: one Publish call for many messages, and what its failures mean."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from service.clients import Clients, PubsubStub
from service.config import Settings
from service.metrics import Metrics

if TYPE_CHECKING:
    from service.spans import Traces

log = logging.getLogger(__name__)

Message = tuple[bytes, Mapping[str, str]]

# What Pub/Sub says of a message. Every other status is of the topic or of the way to it: it meets each
# message alike, and ends when somebody mends the cause.
_OF_THE_MESSAGE = "INVALID_ARGUMENT"
# What ends by itself; the others wait for somebody.
_PASSING = frozenset(
    ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "UNKNOWN")
)
_MEANINGS = {
    _OF_THE_MESSAGE: "the message does not fit the topic",
    "NOT_FOUND": "there is no such topic",
    "PERMISSION_DENIED": "this service may not publish to the topic",
    "UNAUTHENTICATED": "the credentials of this service are not accepted",
    "FAILED_PRECONDITION": "the topic cannot be used as it is, perhaps for its encryption key",
}
CONNECT_SECONDS = 10.0
_GRACE_SECONDS = 0.5
# What a message and an attribute cost on the wire beside their own bytes.
_MESSAGE_OVERHEAD_BYTES = 16
_ATTRIBUTE_OVERHEAD_BYTES = 8


class TopicError(Exception):
    """Pub/Sub did not take the messages. `status` is the name of the gRPC status."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status

    @property
    def for_good(self) -> bool:
        """Whether a message is at fault, perhaps one of many: sent again it is refused again."""
        return self.status == _OF_THE_MESSAGE

    @property
    def hung(self) -> bool:
        """Whether there was no answer in time."""
        return self.status == "DEADLINE_EXCEEDED"


class Topic:
    """The topic of the settings; for use within one event loop."""

    def __init__(
        self,
        clients: Clients,
        settings: Settings,
        metrics: Metrics | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.metrics = metrics or Metrics()
        self._traces = traces
        self._clients = clients
        self._pubsub: PubsubStub | None = None
        self.path = settings.topic_path

    async def publish(self, messages: Sequence[Message], deadline_seconds: float) -> list[str]:
        """One Publish call, once more if the connection broke; the ids in the order of `messages`.

        Raises TopicError shortly after the deadline at the latest; the first call may take longer,
        because it imports Google's libraries.
        """
        started = time.perf_counter()
        status = "CANCELLED"
        span = self._traces.publish_call(messages) if self._traces else None
        try:
            if self._pubsub is None:
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._pubsub = await self._clients.pubsub()
            # gRPC keeps the deadline by itself, unless the credentials hold it up.
            async with asyncio.timeout(deadline_seconds + _GRACE_SECONDS):
                ids = await self._publish(self._pubsub, messages, deadline_seconds)
        except Exception as error:
            status = _status(error)
            raise TopicError(status) from error
        else:
            status = "OK"
            return ids
        finally:
            self.metrics.publish_called(len(messages), time.perf_counter() - started, status)
            if span:
                span.end(status)

    async def _publish(
        self, pubsub: PubsubStub, messages: Sequence[Message], deadline_seconds: float
    ) -> list[str]:
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline_seconds
        message = pubsub.PubsubMessage
        request = pubsub.PublishRequest(
            topic=self.path,
            messages=[message(data=data, attributes=attributes) for data, attributes in messages],
        )
        try:
            reply = await pubsub.publish(request, timeout=deadline_seconds, metadata=pubsub.metadata)
        except Exception as error:
            if _status(error) != "UNAVAILABLE":
                raise
            # The server may have closed a connection that was idle. If it is really away, a second
            # try fails at once; if the first took effect, the copy carries the same event_id.
            reply = await pubsub.publish(
                request, timeout=max(until - loop.time(), 0), metadata=pubsub.metadata
            )
        ids = list(reply.message_ids)
        if len(ids) != len(messages) or not all(ids):
            raise RuntimeError(
                f"Pub/Sub gave {len(list(filter(None, ids)))} ids for {len(messages)} messages"
            )
        return ids

    def log_outage(self, status: str) -> None:
        """Says that events are kept from now on, and why; an error where somebody has to mend the cause."""
        level = logging.WARNING if status in _PASSING else logging.ERROR
        reason = refusal(status)
        log.log(level, "Pub/Sub takes no events for %s: %s; the outbox keeps them", self.path, reason)

    def log_return(self, waiting: int) -> None:
        """Says that events are published again."""
        log.info("Pub/Sub takes events for %s again; %d wait in the outbox", self.path, waiting)


def meaning(status: str) -> str:
    """What a status of Publish means, in words for people; empty where it means no more than its name."""
    return _MEANINGS.get(status, "")


def refusal(status: str) -> str:
    """The status with its meaning, in words for people."""
    known = meaning(status)
    return f"{known} ({status})" if known else status


def wire_size(data: bytes, attributes: Mapping[str, str]) -> int:
    """About how many bytes a message takes in a Publish call."""
    size = len(data) + _MESSAGE_OVERHEAD_BYTES
    for key, value in attributes.items():
        size += len(key) + len(value) + _ATTRIBUTE_OVERHEAD_BYTES
    return size


def _status(error: Exception) -> str:
    """The name of the gRPC status that `error` stands for."""
    code: Any = getattr(error, "code", None)
    if callable(code):
        return str(code().name)
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED"
    log.error("publishing failed", exc_info=error)
    return "INTERNAL"
