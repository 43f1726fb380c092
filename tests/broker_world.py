"""A Pub/Sub broker with one topic, the clock that it goes by, and how tests read what it delivers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from service.local import wire
from service.local.backlog import Delivery
from service.local.broker import Broker
from service.local.grpc_server import StatusError
from service.local.pubsub_records import Record

PROJECT = "projects/signin-local"
TOPIC = f"{PROJECT}/topics/signins"
NO_BYTE_LIMIT = 1 << 40


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Setup:
    """A broker with one topic, its clock and the records that it kept."""

    def __init__(self, **arguments: Any) -> None:
        self.clock = Clock()
        self.records: list[Record] = []
        self.broker = Broker(self.clock, keep=self.records.extend, run="run", **arguments)
        self.broker.create_topic(types.Topic.pb()(name=TOPIC))

    def subscribe(self, name: str = "first", **fields: Any) -> Any:
        path = f"{PROJECT}/subscriptions/{name}"
        self.broker.create_subscription(types.Subscription.pb()(name=path, topic=TOPIC, **fields))
        return self.broker.subscription(path)

    def publish(self, *data: bytes, **fields: Any) -> list[str]:
        messages = [types.PubsubMessage.pb()(data=one, **fields) for one in data]
        response, _ = self.broker.publish(types.PublishRequest.pb()(topic=TOPIC, messages=messages))
        return list(response.message_ids)

    def pull(self, subscription: Any, limit: int = 1000, **arguments: Any) -> list[Any]:
        return received(self.broker.lease(subscription, limit, NO_BYTE_LIMIT, **arguments))


@pytest.fixture(name="setup")
def broker_setup() -> Setup:
    return Setup()


def received(deliveries: Sequence[Delivery]) -> list[Any]:
    return list(types.PullResponse.pb().FromString(wire.received_messages(deliveries)).received_messages)


def data(messages: Sequence[Any]) -> list[bytes]:
    return [message.message.data for message in messages]


def ack_ids(messages: Sequence[Any]) -> list[str]:
    return [message.ack_id for message in messages]


def refusal(call: Any, *arguments: Any, **keywords: Any) -> grpc.StatusCode:
    with pytest.raises(StatusError) as caught:
        call(*arguments, **keywords)
    return caught.value.code
