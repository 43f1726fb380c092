"""The local Pub/Sub server: `google.pubsub.v1` Publisher and Subscriber over gRPC.

`python -m service.local.pubsub --data-dir DIR` runs it alone; `async with PubsubServer()` runs it in
this process. Methods that are not here answer UNIMPLEMENTED.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

import grpc
import grpc.aio
from google.protobuf import empty_pb2
from google.pubsub_v1 import types

from service.local import grpc_server, permissions, pubsub_rules, wire
from service.local.broker import DEFAULT_BACKLOG_BYTES, Broker
from service.local.faults import FaultSwitch
from service.local.grpc_server import Context, Method, Serialized
from service.local.journal import Journal
from service.local.monitoring import MonitoringServer
from service.local.streaming_pull import MAX_RESPONSE_BYTES, MAX_RESPONSE_MESSAGES, SHUTDOWN, Peers, Stream
from service.local.wakeups import Bells

Empty: Any = empty_pb2.Empty
_LONGEST_PULL_SECONDS = 90.0
_STREAMING_PULL = "StreamingPull"


class PubsubServer:
    """A Pub/Sub server on loopback. `address` is its `host:port`, `faults` its fault switch.

    With `data_dir`, what was published and not acknowledged survives the process. Entering raises
    JournalError or OSError where the directory or the port is not free.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        clock: Callable[[], float] = time.time,
        backlog_bytes: int = DEFAULT_BACKLOG_BYTES,
    ) -> None:
        self.faults = FaultSwitch((_STREAMING_PULL,))
        self.address = ""
        self._data_dir = data_dir
        self._host = host
        self._port = port
        self._clock = clock
        self._backlog_bytes = backlog_bytes

    async def __aenter__(self) -> Self:
        self._journal = Journal(self._data_dir) if self._data_dir else None
        try:
            self.broker = self._make_broker()
            self._bells = Bells(self.broker, self._clock)
            self._streams: Peers = {}
            self._server, self.address = await grpc_server.start_server(
                self._handlers(), self._host, self._port
            )
        except BaseException:
            if self._journal:
                self._journal.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bells.close()
        self.faults.close()
        await self._server.stop(grpc_server.STOP_GRACE_SECONDS)
        if self._journal:
            self._journal.close()

    def _make_broker(self) -> Broker:
        run = secrets.token_hex(4)
        if not self._journal:
            return Broker(self._clock, run=run, backlog_bytes=self._backlog_bytes)
        broker = Broker(
            self._clock,
            keep=self._journal.append,
            state=self._journal.state,
            run=run,
            backlog_bytes=self._backlog_bytes,
        )
        self._journal.follow(broker.state)
        return broker

    def _publisher_methods(self) -> dict[str, Method]:
        return {
            "CreateTopic": Method(self._create_topic, types.Topic.pb(), types.Topic.pb()),
            "GetTopic": Method(self._get_topic, types.GetTopicRequest.pb(), types.Topic.pb()),
            "ListTopics": Method(
                self._list_topics, types.ListTopicsRequest.pb(), types.ListTopicsResponse.pb()
            ),
            "ListTopicSubscriptions": Method(
                self._list_topic_subscriptions,
                types.ListTopicSubscriptionsRequest.pb(),
                types.ListTopicSubscriptionsResponse.pb(),
            ),
            "DeleteTopic": Method(self._delete_topic, types.DeleteTopicRequest.pb(), empty_pb2.Empty),
            "Publish": Method(self._publish, types.PublishRequest.pb(), types.PublishResponse.pb()),
        }

    def _subscriber_methods(self) -> dict[str, Method]:
        return {
            "CreateSubscription": Method(
                self._create_subscription, types.Subscription.pb(), types.Subscription.pb()
            ),
            "GetSubscription": Method(
                self._get_subscription, types.GetSubscriptionRequest.pb(), types.Subscription.pb()
            ),
            "UpdateSubscription": Method(
                self._update_subscription, types.UpdateSubscriptionRequest.pb(), types.Subscription.pb()
            ),
            "ListSubscriptions": Method(
                self._list_subscriptions,
                types.ListSubscriptionsRequest.pb(),
                types.ListSubscriptionsResponse.pb(),
            ),
            "DeleteSubscription": Method(
                self._delete_subscription, types.DeleteSubscriptionRequest.pb(), empty_pb2.Empty
            ),
            "Pull": Method(self._pull, types.PullRequest.pb(), Serialized),
            "Acknowledge": Method(self._acknowledge, types.AcknowledgeRequest.pb(), empty_pb2.Empty),
            "ModifyAckDeadline": Method(
                self._modify_ack_deadline, types.ModifyAckDeadlineRequest.pb(), empty_pb2.Empty
            ),
            "Seek": Method(self._seek, types.SeekRequest.pb(), types.SeekResponse.pb()),
        }

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        streaming = grpc.stream_stream_rpc_method_handler(
            self._streaming_pull,
            request_deserializer=types.StreamingPullRequest.pb().FromString,
            response_serializer=None,
        )
        service = "google.pubsub.v1.Subscriber"
        return [
            grpc_server.unary_handlers("google.pubsub.v1.Publisher", self._publisher_methods(), self.faults),
            grpc_server.unary_handlers(service, self._subscriber_methods(), self.faults),
            permissions.handler(self.broker, self.faults),
            grpc.method_handlers_generic_handler(service, {_STREAMING_PULL: streaming}),
            self.faults.handler(),
        ]

    # Publisher

    async def _create_topic(self, request: Any, _: Context) -> Any:
        return self.broker.create_topic(request)

    async def _get_topic(self, request: Any, _: Context) -> Any:
        return self.broker.topic(request.topic)

    async def _list_topics(self, request: Any, _: Context) -> Any:
        topics, token = self.broker.list_topics(request.project, request.page_size, request.page_token)
        return types.ListTopicsResponse.pb()(topics=topics, next_page_token=token)

    async def _list_topic_subscriptions(self, request: Any, _: Context) -> Any:
        names, token = self.broker.list_topic_subscriptions(
            request.topic, request.page_size, request.page_token
        )
        return types.ListTopicSubscriptionsResponse.pb()(subscriptions=names, next_page_token=token)

    async def _delete_topic(self, request: Any, _: Context) -> Any:
        self.broker.delete_topic(request.topic)
        return Empty()

    async def _publish(self, request: Any, _: Context) -> Any:
        response, subscriptions = self.broker.publish(request)
        for subscription in subscriptions:
            self._bells.ring(subscription.pb.name)
        return response

    # Subscriber

    async def _create_subscription(self, request: Any, _: Context) -> Any:
        return self.broker.create_subscription(request)

    async def _get_subscription(self, request: Any, _: Context) -> Any:
        return self.broker.subscription(request.subscription).pb

    async def _update_subscription(self, request: Any, _: Context) -> Any:
        return self.broker.update_subscription(request)

    async def _list_subscriptions(self, request: Any, _: Context) -> Any:
        subscriptions, token = self.broker.list_subscriptions(
            request.project, request.page_size, request.page_token
        )
        return types.ListSubscriptionsResponse.pb()(subscriptions=subscriptions, next_page_token=token)

    async def _delete_subscription(self, request: Any, _: Context) -> Any:
        self.broker.delete_subscription(request.subscription)
        self._bells.ring(request.subscription)
        return Empty()

    async def _pull(self, request: Any, context: Context) -> bytes:
        """Waits for a first message until shortly before the caller's deadline, then answers without."""
        if request.max_messages <= 0:
            pubsub_rules.invalid("max_messages must be positive.")
        remaining = context.time_remaining()
        wait = min(_LONGEST_PULL_SECONDS, remaining - min(0.5, remaining / 4) if remaining else 1e9)
        limit = min(request.max_messages, MAX_RESPONSE_MESSAGES)
        loop = asyncio.get_running_loop()
        end = loop.time() + (0 if request.return_immediately else wait)
        while True:
            subscription = self.broker.subscription(request.subscription)
            bell = self._bells.take(request.subscription)
            deliveries = self.broker.lease(subscription, limit, MAX_RESPONSE_BYTES)
            if deliveries:
                self._bells.leased(subscription)
            if deliveries or loop.time() >= end:
                return wire.received_messages(deliveries)
            if self._bells.closed:
                raise SHUTDOWN
            try:
                async with asyncio.timeout_at(end):
                    await bell.wait()
            except TimeoutError:
                return b""

    async def _acknowledge(self, request: Any, _: Context) -> Any:
        self._check_ack_ids(request)
        if self.broker.acknowledge(self.broker.subscription(request.subscription), request.ack_ids):
            self._bells.ring(request.subscription)
        return Empty()

    async def _modify_ack_deadline(self, request: Any, _: Context) -> Any:
        self._check_ack_ids(request)
        subscription = self.broker.subscription(request.subscription)
        if self.broker.modify_deadline(subscription, request.ack_ids, request.ack_deadline_seconds):
            self._bells.ring(request.subscription)
        self._bells.leased(subscription)
        return Empty()

    @staticmethod
    def _check_ack_ids(request: Any) -> None:
        if not request.ack_ids:
            pubsub_rules.invalid("No ack ids specified.")
        if request.ByteSize() > pubsub_rules.MAX_ACK_REQUEST_BYTES:
            pubsub_rules.invalid(
                f"Request payload size exceeds the limit: {pubsub_rules.MAX_ACK_REQUEST_BYTES} bytes."
            )

    async def _seek(self, request: Any, _: Context) -> Any:
        subscription = self.broker.subscription(request.subscription)
        if request.WhichOneof("target") != "time":
            raise pubsub_rules.not_offered("Seek to a snapshot")
        self.broker.seek(subscription, request.time.seconds + request.time.nanos / 1e9)
        self._bells.ring(request.subscription)
        return types.SeekResponse.pb()()

    async def _streaming_pull(self, requests: AsyncIterator[Any], context: Context) -> None:
        async def stream() -> None:
            first = await anext(requests, None)
            if first is None:
                pubsub_rules.invalid("The stream ended before its first request.")
            await Stream(self.broker, self._bells, self._streams, first).run(requests, context)

        await grpc_server.guarded(_STREAMING_PULL, context, self.faults, stream)


async def serve(host: str, port: int, monitoring_port: int, data_dir: Path, backlog_bytes: int) -> None:
    """Runs the server until SIGTERM or SIGINT."""
    async with (
        PubsubServer(data_dir, host=host, port=port, backlog_bytes=backlog_bytes) as server,
        MonitoringServer(server.broker, host=host, port=monitoring_port) as monitoring,
    ):
        grpc_server.announce(server.address, monitoring=monitoring.url)
        await grpc_server.until_signal()


def main() -> None:
    parser = argparse.ArgumentParser(prog="service.local.pubsub", description="The local Pub/Sub server")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--monitoring-port", type=int, default=0, help="the same")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the journal is kept")
    parser.add_argument("--backlog-bytes", type=int, default=DEFAULT_BACKLOG_BYTES)
    arguments = parser.parse_args()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    try:
        asyncio.run(serve(**vars(arguments)))
    except OSError as error:
        raise SystemExit(f"The local Pub/Sub server cannot start: {error}") from error


if __name__ == "__main__":
    main()
