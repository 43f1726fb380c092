"""Pub/Sub over gRPC with raw protobuf messages: half the cost of the client library for each message."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from pipeline.credentials import application_default, pubsub_emulator

ENDPOINT = "pubsub.googleapis.com:443"
CALL_SECONDS = 10.0
RETRY_SECONDS = 30.0
MAX_ACK_IDS = 2_500  # of one call
MAX_ACK_ID_BYTES = 400_000  # of one call; Pub/Sub takes 512 KiB
ORPHAN_SECONDS = 24 * 3600  # after which Pub/Sub deletes a subscription of ours that nobody reads

_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_PERMANENT = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_log = logging.getLogger(__name__)


class SubscriptionError(Exception):
    """Pub/Sub refuses for good: no such subscription, no permission."""


def open_channel() -> grpc.Channel:
    """A channel to the emulator of PUBSUB_EMULATOR_HOST, else to Google. Raises CredentialsError."""
    emulator = pubsub_emulator()
    if emulator:
        return grpc.insecure_channel(emulator, options=_OPTIONS)
    from google.auth.transport.grpc import secure_authorized_channel
    from google.auth.transport.requests import Request

    return secure_authorized_channel(application_default(), Request(), ENDPOINT, options=_OPTIONS)


def is_permanent(error: grpc.RpcError) -> bool:
    """Tells whether asking again is in vain."""
    return error.code() in _PERMANENT


def jittered(seconds: float) -> float:
    """A pause of at most so many seconds, so that several waiting programs do not come back at once."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def describe(error: grpc.RpcError) -> str:
    """The status and what the server says of it."""
    return f"{error.code().name}: {error.details()}"


class Subscriber:
    """One subscription. Thread-safe; the channel stays its owner's."""

    def __init__(self, channel: grpc.Channel, subscription: str) -> None:
        self.subscription = subscription
        self._metadata = (("x-goog-request-params", f"subscription={subscription}"),)
        self._pull = _method(channel, "Pull", types.PullRequest, types.PullResponse)
        self._acknowledge = _method(channel, "Acknowledge", types.AcknowledgeRequest, None)
        self._modify = _method(channel, "ModifyAckDeadline", types.ModifyAckDeadlineRequest, None)
        self._get = _method(channel, "GetSubscription", types.GetSubscriptionRequest, types.Subscription)
        self._create = _method(channel, "CreateSubscription", types.Subscription, types.Subscription)
        self._delete = _method(channel, "DeleteSubscription", types.DeleteSubscriptionRequest, None)

    def begin_pull(self, max_messages: int, timeout: float) -> Any:
        """The future of a PullResponse; it ends with DEADLINE_EXCEEDED where nothing arrives."""
        request = types.PullRequest.pb()(subscription=self.subscription, max_messages=max_messages)
        return self._pull.future(request, timeout=timeout, metadata=self._metadata)

    def acknowledge(self, ack_ids: Sequence[str]) -> None:
        """Tries transient failures again, RETRY_SECONDS long. Raises grpc.RpcError."""
        request = types.AcknowledgeRequest.pb()
        until = time.monotonic() + RETRY_SECONDS
        for part in _parts(ack_ids):
            self._persist(self._acknowledge, request(subscription=self.subscription, ack_ids=part), until)

    def modify_deadline(self, ack_ids: Sequence[str], seconds: int, timeout: float = CALL_SECONDS) -> None:
        """Holds the messages for so many seconds from now; 0 gives them back.

        A call that fails keeps no other from being tried. Raises grpc.RpcError, the first one.
        """
        request = types.ModifyAckDeadlineRequest.pb()
        until = time.monotonic() + timeout
        failure: grpc.RpcError | None = None
        for part in _parts(ack_ids):
            try:
                self._modify(
                    request(subscription=self.subscription, ack_ids=part, ack_deadline_seconds=seconds),
                    timeout=max(0.1, until - time.monotonic()),
                    metadata=self._metadata,
                )
            except grpc.RpcError as error:
                failure = failure or error
        if failure:
            raise failure

    def ack_deadline_seconds(self) -> int:
        """How long a message is leased for. Raises SubscriptionError if the subscription does not exist."""
        request = types.GetSubscriptionRequest.pb()(subscription=self.subscription)
        try:
            return int(
                self._persist(self._get, request, time.monotonic() + RETRY_SECONDS).ack_deadline_seconds
            )
        except grpc.RpcError as error:
            # Reading messages and reading the subscription are two permissions.
            if error.code() is grpc.StatusCode.PERMISSION_DENIED:
                return 10
            raise SubscriptionError(f"{self.subscription}: {describe(error)}") from error

    def create(self, topic: str) -> None:
        """Makes the subscription. Raises SubscriptionError."""
        request = types.Subscription.pb()(name=self.subscription, topic=topic, ack_deadline_seconds=10)
        request.expiration_policy.ttl.seconds = ORPHAN_SECONDS
        try:
            self._persist(self._create, request, time.monotonic() + RETRY_SECONDS)
        except grpc.RpcError as error:
            raise SubscriptionError(f"{topic} cannot be subscribed to: {describe(error)}") from error

    def delete(self) -> None:
        """Removes the subscription; a failure is only logged, for Pub/Sub removes an unread one itself."""
        request = types.DeleteSubscriptionRequest.pb()(subscription=self.subscription)
        try:
            self._delete(request, timeout=CALL_SECONDS, metadata=self._metadata)
        except grpc.RpcError as error:
            _log.warning("Subscription %s was not deleted: %s", self.subscription, describe(error))

    def _persist(self, call: Any, request: Any, until: float) -> Any:
        pause = 0.1
        while True:
            left = until - time.monotonic()
            try:
                return call(request, timeout=max(0.1, min(CALL_SECONDS, left)), metadata=self._metadata)
            except grpc.RpcError as error:
                if is_permanent(error) or left <= pause:
                    raise
            time.sleep(jittered(pause))
            pause = min(2 * pause, 5.0)


def _method(channel: grpc.Channel, name: str, request: Any, response: Any) -> Any:
    return channel.unary_unary(
        f"/google.pubsub.v1.Subscriber/{name}",
        request_serializer=request.pb().SerializeToString,
        response_deserializer=response.pb().FromString if response else empty_pb2.Empty.FromString,
    )


def _parts(ack_ids: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for ack_id in ack_ids:
        if len(part) >= MAX_ACK_IDS or size + len(ack_id) > MAX_ACK_ID_BYTES:
            yield part
            part, size = [], 0
        part.append(ack_id)
        size += len(ack_id) + 4
    if part:
        yield part
