"""The Pub/Sub broker as pure logic: leases, ordering, seeks, and the bound of its backlog."""

from __future__ import annotations

import grpc
from google.pubsub_v1 import types

from service.local.backlog import Window
from service.local.grpc_server import StatusError
from tests.broker_world import (
    TOPIC,
    Setup,
    ack_ids,
    broker_setup,  # noqa: F401
    data,
    received,
    refusal,
)


def test_a_message_reaches_each_subscription_of_its_topic_with_id_and_publish_time(setup: Setup) -> None:
    subscriptions = [setup.subscribe("first"), setup.subscribe("second")]
    setup.clock.now = 1_700_000_000.25
    (number,) = setup.publish(b"hello", attributes={"kind": "web"}, message_id="mine", ordering_key="k")
    for subscription in subscriptions:
        (message,) = setup.pull(subscription)
        assert message.message.data == b"hello"
        assert dict(message.message.attributes) == {"kind": "web"}
        assert message.message.message_id == number
        assert message.message.ordering_key == "k"
        assert (message.message.publish_time.seconds, message.message.publish_time.nanos) == (
            1_700_000_000,
            250_000_000,
        )
        assert message.delivery_attempt == 1


def test_a_subscription_gets_only_what_is_published_after_it_was_made(setup: Setup) -> None:
    setup.publish(b"before")
    subscription = setup.subscribe()
    setup.publish(b"after")
    assert data(setup.pull(subscription)) == [b"after"]


def test_an_acknowledged_message_never_comes_back(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"a", b"b")
    first = setup.pull(subscription, 1)
    assert setup.broker.acknowledge(subscription, ack_ids(first) * 2)
    setup.clock.now += 1000
    setup.broker.expire()
    assert data(setup.pull(subscription)) == [b"b"]


def test_a_lease_that_expires_brings_the_message_back_with_the_next_attempt(setup: Setup) -> None:
    subscription = setup.subscribe(ack_deadline_seconds=20)
    setup.publish(b"a")
    (first,) = setup.pull(subscription)
    assert setup.broker.next_due() == setup.clock.now + 20
    setup.clock.now += 19.9
    assert not setup.broker.expire()
    assert not setup.pull(subscription)
    setup.clock.now += 0.1
    assert setup.broker.expire() == [subscription]
    (second,) = setup.pull(subscription)
    assert second.delivery_attempt == 2
    assert second.ack_id != first.ack_id
    assert not setup.broker.acknowledge(subscription, [first.ack_id, "made up", ""])
    assert setup.broker.acknowledge(subscription, [second.ack_id])
    assert setup.broker.next_due() is None


def test_an_extended_lease_lasts_until_its_new_deadline(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"a", b"b")
    first, _ = setup.pull(subscription)
    setup.clock.now += 9
    setup.broker.modify_deadline(subscription, [first.ack_id], 30)
    setup.clock.now += 29
    setup.broker.expire()
    assert data(setup.pull(subscription)) == [b"b"]
    setup.clock.now += 1
    setup.broker.expire()
    assert data(setup.pull(subscription)) == [b"a"]


def test_a_deadline_of_zero_gives_the_message_back_at_once(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"a")
    (message,) = setup.pull(subscription)
    assert setup.broker.modify_deadline(subscription, [message.ack_id], 0)
    assert data(setup.pull(subscription)) == [b"a"]


def test_the_window_of_a_stream_counts_what_it_holds(setup: Setup) -> None:
    subscription = setup.subscribe()
    window = Window(3, 1000)
    setup.publish(*[bytes(400)] * 4)
    taken = received(setup.broker.lease(subscription, 3, window.room()[1], window=window))
    assert len(taken) == 2
    assert window.room()[0] == 1
    assert 0 < window.room()[1] < 200
    setup.broker.acknowledge(subscription, [taken[0].ack_id])
    setup.broker.modify_deadline(subscription, [taken[1].ack_id], 0)
    assert window.room() == (3, 1000)


def test_a_message_larger_than_the_room_is_still_delivered_alone(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(bytes(500), bytes(500))
    assert len(setup.broker.lease(subscription, 10, 100)) == 1


def test_messages_of_one_key_go_out_in_order_and_in_one_group(setup: Setup) -> None:
    subscription = setup.subscribe(enable_message_ordering=True)
    setup.publish(b"a1", b"a2", b"a3", ordering_key="a")
    setup.publish(b"b1", ordering_key="b")
    setup.publish(b"free")
    first = setup.pull(subscription, 2)
    assert data(first) == [b"a1", b"a2"]
    assert data(setup.pull(subscription)) == [b"b1", b"free"], "a3 waits for a1 and a2, others do not"
    setup.broker.acknowledge(subscription, [first[0].ack_id])
    assert not setup.pull(subscription)
    setup.broker.acknowledge(subscription, [first[1].ack_id])
    assert data(setup.pull(subscription)) == [b"a3"]


def test_a_redelivery_brings_the_later_messages_of_its_key_back_in_order(setup: Setup) -> None:
    subscription = setup.subscribe(enable_message_ordering=True)
    setup.publish(b"1", b"2", b"3", b"4", ordering_key="a")
    one, two, three = setup.pull(subscription, 3)
    setup.broker.modify_deadline(subscription, [two.ack_id], 0)
    assert not setup.broker.acknowledge(subscription, [three.ack_id]), "its lease ended with the one of 2"
    assert not setup.pull(subscription), "1 is still out"
    setup.broker.acknowledge(subscription, [one.ack_id])
    again = setup.pull(subscription)
    assert data(again) == [b"2", b"3", b"4"]
    assert [message.delivery_attempt for message in again] == [2, 2, 1]


def test_messages_of_one_key_that_expire_together_come_back_once_and_in_order(setup: Setup) -> None:
    subscription = setup.subscribe(enable_message_ordering=True)
    setup.publish(b"1", b"2", b"3", b"4", ordering_key="a")
    setup.pull(subscription, 3)
    setup.clock.now += 10
    assert setup.broker.expire() == [subscription]
    again = setup.pull(subscription, 2)
    assert data(again) == [b"1", b"2"]
    assert not setup.pull(subscription)
    setup.broker.acknowledge(subscription, ack_ids(again))
    assert data(setup.pull(subscription)) == [b"3", b"4"]
    assert not setup.pull(subscription)


def test_keys_mean_nothing_to_a_subscription_without_ordering(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"1", b"2", ordering_key="a")
    assert len(setup.pull(subscription, 1)) == 1
    assert len(setup.pull(subscription, 1)) == 1


def test_a_deleted_topic_leaves_its_subscriptions_with_what_they_hold(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"a")
    setup.broker.delete_topic(TOPIC)
    assert subscription.pb.topic == "_deleted-topic_"
    setup.broker.create_topic(types.Topic.pb()(name=TOPIC))
    setup.publish(b"b")
    assert data(setup.pull(subscription)) == [b"a"]


def test_a_seek_to_a_time_acknowledges_what_is_older(setup: Setup) -> None:
    subscription = setup.subscribe(enable_message_ordering=True)
    setup.publish(b"leased")
    setup.publish(b"k1", b"k2", ordering_key="k")
    setup.pull(subscription, 2)
    setup.publish(b"waiting")
    setup.clock.now += 10
    setup.publish(b"new")
    setup.publish(b"k3", ordering_key="k")
    setup.broker.seek(subscription, setup.clock.now)
    assert sorted(data(setup.pull(subscription))) == [b"k3", b"new"]
    setup.clock.now += 1000
    setup.broker.expire()
    assert sorted(data(setup.pull(subscription))) == [b"k3", b"new"]


def test_the_backlog_is_bounded_and_frees_itself() -> None:
    setup = Setup(backlog_bytes=10_000)
    setup.publish(*[bytes(1000)] * 100)
    assert setup.broker.stored_bytes == 0, "without a subscription nothing is stored"
    subscriptions = [setup.subscribe("first"), setup.subscribe("second")]
    setup.publish(*[bytes(1000)] * 7)
    assert refusal(setup.publish, bytes(1000)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    setup.broker.acknowledge(subscriptions[0], ack_ids(setup.pull(subscriptions[0])))
    assert refusal(setup.publish, bytes(1000)) is grpc.StatusCode.RESOURCE_EXHAUSTED, "the second holds them"
    setup.broker.delete_subscription(subscriptions[1].pb.name)
    assert setup.broker.stored_bytes == 0
    setup.publish(bytes(1000))


def test_nothing_changes_when_the_records_cannot_be_kept(setup: Setup) -> None:
    subscription = setup.subscribe()
    setup.publish(b"a")
    pulled = setup.pull(subscription)

    def full(_: object) -> None:
        raise StatusError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    setup.broker._keep = full
    before = setup.broker.state()
    for call in (
        lambda: setup.publish(b"b"),
        lambda: setup.broker.acknowledge(subscription, ack_ids(pulled)),
        lambda: setup.broker.delete_topic(TOPIC),
        lambda: setup.broker.delete_subscription(subscription.pb.name),
        lambda: setup.subscribe("second"),
        lambda: setup.broker.seek(subscription, setup.clock.now + 1),
    ):
        assert refusal(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert setup.broker.state() == before
