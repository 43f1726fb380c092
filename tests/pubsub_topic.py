"""A topic on a Pub/Sub server in another process, and all that was published to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.pubsub_v1 import types

from tests.running import PROJECT, TOPIC

SUBSCRIPTION = f"projects/{PROJECT}/subscriptions/everything"
QUIET_SECONDS = 0.5
DEADLINE_SECONDS = 30.0


def call(address: str, service: str, method: str, request: Any, response: Any) -> Any:
    """One call of raw protobuf messages at the server `address`."""
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            f"/google.pubsub.v1.{service}/{method}", type(request).SerializeToString, response.FromString
        )
        return stub(request, timeout=DEADLINE_SECONDS, wait_for_ready=True)


def make_topic(address: str) -> None:
    """Makes the service's topic and a subscription that gets everything."""
    topic = types.Topic.pb()
    call(address, "Publisher", "CreateTopic", topic(name=TOPIC), topic)
    _subscribe(address)


def forget_all(address: str) -> None:
    """Lets go of all that waits: what a server keeps for a reader that does not come has a bound."""
    from google.protobuf.empty_pb2 import Empty

    gone = types.DeleteSubscriptionRequest.pb()(subscription=SUBSCRIPTION)
    call(address, "Subscriber", "DeleteSubscription", gone, Empty)
    _subscribe(address)


def _subscribe(address: str) -> None:
    subscription = types.Subscription.pb()
    asked = subscription(name=SUBSCRIPTION, topic=TOPIC, ack_deadline_seconds=600)
    call(address, "Subscriber", "CreateSubscription", asked, subscription)


def pull_all(address: str) -> Iterator[Any]:
    """Takes and acknowledges every message that waits, until none was there for `QUIET_SECONDS`."""
    from google.protobuf.empty_pb2 import Empty

    pull, acknowledge = types.PullRequest.pb(), types.AcknowledgeRequest.pb()
    empty_since: float | None = None
    while empty_since is None or time.monotonic() < empty_since + QUIET_SECONDS:
        request = pull(subscription=SUBSCRIPTION, max_messages=1000, return_immediately=True)
        found = call(address, "Subscriber", "Pull", request, types.PullResponse.pb()).received_messages
        if not found:
            empty_since = empty_since or time.monotonic()
            time.sleep(0.05)
            continue
        empty_since = None
        yield from (each.message for each in found)
        taken = acknowledge(subscription=SUBSCRIPTION, ack_ids=[each.ack_id for each in found])
        call(address, "Subscriber", "Acknowledge", taken, Empty)


@contextmanager
def publish_once(address: str) -> Iterator[Callable[[bytes], str]]:
    """Yields a function that publishes one message on one open connection and returns its id."""
    request, message, response = (
        types.PublishRequest.pb(),
        types.PubsubMessage.pb(),
        types.PublishResponse.pb(),
    )
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish", request.SerializeToString, response.FromString
        )
        yield lambda data: stub(
            request(topic=TOPIC, messages=[message(data=data)]), timeout=DEADLINE_SECONDS
        ).message_ids[0]


def count_all(address: str) -> int:
    """How many different events arrived, by their attribute `event_id`."""
    return len({message.attributes["event_id"] for message in pull_all(address)})
