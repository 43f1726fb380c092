"""The engine and its subscription: copies dropped, leases held, faults of Pub/Sub outlasted or told."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.local_engine.deduplication import WINDOW_SECONDS, CommittedIds
from pipeline.local_engine.leases import Leases
from pipeline.local_engine.subscriber import MAX_ACK_IDS, Subscriber, SubscriptionError, _parts
from service.local.faults import Fault, call_counts, set_faults, wait_held
from tests.engine_place import (
    TABLE,
    place_of_a_test,  # noqa: F401 - a fixture
    pubsub_of_a_module,  # noqa: F401 - a fixture
    texts,
    until,
)


def test_a_message_published_twice_counts_once(place):
    place.publish("one", "two", event_id="same")
    place.publish("three", event_id="other")
    place.start(id_label="event_id")
    until(lambda: len(TABLE.rows) == 2)
    place.publish("four", event_id="same")
    place.publish("five")
    until(lambda: "five" in TABLE.rows)
    place.drain()
    assert TABLE.rows == ["one", "three", "five"]
    assert place.waiting() == []
    assert place.counter("duplicates_dropped") == 2


def test_a_copy_of_a_message_whose_batch_failed_is_not_dropped(place):
    TABLE.failures = 1
    place.publish("one", event_id="same")
    place.start(id_label="event_id")
    until(lambda: TABLE.rows)
    assert TABLE.rows == ["one"]


def test_a_copy_that_waits_for_another_batch_is_written_when_that_fails_and_nothing_else_is_held_back(place):
    place.start(id_label="event_id")
    TABLE.open.clear()
    TABLE.failures = 1
    place.publish("first", event_id="one")
    assert TABLE.entered.wait(10)
    place.publish("copy", event_id="one")
    place.publish("other", event_id="two")
    TABLE.open.set()
    until(lambda: len(TABLE.rows) == 2)
    place.drain()
    assert len(TABLE.rows) == 2
    assert "other" in TABLE.rows
    left = place.waiting()  # the other one of the two, where the drain came before it was tried again
    assert place.counter("duplicates_dropped") + len(left) == 1
    assert not set(left) & set(TABLE.rows)


def test_ids_are_forgotten_after_the_time_that_dataflow_remembers_them():
    now = [0.0]
    ids = CommittedIds("event_id", clock=lambda: now[0])
    message = type("Message", (), {"attributes": {"event_id": "a"}})()
    fresh, new = ids.claim([message, message])
    assert fresh == [message]
    ids.settle(new, committed=True)
    assert ids.claim([message]) == ([], [])
    now[0] = WINDOW_SECONDS + 1
    assert ids.claim([message]) == ([message], ["a"])


@pytest.mark.parametrize(("committed", "copies"), [(True, 0), (False, 1)])
def test_a_copy_in_another_batch_waits_for_the_end_of_the_first(committed, copies):
    ids = CommittedIds("event_id")
    message, other = (type("Message", (), {"attributes": {"event_id": name}})() for name in "ab")
    ids.claim([message])
    assert ids.claim([other])[0] == [other]
    claimed = []
    second = threading.Thread(target=lambda: claimed.append(ids.claim([message])[0]), daemon=True)
    second.start()
    second.join(0.05)
    assert second.is_alive()
    ids.settle(["a"], committed=committed)
    second.join(10)
    assert claimed == [[message] * copies]


def test_pubsub_may_be_away_for_a_while(place):
    set_faults(place.address, [Fault(method="Pull", code="UNAVAILABLE", times=3)])
    place.publish("late")
    place.start()
    until(lambda: TABLE.rows)
    assert any("UNAVAILABLE" in event["message"] for event in place.events("error"))


def test_an_acknowledgement_that_fails_is_tried_again(place):
    set_faults(place.address, [Fault(method="Acknowledge", code="UNAVAILABLE", times=2)])
    place.publish("one")
    place.start()
    until(lambda: TABLE.rows)
    place.drain()
    assert place.counter("messages_acknowledged") == 1
    assert place.waiting() == []


def test_a_lost_answer_to_an_acknowledgement_does_no_harm(place):
    set_faults(place.address, [Fault(method="Acknowledge", code="UNAVAILABLE", times=1, after=True)])
    place.publish("one")
    place.start()
    until(lambda: TABLE.rows)
    place.drain()
    assert TABLE.rows == ["one"]
    assert place.waiting() == []


@pytest.mark.parametrize("code", ["PERMISSION_DENIED", "NOT_FOUND"])
def test_a_refusal_of_pubsub_ends_the_engine(place, code):
    place.start()
    place.publish("one")
    until(lambda: TABLE.rows)
    set_faults(place.address, [Fault(method="Pull", code=code)])
    place.publish("two")
    until(lambda: not place.thread.is_alive())
    assert isinstance(place.failure, SubscriptionError)
    assert code in str(place.failure)


def test_a_subscription_that_does_not_exist_is_told_before_anything_runs(place):
    with pytest.raises(SubscriptionError, match="NOT_FOUND"):
        Subscriber(place.channel, f"{place.subscription}-not").ack_deadline_seconds()


def test_leases_are_extended_until_they_are_given_back(place):
    place.publish("one")
    subscriber = Subscriber(place.channel, place.subscription)
    begun = time.monotonic()
    (received,) = subscriber.begin_pull(10, 5).result().received_messages
    before = call_counts(place.address).get("ModifyAckDeadline", 0)
    leases = Leases(subscriber, deadline_seconds=3)
    leases.start()
    leases.hold([received.ack_id], begun)
    until(lambda: call_counts(place.address).get("ModifyAckDeadline", 0) >= before + 4)
    assert place.waiting() == []
    leases.close()
    assert place.waiting() == ["one"]


def test_an_extension_that_is_late_does_not_bring_back_a_message_that_was_put_away_meanwhile(place):
    place.publish("one")
    subscriber = Subscriber(place.channel, place.subscription)
    begun = time.monotonic()
    (received,) = subscriber.begin_pull(10, 5).result().received_messages
    set_faults(place.address, [Fault(method="ModifyAckDeadline", hold=True, times=1)])
    leases = Leases(subscriber, deadline_seconds=1)
    leases.hold([received.ack_id], begun)
    leases.start()
    wait_held(place.address, "ModifyAckDeadline")
    parking = threading.Thread(target=leases.park, args=(received.ack_id, 60))
    parking.start()
    parking.join(0.5)  # which it does only where it does not wait for the extension
    set_faults(place.address, [])
    parking.join(5)
    assert not parking.is_alive()
    assert not subscriber.begin_pull(10, 2.0).result().received_messages
    leases.close()
    assert place.waiting() == ["one"]


def test_a_call_that_fails_keeps_no_other_leases(place):
    for number in range(3):
        place.publish(*[f"{number}-{text}" for text in texts(900)])
    subscriber = Subscriber(place.channel, place.subscription)
    leases = Leases(subscriber, deadline_seconds=10)
    held = 0
    while held < 2700:
        found = subscriber.begin_pull(1000, 5).result().received_messages
        leases.hold([received.ack_id for received in found], time.monotonic())
        held += len(found)
    set_faults(place.address, [Fault(method="ModifyAckDeadline", code="UNAVAILABLE", times=1)])
    leases.close()
    assert len(place.waiting()) == 2700 - MAX_ACK_IDS


def test_a_call_carries_no_more_ack_ids_than_pubsub_takes():
    parts = list(_parts(["x" * 180] * 6_000))
    assert sum(map(len, parts)) == 6_000
    assert max(map(len, parts)) <= MAX_ACK_IDS
    assert max(sum(map(len, part)) for part in parts) < 512 * 1024
