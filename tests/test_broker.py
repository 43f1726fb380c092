"""The Pub/Sub broker as pure logic: leases, ordering, filters, limits, and the law of its states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.pubsub_v1 import types
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.local import message_filter, wire
from service.local.backlog import Delivery, Window
from service.local.broker import Broker
from service.local.grpc_server import StatusError
from service.local.pubsub_records import Record, State

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


@pytest.fixture
def setup() -> Setup:
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


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("attributes:kind", "web mobile other"),
        ('attributes.kind = "web"', "web"),
        ('attributes.kind="web"', "web"),
        ('attributes.kind != "web"', "mobile other none"),
        ('hasPrefix(attributes.kind, "m")', "mobile"),
        ("NOT attributes:kind", "none"),
        ("-attributes:kind", "none"),
        ('attributes.kind = "web" OR attributes.kind = "mobile"', "web mobile"),
        ('attributes:kind AND NOT attributes.kind = "web"', "mobile other"),
        ('attributes:"kind" AND (attributes.kind = "web" OR hasPrefix(attributes."kind", "o"))', "web other"),
    ],
)
def test_a_filter_selects_by_attributes(text: str, matching: str) -> None:
    messages = {"web": {"kind": "web"}, "mobile": {"kind": "mobile"}, "other": {"kind": "other"}, "none": {}}
    matches = message_filter.parse(text)
    assert [name for name, attributes in messages.items() if matches(attributes)] == matching.split()


@pytest.mark.parametrize(
    "text",
    [
        "kind",
        "attributes",
        "attributes.kind",
        "attributes.kind = web",
        'attributes.kind > "a"',
        "attributes:kind AND attributes:a OR attributes:b",
        "(attributes:kind",
        "attributes:kind attributes:other",
        "NOT",
        "attributes:=",
        'hasPrefix(attributes.kind "m")',
        'attributes.kind = "unclosed',
        f'attributes.kind = "{"x" * 256}"',
    ],
)
def test_a_filter_that_does_not_parse_is_refused(setup: Setup, text: str) -> None:
    assert refusal(setup.subscribe, filter=text) is grpc.StatusCode.INVALID_ARGUMENT


def test_filtered_messages_go_only_where_they_match(setup: Setup) -> None:
    web = setup.subscribe("web", filter='attributes.kind = "web"')
    everything = setup.subscribe("everything")
    setup.publish(b"w", attributes={"kind": "web"})
    setup.publish(b"m", attributes={"kind": "mobile"})
    setup.publish(b"n")
    assert data(setup.pull(web)) == [b"w"]
    assert data(setup.pull(everything)) == [b"w", b"m", b"n"]


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


NAMES = st.sampled_from(["sub-0", "sub-0", "sub-1"])


class BrokerMachine(RuleBasedStateMachine):
    """Random calls against a plain model: which messages each subscription was sent and acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self.setup = Setup()
        self.replayed = State()
        self.applied = 0
        self.sent: dict[str, set[int]] = {}
        self.acked: dict[str, set[int]] = {}
        self.leases: dict[str, dict[str, int]] = {}
        self.keys: dict[int, str] = {}
        self.last_id = 0
        self.subscribe(ordered=True, filtered=False)
        self.subscribe(ordered=False, filtered=True)

    def subscribe(self, *, ordered: bool, filtered: bool) -> None:
        name = f"sub-{len(self.sent)}"
        text = 'attributes.kind = "web"' if filtered else ""
        self.setup.subscribe(name, enable_message_ordering=ordered, filter=text)
        self.sent[name], self.acked[name], self.leases[name] = set(), set(), {}

    @precondition(lambda self: len(self.sent) < 4)
    @rule(ordered=st.booleans(), filtered=st.booleans())
    def subscribe_another(self, ordered: bool, filtered: bool) -> None:
        self.subscribe(ordered=ordered, filtered=filtered)

    @rule(keys=st.lists(st.sampled_from(["", "a", "a", "b"]), min_size=1, max_size=6), web=st.booleans())
    def publish(self, keys: list[str], web: bool) -> None:
        messages = [
            types.PubsubMessage.pb()(data=b"x", ordering_key=key, attributes={"kind": "web"} if web else {})
            for key in keys
        ]
        request = types.PublishRequest.pb()(topic=TOPIC, messages=messages)
        ids = [int(number) for number in self.setup.broker.publish(request)[0].message_ids]
        assert ids == sorted(set(ids))
        assert ids[0] > self.last_id
        self.last_id = ids[-1]
        self.keys.update(zip(ids, keys, strict=True))
        for name, sent in self.sent.items():
            if web or not self.subscription(name).pb.filter:
                sent.update(ids)

    def subscription(self, name: str) -> Any:
        return self.setup.broker.subscription(f"{PROJECT}/subscriptions/{name}")

    @rule(name=NAMES, limit=st.integers(1, 8))
    def pull(self, name: str, limit: int) -> None:
        leased_before = set(self.live(name).values())
        messages = self.setup.pull(self.subscription(name), limit)
        groups: dict[str, list[int]] = {}
        for message in messages:
            number = int(message.message.message_id)
            assert number not in self.acked[name] | leased_before
            self.leases[name][message.ack_id] = number
            if message.message.ordering_key and self.subscription(name).pb.enable_message_ordering:
                groups.setdefault(message.message.ordering_key, []).append(number)
        for key, group in groups.items():
            unacknowledged = sorted(n for n in self.sent[name] - self.acked[name] if self.keys[n] == key)
            assert group == unacknowledged[: len(group)], "the oldest of the key, in order"
            assert leased_before.isdisjoint(unacknowledged), "one group of a key is out at a time"

    @rule(name=NAMES, choice=st.data())
    def acknowledge(self, name: str, choice: st.DataObject) -> None:
        ids = self.some_leases(name, choice)
        live = self.live(name)
        self.setup.broker.acknowledge(self.subscription(name), ids)
        self.acked[name].update(live[ack_id] for ack_id in ids if ack_id in live)

    @rule(name=NAMES, choice=st.data(), seconds=st.sampled_from([0, 1, 5, 60]))
    def modify(self, name: str, choice: st.DataObject, seconds: int) -> None:
        self.setup.broker.modify_deadline(self.subscription(name), self.some_leases(name, choice), seconds)

    def some_leases(self, name: str, choice: st.DataObject) -> list[str]:
        known = sorted(self.leases[name])
        return choice.draw(st.lists(st.sampled_from(known), max_size=4)) if known else []

    def live(self, name: str) -> dict[str, int]:
        leased = self.subscription(name).backlog.leased(self.leases[name])
        return {delivery.ack_id: delivery.message.id for delivery in leased}

    @rule(seconds=st.sampled_from([0.04, 1, 9.97, 61]))
    def pass_time(self, seconds: float) -> None:
        self.setup.clock.now += seconds
        self.setup.broker.expire()

    @rule(name=NAMES, ago=st.sampled_from([0, 1, 15]))
    def seek(self, name: str, ago: float) -> None:
        subscription = self.subscription(name)
        time = self.setup.clock.now - ago
        held = [*subscription.backlog.outstanding(), *subscription.backlog.waiting()]
        self.acked[name].update(message.id for message in held if message.published_at < time)
        self.setup.broker.seek(subscription, time)

    @precondition(lambda self: self.last_id > 10)
    @rule()
    def restart(self) -> None:
        """Everything that was leased waits again; ids go on rising."""
        before = self.setup.broker.state()
        self.setup.broker = Broker(
            self.setup.clock, keep=self.setup.records.extend, state=self.rebuilt(), run="run2"
        )
        after = self.setup.broker.state()
        assert after == before
        assert not any(list(self.subscription(name).backlog.outstanding()) for name in self.sent)
        for name in self.sent:
            self.leases[name] = {}

    def rebuilt(self) -> State:
        state = State()
        for record in self.setup.broker.state().records():
            state.apply(record)
        return state

    @invariant()
    def each_message_is_waiting_or_leased_or_acknowledged_and_only_one_of_them(self) -> None:
        stored: dict[int, int] = {}
        for name, sent in self.sent.items():
            backlog = self.subscription(name).backlog
            waiting = [message.id for message in backlog.waiting()]
            leased = [message.id for message in backlog.outstanding()]
            everything = [*waiting, *leased, *self.acked[name]]
            assert len(everything) == len(set(everything))
            assert backlog.count() == len(waiting) + len(leased)
            assert set(everything) == sent
            assert backlog.has_ready or not waiting or backlog.next_due() is not None, (
                "nothing waits for ever"
            )
            for message in (*backlog.waiting(), *backlog.outstanding()):
                stored[message.id] = len(message.blob) + 300
        assert self.setup.broker.stored_bytes == sum(stored.values())

    @invariant()
    def the_kept_records_add_up_to_the_live_broker_without_leases(self) -> None:
        for record in self.setup.records[self.applied :]:
            self.replayed.apply(record)
        self.applied = len(self.setup.records)
        assert self.replayed == self.setup.broker.state() == self.rebuilt()


BrokerMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestBrokerLaw = BrokerMachine.TestCase
