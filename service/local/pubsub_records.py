"""What the Pub/Sub broker must remember: the records of its journal and the state that they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import msgspec
from google.pubsub_v1 import types

Topic: Any = types.Topic.pb()
Subscription: Any = types.Subscription.pb()

DELETED_TOPIC = "_deleted-topic_"
_MESSAGES_PER_RECORD = 1000
_IDS_PER_RECORD = 100_000


class TopicCreated(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """`topic` is a serialized `google.pubsub.v1.Topic`."""

    topic: bytes


class TopicDeleted(msgspec.Struct, frozen=True, array_like=True, tag=2):
    name: str


class SubscriptionSet(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A subscription made or changed; `subscription` is a serialized `google.pubsub.v1.Subscription`."""

    subscription: bytes


class SubscriptionDeleted(msgspec.Struct, frozen=True, array_like=True, tag=4):
    name: str


class Published(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Messages with ids `ids`, stored once for all `subscriptions` that they were routed to.

    Each of `blobs` is a serialized `google.pubsub.v1.PubsubMessage` with its id and publish time.
    """

    subscriptions: list[str]
    ids: list[int]
    blobs: list[bytes]


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag=6, gc=False):
    subscription: str
    ids: list[int]


class IdsReserved(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """No message id at or above `below` was given out before this record."""

    below: int


Record = (
    TopicCreated
    | TopicDeleted
    | SubscriptionSet
    | SubscriptionDeleted
    | Published
    | Acknowledged
    | IdsReserved
)


@dataclass
class State:
    """The broker without its leases. `unacknowledged` maps subscription to message id to blob."""

    topics: dict[str, Any] = field(default_factory=dict)
    subscriptions: dict[str, Any] = field(default_factory=dict)
    unacknowledged: dict[str, dict[int, bytes]] = field(default_factory=dict)
    ids_below: int = 1

    def apply(self, record: Record) -> None:
        """Changes the state as the record says; records are applied in the order they were kept in."""
        match record:
            case Published():
                for name in record.subscriptions:
                    self.unacknowledged[name].update(zip(record.ids, record.blobs, strict=True))
            case Acknowledged():
                held = self.unacknowledged[record.subscription]
                for number in record.ids:
                    held.pop(number, None)
            case IdsReserved():
                self.ids_below = record.below
            case _:
                self._apply_name(record)

    def _apply_name(
        self, record: TopicCreated | TopicDeleted | SubscriptionSet | SubscriptionDeleted
    ) -> None:
        match record:
            case TopicCreated():
                topic = Topic.FromString(record.topic)
                self.topics[topic.name] = topic
            case TopicDeleted():
                del self.topics[record.name]
                for subscription in self.subscriptions.values():
                    if subscription.topic == record.name:
                        subscription.topic = DELETED_TOPIC
            case SubscriptionSet():
                subscription = Subscription.FromString(record.subscription)
                self.subscriptions[subscription.name] = subscription
                self.unacknowledged.setdefault(subscription.name, {})
            case SubscriptionDeleted():
                del self.subscriptions[record.name], self.unacknowledged[record.name]

    def records(self) -> Iterator[Record]:
        """The shortest journal that gives this state again."""
        yield IdsReserved(self.ids_below)
        for topic in self.topics.values():
            yield TopicCreated(topic.SerializeToString())
        for subscription in self.subscriptions.values():
            yield SubscriptionSet(subscription.SerializeToString())
        holders: dict[int, tuple[str, ...]] = {}
        blobs: dict[int, bytes] = {}
        for name, held in self.unacknowledged.items():
            blobs.update(held)
            for number in held:
                holders[number] = (*holders.get(number, ()), name)
        for names, group in groupby(sorted(holders), key=holders.__getitem__):
            for ids in chunks(list(group), _MESSAGES_PER_RECORD):
                yield Published(list(names), ids, [blobs[number] for number in ids])


def acknowledged(subscription: str, ids: list[int]) -> list[Acknowledged]:
    """The records of acknowledging `ids`, each of bounded size."""
    return [Acknowledged(subscription, part) for part in chunks(ids, _IDS_PER_RECORD)]


def chunks(items: list[int], size: int) -> Iterable[list[int]]:
    """`items` in order, in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))
