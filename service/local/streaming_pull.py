"""StreamingPull: messages pushed down a stream as the client's flow control allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.pubsub_v1 import types

from service.local import pubsub_rules, wire
from service.local.backlog import Delivery, Window
from service.local.broker import Broker
from service.local.grpc_server import Context, StatusError
from service.local.wakeups import Bells

StreamingPullResponse: Any = types.StreamingPullResponse.pb()

MAX_RESPONSE_MESSAGES = 1000
MAX_RESPONSE_BYTES = 3_500_000  # below the 4 MiB that a gRPC client takes by default
Peers = dict[tuple[str, str], list["Stream"]]
SHUTDOWN = StatusError(grpc.StatusCode.UNAVAILABLE, "The local Pub/Sub server is shutting down.")


class Stream:
    """One StreamingPull call. Leases of a stream that ended stay until their deadline.

    Of the streams that one client has open on one subscription only the newest gets messages. When
    its stream fails at once, as on this machine it may, the Python client opens two new ones and
    forgets the first, which would swallow messages for ever. `peers` has the open streams, oldest
    first, by subscription and client id; all streams of a server share it.
    """

    def __init__(self, broker: Broker, bells: Bells, peers: Peers, first: Any) -> None:
        if not first.subscription:
            pubsub_rules.invalid("The first request of a stream must name the subscription.")
        self._broker = broker
        self._bells = bells
        self._subscription = broker.subscription(first.subscription)
        self._seconds = 0
        self._set_deadline(first)
        ordered = self._subscription.pb.enable_message_ordering
        self._properties = StreamingPullResponse(
            subscription_properties={"message_ordering_enabled": ordered}
        ).SerializeToString()
        self._peers = peers
        self._key = (first.subscription, first.client_id or f"nameless {id(self)}")
        self._window = Window(first.max_outstanding_messages, first.max_outstanding_bytes)
        self._take_acks(first)

    async def run(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Reads and writes until the client closes its side. Raises StatusError."""
        self._peers.setdefault(self._key, []).append(self)
        reader = asyncio.create_task(self._read(requests))
        reader.add_done_callback(self._on_reader_done)
        try:
            while not reader.done():
                self._require_existing()
                bell = self._bells.take(self._subscription.pb.name)
                deliveries = self._next()
                if deliveries:
                    await context.write(wire.received_messages(deliveries) + self._properties)
                else:
                    await bell.wait()
            reader.result()
        finally:
            reader.cancel()
            self._leave()

    def _leave(self) -> None:
        """Lets the next newest stream of the client take over."""
        streams = self._peers[self._key]
        streams.remove(self)
        if not streams:
            del self._peers[self._key]
        self._bells.ring(self._subscription.pb.name)

    def _on_reader_done(self, reader: asyncio.Task[None]) -> None:
        if not reader.cancelled():
            reader.exception()  # looked at here, because `run` may have ended before it could
        self._bells.ring(self._subscription.pb.name)

    def _next(self) -> list[Delivery]:
        messages, size = self._window.room()
        replaced = self._peers[self._key][-1] is not self
        if messages <= 0 or size <= 0 or replaced:
            return []
        deliveries = self._broker.lease(
            self._subscription,
            min(messages, MAX_RESPONSE_MESSAGES),
            min(size, MAX_RESPONSE_BYTES),
            self._seconds,
            self._window,
        )
        if deliveries:
            self._bells.leased(self._subscription)
        return deliveries

    def _require_existing(self) -> None:
        if self._bells.closed:
            raise SHUTDOWN
        if self._broker.subscription(self._subscription.pb.name) is not self._subscription:
            raise pubsub_rules.not_found(self._subscription.pb.name)

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            if request.subscription:
                pubsub_rules.invalid("Only the first request of a stream may name the subscription.")
            if request.max_outstanding_messages or request.max_outstanding_bytes:
                pubsub_rules.invalid("Only the first request of a stream may set its flow control.")
            self._require_existing()
            if request.stream_ack_deadline_seconds:
                self._set_deadline(request)
            self._take_acks(request)

    def _set_deadline(self, request: Any) -> None:
        pubsub_rules.check_range(
            "stream_ack_deadline_seconds",
            request.stream_ack_deadline_seconds,
            pubsub_rules.MIN_ACK_DEADLINE_SECONDS,
            pubsub_rules.MAX_ACK_DEADLINE_SECONDS,
        )
        self._seconds = request.stream_ack_deadline_seconds

    def _take_acks(self, request: Any) -> None:
        ack_ids, seconds = request.modify_deadline_ack_ids, request.modify_deadline_seconds
        if len(ack_ids) != len(seconds):
            pubsub_rules.invalid("modify_deadline_ack_ids and modify_deadline_seconds differ in length.")
        ended = self._broker.acknowledge(self._subscription, request.ack_ids)
        by_seconds: dict[int, list[str]] = {}
        for ack_id, one in zip(ack_ids, seconds, strict=True):
            by_seconds.setdefault(one, []).append(ack_id)
        for one, ids in by_seconds.items():
            ended |= self._broker.modify_deadline(self._subscription, ids, one)
        if ended:
            self._bells.ring(self._subscription.pb.name)
        if ack_ids:
            self._bells.leased(self._subscription)
