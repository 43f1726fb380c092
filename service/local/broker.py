"""The Pub/Sub broker: topics, subscriptions, routing and leases, as pure logic with the clock passed in.

Every change is first given to `keep` as records and made only when that returns, so that what a
caller is told is never ahead of what is kept. Methods take and return raw `google.pubsub.v1`
messages and raise StatusError with the code that the real service answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from google.pubsub_v1 import types

from service.local import message_filter, pubsub_rules
from service.local.backlog import Backlog, Delivery, Message, Window
from service.local.grpc_server import StatusError
from service.local.pubsub_records import (
    DELETED_TOPIC,
    IdsReserved,
    Published,
    Record,
    State,
    SubscriptionDeleted,
    SubscriptionSet,
    TopicCreated,
    TopicDeleted,
    acknowledged,
)
from service.local.routing import route, stamp

PubsubMessage: Any = types.PubsubMessage.pb()
PublishResponse: Any = types.PublishResponse.pb()

MESSAGE_OVERHEAD_BYTES = 300  # what Python keeps beside the blob: measured 215 waiting, 355 leased
DEFAULT_BACKLOG_BYTES = 1 << 30
_IDS_RESERVED_AT_ONCE = 1_000_000


class Subscription:
    """A subscription: its settings `pb`, its `backlog` and its compiled filter."""

    def __init__(self, pb: Any, prefix: str) -> None:
        self.pb = pb
        self.backlog = Backlog(prefix, ordered=pb.enable_message_ordering)
        self.matches = message_filter.parse(pb.filter) if pb.filter else None


class Broker:
    """All topics and subscriptions of one server.

    `clock` gives seconds since the epoch. `run` makes the ack ids of this run unlike those of any
    other. `backlog_bytes` bounds what is stored for all subscriptions together.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        keep: Callable[[Sequence[Record]], None] = lambda _: None,
        state: State | None = None,
        run: str = "",
        backlog_bytes: int = DEFAULT_BACKLOG_BYTES,
    ) -> None:
        self.topics: dict[str, Any] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.stored_bytes = 0
        self._clock = clock
        self._keep = keep
        self._run = run
        self._backlog_bytes = backlog_bytes
        self._subscriptions_made = 0
        self._next_id = self._ids_below = 1
        if state is not None:
            self._restore(state)

    def _restore(self, state: State) -> None:
        self._next_id = self._ids_below = state.ids_below
        self.topics.update(state.topics)
        messages: dict[int, Message] = {}
        for name, pb in state.subscriptions.items():
            subscription = self._add_subscription(pb)
            for number, blob in state.unacknowledged[name].items():
                if number not in messages:
                    stamped = PubsubMessage.FromString(blob)
                    published_at = stamped.publish_time.seconds + stamped.publish_time.nanos / 1e9
                    messages[number] = Message(number, blob, stamped.ordering_key, published_at)
            self._deliver(subscription, [messages[n] for n in sorted(state.unacknowledged[name])])

    def state(self) -> State:
        """All that a restart must know: everything but leases and attempts."""
        state = State(dict(self.topics), ids_below=self._ids_below)
        for name, subscription in self.subscriptions.items():
            backlog = subscription.backlog
            state.subscriptions[name] = subscription.pb
            held = state.unacknowledged[name] = {m.id: m.blob for m in backlog.outstanding()}
            held.update((m.id, m.blob) for m in backlog.waiting())
        return state

    # Topics

    def create_topic(self, request: Any) -> Any:
        pubsub_rules.check_name(request.name, "topics")
        if request.name in self.topics:
            raise pubsub_rules.already_exists(request.name)
        topic = pubsub_rules.new_topic(request)
        self._keep([TopicCreated(topic.SerializeToString())])
        self.topics[topic.name] = topic
        return topic

    def topic(self, name: str) -> Any:
        pubsub_rules.check_name(name, "topics")
        if name not in self.topics:
            raise pubsub_rules.not_found(name)
        return self.topics[name]

    def delete_topic(self, name: str) -> None:
        """Deletes a topic; its subscriptions keep what they hold and belong to `_deleted-topic_`."""
        self.topic(name)
        self._keep([TopicDeleted(name)])
        del self.topics[name]
        for subscription in self._subscribers(name):
            subscription.pb.topic = DELETED_TOPIC

    def _subscribers(self, topic: str) -> list[Subscription]:
        return [one for one in self.subscriptions.values() if one.pb.topic == topic]

    def list_topics(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        """One page of the topics of `projects/PROJECT`, and the token of the next page."""
        pubsub_rules.check_project(project)
        names = [name for name in self.topics if name.startswith(f"{project}/")]
        names, token = pubsub_rules.page(names, page_size, page_token)
        return [self.topics[name] for name in names], token

    def list_topic_subscriptions(self, topic: str, page_size: int, page_token: str) -> tuple[list[str], str]:
        """One page of the names of a topic's subscriptions, and the token of the next page."""
        self.topic(topic)
        names = [subscription.pb.name for subscription in self._subscribers(topic)]
        return pubsub_rules.page(names, page_size, page_token)

    # Publishing

    def publish(self, request: Any) -> tuple[Any, list[Subscription]]:
        """Stores the messages of a PublishRequest; returns the answer and the subscriptions that got some."""
        pubsub_rules.check_publish(request)
        self.topic(request.topic)
        subscribers = self._subscribers(request.topic)
        messages = stamp(request, self._next_id, self._clock())
        size = sum([len(message.blob) for message in messages])
        pubsub_rules.check_publish_size(request, size)
        growth = size + len(messages) * MESSAGE_OVERHEAD_BYTES
        if subscribers and self.stored_bytes + growth > self._backlog_bytes:
            raise StatusError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The backlog of the local Pub/Sub server is full ({self._backlog_bytes} bytes). "
                "Acknowledge messages, or delete subscriptions that nobody reads.",
            )
        routes = route(request, messages, {one.pb.name: one.matches for one in subscribers})
        records: list[Record] = []
        if self._next_id + len(messages) > self._ids_below:
            records.append(IdsReserved(self._next_id + len(messages) + _IDS_RESERVED_AT_ONCE))
        for names, routed in routes.items():
            records.append(Published(list(names), [m.id for m in routed], [m.blob for m in routed]))
        if records:
            self._keep(records)
        if records and isinstance(records[0], IdsReserved):
            self._ids_below = records[0].below
        self._next_id += len(messages)
        woken: dict[str, Subscription] = {}
        for names, routed in routes.items():
            for name in names:
                woken[name] = self.subscriptions[name]
                self._deliver(woken[name], routed)
        return PublishResponse(message_ids=[str(message.id) for message in messages]), list(woken.values())

    def _deliver(self, subscription: Subscription, messages: list[Message]) -> None:
        for message in messages:
            if not message.holders:
                self.stored_bytes += len(message.blob) + MESSAGE_OVERHEAD_BYTES
            message.holders += 1
        subscription.backlog.add(messages)

    def _forget(self, messages: Iterable[Message]) -> None:
        for message in messages:
            message.holders -= 1
            if not message.holders:
                self.stored_bytes -= len(message.blob) + MESSAGE_OVERHEAD_BYTES

    # Subscriptions

    def create_subscription(self, request: Any) -> Any:
        pubsub_rules.check_name(request.name, "subscriptions")
        pb = pubsub_rules.new_subscription(request)
        if pb.filter:
            message_filter.parse(pb.filter)
        self.topic(pb.topic)
        if pb.name in self.subscriptions:
            raise pubsub_rules.already_exists(pb.name)
        self._keep([SubscriptionSet(pb.SerializeToString())])
        return self._add_subscription(pb).pb

    def _add_subscription(self, pb: Any) -> Subscription:
        self._subscriptions_made += 1
        subscription = Subscription(pb, f"{self._run}-{self._subscriptions_made:x}-")
        self.subscriptions[pb.name] = subscription
        return subscription

    def subscription(self, name: str) -> Subscription:
        pubsub_rules.check_name(name, "subscriptions")
        if name not in self.subscriptions:
            raise pubsub_rules.not_found(name)
        return self.subscriptions[name]

    def update_subscription(self, request: Any) -> Any:
        """Changes the fields that the update mask names."""
        subscription = self.subscription(request.subscription.name)
        changed = pubsub_rules.updated_subscription(subscription.pb, request)
        self._keep([SubscriptionSet(changed.SerializeToString())])
        subscription.pb = changed
        return changed

    def delete_subscription(self, name: str) -> Subscription:
        subscription = self.subscription(name)
        self._keep([SubscriptionDeleted(name)])
        del self.subscriptions[name]
        self._forget(subscription.backlog.outstanding())
        self._forget(subscription.backlog.waiting())
        return subscription

    def list_subscriptions(self, project: str, page_size: int, page_token: str) -> tuple[list[Any], str]:
        """One page of the subscriptions of `projects/PROJECT`, and the token of the next page."""
        pubsub_rules.check_project(project)
        names = [name for name in self.subscriptions if name.startswith(f"{project}/")]
        names, token = pubsub_rules.page(names, page_size, page_token)
        return [self.subscriptions[name].pb for name in names], token

    # Leases

    def lease(
        self,
        subscription: Subscription,
        limit: int,
        max_bytes: int,
        seconds: int = 0,
        window: Window | None = None,
    ) -> list[Delivery]:
        """Leases what is ready for `seconds`, or for the subscription's own deadline where that is 0."""
        due = self._clock() + (seconds or subscription.pb.ack_deadline_seconds)
        return subscription.backlog.take(limit, max_bytes, due, window)

    def acknowledge(self, subscription: Subscription, ack_ids: Iterable[str]) -> bool:
        """Acknowledges; ids whose lease has ended are passed over. Tells whether any lease ended."""
        return self._drop(subscription, subscription.backlog.leased(ack_ids))

    def _drop(self, subscription: Subscription, deliveries: list[Delivery]) -> bool:
        if deliveries:
            ids = [delivery.message.id for delivery in deliveries]
            self._keep(acknowledged(subscription.pb.name, ids))
            subscription.backlog.acknowledge(deliveries)
            self._forget(delivery.message for delivery in deliveries)
        return bool(deliveries)

    def modify_deadline(self, subscription: Subscription, ack_ids: Iterable[str], seconds: int) -> bool:
        """Sets leases to end `seconds` from now; 0 ends them at once. Tells whether any lease ended."""
        pubsub_rules.check_range("ack_deadline_seconds", seconds, 0, pubsub_rules.MAX_ACK_DEADLINE_SECONDS)
        deliveries = subscription.backlog.leased(ack_ids)
        if seconds:
            subscription.backlog.extend(deliveries, self._clock() + seconds)
            return False
        subscription.backlog.give_back(deliveries)
        return bool(deliveries)

    def seek(self, subscription: Subscription, time: float) -> None:
        """Acknowledges all that was published before `time`; what is acknowledged does not come back."""
        backlog = subscription.backlog
        old = [m for m in (*backlog.outstanding(), *backlog.waiting()) if m.published_at < time]
        if old:
            self._keep(acknowledged(subscription.pb.name, [message.id for message in old]))
            backlog.drop_published_before(time)
            self._forget(old)

    def expire(self) -> list[Subscription]:
        """Gives back every message whose lease has ended; returns the subscriptions that got some."""
        now = self._clock()
        return [one for one in self.subscriptions.values() if one.backlog.expire(now)]

    def next_due(self) -> float | None:
        """When the next lease of any subscription expires, or None."""
        dues = [one.backlog.next_due() for one in self.subscriptions.values()]
        return min((due for due in dues if due is not None), default=None)
