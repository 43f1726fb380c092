"""The law of the Pub/Sub broker's states: random calls against a plain model."""

from __future__ import annotations

from typing import Any

from google.pubsub_v1 import types
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.local.broker import Broker
from service.local.pubsub_records import State
from tests.broker_world import PROJECT, TOPIC, Setup

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
