"""What the calls of the local Pub/Sub server answer and refuse, seen through Google's own clients."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from google.api_core import exceptions

from tests.pubsub_clients import (
    PROJECT,
    WAIT_SECONDS,
    Clients,
    clients_of_a_test,  # noqa: F401 - a fixture
    pubsub_of_a_module,  # noqa: F401 - a fixture
)


def test_what_does_not_exist_is_not_found(clients: Clients) -> None:
    topic, name = f"{PROJECT}/topics/nothing", f"{PROJECT}/subscriptions/nothing"
    calls = [
        lambda: clients.publisher.get_topic(topic=topic),
        lambda: clients.publisher.delete_topic(topic=topic),
        lambda: clients.publisher.publish(topic, b"x").result(WAIT_SECONDS),
        lambda: clients.subscriber.create_subscription(name=name, topic=topic),
        lambda: clients.subscriber.get_subscription(subscription=name),
        lambda: clients.pull(name),
        lambda: clients.subscriber.acknowledge(subscription=name, ack_ids=["x"]),
        lambda: clients.subscriber.delete_subscription(subscription=name),
        lambda: clients.subscriber.subscribe(name, print).result(WAIT_SECONDS),
    ]
    for call in calls:
        with pytest.raises(exceptions.NotFound, match="Resource not found"):
            call()


def test_what_exists_already_is_refused(clients: Clients) -> None:
    name = clients.subscribe()
    with pytest.raises(exceptions.AlreadyExists):
        clients.publisher.create_topic(name=clients.topic)
    with pytest.raises(exceptions.AlreadyExists):
        clients.subscriber.create_subscription(name=name, topic=clients.topic)


def test_a_wrong_request_is_an_invalid_argument(clients: Clients) -> None:
    name = clients.subscribe()
    calls = [
        lambda: clients.publisher.create_topic(name="topic-without-project"),
        lambda: clients.publish_at_once([{"data": b"x"}] * 1001),
        lambda: clients.publish_at_once([{"data": b""}]),
        lambda: clients.subscriber.pull(subscription=name, max_messages=0),
        lambda: clients.subscriber.acknowledge(subscription=name, ack_ids=[]),
        lambda: clients.subscriber.modify_ack_deadline(
            subscription=name, ack_ids=["x"], ack_deadline_seconds=601
        ),
        lambda: list(clients.publisher.list_topics(project="nonsense")),
    ]
    for call in calls:
        with pytest.raises(exceptions.InvalidArgument):
            call()


def stream_of(clients: Clients, *requests: dict[str, Any]) -> list[Any]:
    """The responses of a raw StreamingPull that sends `requests` and then closes its side."""
    return list(clients.subscriber.streaming_pull(requests=iter(requests), timeout=WAIT_SECONDS))


def test_a_wrong_stream_is_an_invalid_argument(clients: Clients) -> None:
    name = clients.subscribe()
    good = {"subscription": name, "stream_ack_deadline_seconds": 10}
    wrong: list[list[dict[str, Any]]] = [
        [{"stream_ack_deadline_seconds": 10}],
        [{"subscription": name}],
        [{"subscription": name, "stream_ack_deadline_seconds": 601}],
        [good, good],
        [good, {"max_outstanding_messages": 5}],
        [good, {"stream_ack_deadline_seconds": 9}],
        [good, {"modify_deadline_ack_ids": ["x"]}],
        [],
    ]
    for requests in wrong:
        with pytest.raises(exceptions.InvalidArgument):
            stream_of(clients, *requests)
    assert stream_of(clients, good) == []


def test_a_stream_can_acknowledge_and_extend_by_itself(clients: Clients) -> None:
    name = clients.subscribe()
    clients.publish(b"a", b"b")
    first, second = clients.pull(name)
    good = {"subscription": name, "stream_ack_deadline_seconds": 10}
    (response,) = stream_of(
        clients,
        good
        | {
            "ack_ids": [first.ack_id],
            "modify_deadline_ack_ids": [second.ack_id],
            "modify_deadline_seconds": [0],
        },
    )
    assert [one.message.data for one in response.received_messages] == [b"b"]


def test_deleting_a_subscription_ends_its_streams_with_not_found(clients: Clients) -> None:
    name = clients.subscribe()
    seen = threading.Event()
    stream = clients.subscriber.subscribe(name, lambda message: (message.ack(), seen.set()))
    clients.publish(b"x")
    assert seen.wait(WAIT_SECONDS)
    clients.subscriber.delete_subscription(subscription=name)
    with pytest.raises(exceptions.NotFound):
        stream.result(WAIT_SECONDS)


def test_topics_and_subscriptions_are_listed_updated_and_deleted(clients: Clients) -> None:
    names = sorted(clients.subscribe() for _ in range(3))
    assert clients.publisher.get_topic(topic=clients.topic).name == clients.topic
    assert clients.topic in [topic.name for topic in clients.publisher.list_topics(project=PROJECT)]
    pages = clients.subscriber.list_subscriptions(request={"project": PROJECT, "page_size": 2})
    listed = [subscription.name for subscription in pages]
    assert set(names) <= set(listed)
    assert len(listed) == len(set(listed))
    assert list(clients.publisher.list_topic_subscriptions(topic=clients.topic)) == names
    changed = clients.subscriber.update_subscription(
        subscription={"name": names[0], "ack_deadline_seconds": 77},
        update_mask={"paths": ["ack_deadline_seconds"]},
    )
    assert changed.ack_deadline_seconds == 77
    assert clients.subscriber.get_subscription(subscription=names[0]).ack_deadline_seconds == 77
    clients.publisher.delete_topic(topic=clients.topic)
    assert clients.subscriber.get_subscription(subscription=names[0]).topic == "_deleted-topic_"


def test_what_is_not_offered_is_unimplemented(clients: Clients) -> None:
    name = clients.subscribe()
    with pytest.raises(exceptions.MethodNotImplemented):
        clients.publisher.detach_subscription(request={"subscription": name})
    with pytest.raises(exceptions.MethodNotImplemented):
        clients.subscriber.create_snapshot(name=f"{PROJECT}/snapshots/one", subscription=name)
    with pytest.raises(exceptions.MethodNotImplemented):
        clients.subscribe(push_config={"push_endpoint": "https://example.com"})
