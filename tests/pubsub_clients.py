"""Google's own clients of a local Pub/Sub server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from google.cloud import pubsub_v1
from google.pubsub_v1 import PublisherClient as PublisherApi

from tests.pubsub_process import PubsubProcess

PROJECT = "projects/signin-local"
WAIT_SECONDS = 20
_numbers = itertools.count(1)


class Clients:
    """Stock clients of the server at `PUBSUB_EMULATOR_HOST`, with a topic and subscriptions of their own."""

    def __init__(self) -> None:
        self.publisher = pubsub_v1.PublisherClient(
            publisher_options=pubsub_v1.types.PublisherOptions(enable_message_ordering=True)
        )
        self.subscriber = pubsub_v1.SubscriberClient()
        self.topic = f"{PROJECT}/topics/topic-{next(_numbers)}"
        self.publisher.create_topic(name=self.topic)

    def subscribe(self, **fields: Any) -> str:
        name = f"{PROJECT}/subscriptions/sub-{next(_numbers)}"
        self.subscriber.create_subscription(request={"name": name, "topic": self.topic, **fields})
        return name

    def publish(self, *data: bytes, **arguments: Any) -> list[str]:
        pending = [self.publisher.publish(self.topic, one, **arguments) for one in data]
        return [one.result(WAIT_SECONDS) for one in pending]

    def publish_at_once(self, messages: list[dict[str, Any]]) -> None:
        """One Publish call, not batched by the client."""
        PublisherApi.publish(self.publisher, topic=self.topic, messages=messages, timeout=WAIT_SECONDS)

    def pull(self, name: str, limit: int = 1000) -> list[Any]:
        response = self.subscriber.pull(subscription=name, max_messages=limit, timeout=WAIT_SECONDS)
        return list(response.received_messages)

    def close(self) -> None:
        self.publisher.stop()
        self.publisher.transport.close()
        self.subscriber.close()


@contextmanager
def clients_of(server: PubsubProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    """Clients of the server, which are closed afterwards."""
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    clients = Clients()
    yield clients
    clients.close()


@pytest.fixture(scope="module", name="server")
def pubsub_of_a_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PubsubProcess]:
    with PubsubProcess(tmp_path_factory.mktemp("pubsub")) as server:
        yield server


@pytest.fixture(name="clients")
def clients_of_a_test(server: PubsubProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clients]:
    with clients_of(server, monkeypatch) as clients:
        yield clients
