"""What the Pub/Sub broker takes and refuses: limits of messages, names, settings, updates and pages."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types

from tests.broker_world import (
    PROJECT,
    TOPIC,
    Setup,
    broker_setup,  # noqa: F401
    refusal,
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"data": b"x", "attributes": {"googly": "x"}},
        {"data": b"x", "attributes": {"k" * 257: "x"}},
        {"data": b"x", "attributes": {"é" * 129: "x"}},
        {"data": b"x", "attributes": {"k": "x" * 1025}},
        {"data": b"x", "attributes": {f"k{n}": "x" for n in range(101)}},
        {"data": b"x", "ordering_key": "x" * 1025},
        {"data": bytes(10_000_000)},
    ],
)
def test_a_message_beyond_the_limits_is_refused_with_its_whole_request(
    setup: Setup, fields: dict[str, Any]
) -> None:
    subscription = setup.subscribe()
    messages = [types.PubsubMessage.pb()(data=b"good"), types.PubsubMessage.pb()(**fields)]
    request = types.PublishRequest.pb()(topic=TOPIC, messages=messages)
    assert refusal(setup.broker.publish, request) is grpc.StatusCode.INVALID_ARGUMENT
    assert not setup.pull(subscription)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": b"goog", "attributes": {"k": "goog"}},
        {"attributes": {"k": ""}},
        {"data": b"x", "attributes": {"k" * 256: "x" * 1024}},
        {"data": b"x", "attributes": {f"k{n}": "x" for n in range(100)}},
        {"data": b"x", "ordering_key": "x" * 1024},
        {"data": bytes(9_999_900)},
    ],
)
def test_a_message_at_the_limits_is_taken(setup: Setup, fields: dict[str, Any]) -> None:
    subscription = setup.subscribe()
    message = types.PubsubMessage.pb()(**fields)
    setup.broker.publish(types.PublishRequest.pb()(topic=TOPIC, messages=[message]))
    (pulled,) = setup.pull(subscription)
    for name, value in fields.items():
        assert getattr(pulled.message, name) == value


def test_a_request_has_between_1_and_1000_messages(setup: Setup) -> None:
    assert len(setup.publish(*[b"x"] * 1000)) == 1000
    assert refusal(setup.publish, *[b"x"] * 1001) is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(setup.publish) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "short", ["ab", "1abc", "goog-x", "a/b", "a b", "", "x" * 256, "topic\n", "_deleted-topic_"]
)
def test_a_name_that_breaks_the_rules_is_refused(setup: Setup, short: str) -> None:
    name = f"{PROJECT}/topics/{short}"
    assert refusal(setup.broker.create_topic, types.Topic.pb()(name=name)) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("short", ["abc", "x" * 255, "a-b_c.d~e+f%25"])
def test_a_name_within_the_rules_is_taken(setup: Setup, short: str) -> None:
    name = f"{PROJECT}/topics/{short}"
    assert setup.broker.create_topic(types.Topic.pb()(name=name)).name == name


@pytest.mark.parametrize("seconds", [9, 601, -1])
def test_an_ack_deadline_outside_10_to_600_is_refused_at_creation(setup: Setup, seconds: int) -> None:
    assert refusal(setup.subscribe, ack_deadline_seconds=seconds) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("seconds", [-1, 601])
def test_an_ack_deadline_outside_0_to_600_is_refused_later(setup: Setup, seconds: int) -> None:
    subscription = setup.subscribe()
    assert (
        refusal(setup.broker.modify_deadline, subscription, [], seconds) is grpc.StatusCode.INVALID_ARGUMENT
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"push_config": {"push_endpoint": "https://example.com"}},
        {"dead_letter_policy": {"max_delivery_attempts": 5}},
        {"retain_acked_messages": True},
        {"enable_exactly_once_delivery": True},
    ],
)
def test_a_setting_that_is_not_offered_is_refused_as_unimplemented(
    setup: Setup, fields: dict[str, Any]
) -> None:
    assert refusal(setup.subscribe, **fields) is grpc.StatusCode.UNIMPLEMENTED


def test_an_update_changes_only_the_masked_fields(setup: Setup) -> None:
    subscription = setup.subscribe(labels={"a": "b"})

    def update(*paths: str, **fields: Any) -> Any:
        pb = types.Subscription.pb()(name=subscription.pb.name, **fields)
        request = types.UpdateSubscriptionRequest.pb()(subscription=pb, update_mask={"paths": paths})
        return setup.broker.update_subscription(request)

    changed = update("ack_deadline_seconds", ack_deadline_seconds=60, labels={"c": "d"})
    assert (changed.ack_deadline_seconds, dict(changed.labels)) == (60, {"a": "b"})
    changed = update("labels", labels={"c": "d"})
    assert (changed.ack_deadline_seconds, dict(changed.labels)) == (60, {"c": "d"})
    for paths in ((), ("filter",), ("topic",), ("nonsense",)):
        assert refusal(update, *paths) is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(update, "ack_deadline_seconds", ack_deadline_seconds=5) is grpc.StatusCode.INVALID_ARGUMENT


def test_listings_come_in_pages(setup: Setup) -> None:
    for number in range(5):
        setup.subscribe(f"sub-{number}")
    setup.broker.create_topic(types.Topic.pb()(name="projects/another-project/topics/other"))
    names, token = [], ""
    for size in (2, 2, 1):
        page, token = setup.broker.list_subscriptions(PROJECT, 2, token)
        assert len(page) == size
        names += [pb.name.rpartition("/")[2] for pb in page]
    assert (names, token) == ([f"sub-{number}" for number in range(5)], "")
    assert [topic.name for topic in setup.broker.list_topics(PROJECT, 0, "")[0]] == [TOPIC]
    assert len(setup.broker.list_topic_subscriptions(TOPIC, 3, "")[0]) == 3
    assert refusal(setup.broker.list_topics, "nonsense", 0, "") is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(setup.broker.list_topics, PROJECT, -1, "") is grpc.StatusCode.INVALID_ARGUMENT
