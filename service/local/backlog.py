"""What one subscription has not had acknowledged: messages that wait and messages that are leased."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

_TICKS_PER_SECOND = 10  # leases of one tick expire together, up to 0.1 s late and never early


# Structs without garbage collection: millions of them may wait, and they are in no reference cycle.
class Message(msgspec.Struct, gc=False, eq=False):
    """A stored message, shared by all subscriptions that hold it; `holders` counts them.

    `blob` is a serialized PubsubMessage: bytes of its own, so that no request's arena stays alive.
    `published_at` is in seconds since the epoch, `key` the ordering key or empty.
    """

    id: int
    blob: bytes
    key: str
    published_at: float
    holders: int = 0


class Window:
    """The flow control of one stream: what it may hold unacknowledged. 0 or less means no limit."""

    __slots__ = ("bytes", "max_bytes", "max_messages", "messages")

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages if max_messages > 0 else 1 << 62
        self.max_bytes = max_bytes if max_bytes > 0 else 1 << 62
        self.messages = 0
        self.bytes = 0

    def room(self) -> tuple[int, int]:
        """Messages and bytes that fit now; one message may go over the bytes, as with the real service."""
        return self.max_messages - self.messages, self.max_bytes - self.bytes


class Delivery(msgspec.Struct, gc=False, eq=False):
    """One message on its way through one subscription. `ack_id` is empty while it is not leased."""

    message: Message
    attempt: int = 0
    ack_id: str = ""
    tick: int = 0
    window: Window | None = None


class KeyGroup:
    """The messages of one ordering key: those leased now, and those that wait behind them."""

    __slots__ = ("key", "leased", "waiting")

    def __init__(self, key: str) -> None:
        self.key = key
        self.leased: dict[int, Delivery] = {}
        self.waiting: deque[Delivery] = deque()


class Backlog:
    """The unacknowledged messages of one subscription. Times are seconds of the caller's clock.

    With `ordered`, messages of one ordering key are leased in publish order to one puller at a time:
    the next ones only when all leased ones are acknowledged, and one that comes back brings the later
    leased ones of its key back with it. `prefix` makes ack ids unique among subscriptions and runs.
    """

    def __init__(self, prefix: str, *, ordered: bool) -> None:
        self._prefix = prefix
        self._ordered = ordered
        self._leases_made = 0
        # A key group stands in the queue exactly when it has waiting messages and no leased ones.
        self._ready: deque[Delivery | KeyGroup] = deque()
        self._groups: dict[str, KeyGroup] = {}
        self._leases: dict[str, Delivery] = {}
        self._due: dict[int, dict[str, Delivery]] = {}
        self._ticks: list[int] = []

    def add(self, messages: Iterable[Message]) -> None:
        """Appends newly published messages."""
        for message in messages:
            if not (self._ordered and message.key):
                self._ready.append(Delivery(message))
                continue
            group = self._groups.get(message.key)
            if group is None:
                group = self._groups[message.key] = KeyGroup(message.key)
            if not group.waiting and not group.leased:
                self._ready.append(group)
            group.waiting.append(Delivery(message))

    def take(self, limit: int, max_bytes: int, due: float, window: Window | None = None) -> list[Delivery]:
        """Leases up to `limit` messages and `max_bytes` (but at least one) until the time `due`."""
        taken: list[Delivery] = []
        ready = self._ready
        tick = math.ceil(due * _TICKS_PER_SECOND)
        size = 0
        while ready and len(taken) < limit:
            head = ready[0]
            queue = head.waiting if isinstance(head, KeyGroup) else ready
            delivery = queue[0]
            assert isinstance(delivery, Delivery)
            size += len(delivery.message.blob)
            if size > max_bytes and taken:
                break
            queue.popleft()
            if isinstance(head, KeyGroup):
                head.leased[delivery.message.id] = delivery
                ready.popleft()
                if head.waiting:
                    ready.appendleft(head)
            taken.append(delivery)
        self._park_leased_head()
        self._lease(taken, tick, window)
        return taken

    def _park_leased_head(self) -> None:
        head = self._ready[0] if self._ready else None
        if isinstance(head, KeyGroup) and head.leased:
            self._ready.popleft()

    def _lease(self, deliveries: list[Delivery], tick: int, window: Window | None) -> None:
        if not deliveries:
            return
        bucket = self._bucket(tick)
        number = self._leases_made
        for delivery in deliveries:
            number += 1
            ack_id = f"{self._prefix}{number:x}"
            delivery.ack_id = ack_id
            delivery.attempt += 1
            delivery.tick = tick
            delivery.window = window
            self._leases[ack_id] = bucket[ack_id] = delivery
            if window is not None:
                window.bytes += len(delivery.message.blob)
        self._leases_made = number
        if window is not None:
            window.messages += len(deliveries)

    def _bucket(self, tick: int) -> dict[str, Delivery]:
        bucket = self._due.get(tick)
        if bucket is None:
            bucket = self._due[tick] = {}
            heapq.heappush(self._ticks, tick)
        return bucket

    def _end_lease(self, delivery: Delivery) -> None:
        del self._leases[delivery.ack_id]
        del self._due[delivery.tick][delivery.ack_id]
        delivery.ack_id = ""
        window = delivery.window
        if window is not None:
            window.messages -= 1
            window.bytes -= len(delivery.message.blob)
            delivery.window = None

    def leased(self, ack_ids: Iterable[str]) -> list[Delivery]:
        """The leases that `ack_ids` name, each once; ids that are unknown or expired are passed over."""
        leases = self._leases
        return [leases[ack_id] for ack_id in dict.fromkeys(ack_ids) if ack_id in leases]

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Drops leased messages for good."""
        for delivery in deliveries:
            self._end_lease(delivery)
            group = self._group(delivery)
            if group is not None:
                del group.leased[delivery.message.id]
                self._release_group(group)

    def _group(self, delivery: Delivery) -> KeyGroup | None:
        return self._groups[delivery.message.key] if self._ordered and delivery.message.key else None

    def _release_group(self, group: KeyGroup) -> None:
        if group.leased:
            return
        if group.waiting:
            self._ready.append(group)
        else:
            del self._groups[group.key]

    def extend(self, deliveries: Iterable[Delivery], due: float) -> None:
        """Sets the time at which leases expire."""
        tick = math.ceil(due * _TICKS_PER_SECOND)
        bucket = self._bucket(tick)
        for delivery in deliveries:
            del self._due[delivery.tick][delivery.ack_id]
            delivery.tick = tick
            bucket[delivery.ack_id] = delivery

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Ends leases and lets the messages wait again, those of an ordering key in their old order."""
        for delivery in deliveries:
            if not delivery.ack_id:  # it came back already with an earlier message of its key
                continue
            group = self._group(delivery)
            if group is None:
                self._end_lease(delivery)
                self._ready.append(delivery)
                continue
            for number in sorted((n for n in group.leased if n >= delivery.message.id), reverse=True):
                later = group.leased.pop(number)
                self._end_lease(later)
                group.waiting.appendleft(later)
            self._release_group(group)

    def expire(self, now: float) -> int:
        """Gives back every message whose lease ended by `now`; returns how many leases that were."""
        tick = math.floor(now * _TICKS_PER_SECOND)
        count = 0
        while self._ticks and self._ticks[0] <= tick:
            bucket = self._due[self._ticks[0]]
            count += len(bucket)
            self.give_back(list(bucket.values()))
            del self._due[heapq.heappop(self._ticks)]
        return count

    def next_due(self) -> float | None:
        """When the next lease expires, or None where nothing is leased."""
        while self._ticks:
            tick = self._ticks[0]
            if self._due[tick]:
                return tick / _TICKS_PER_SECOND
            del self._due[heapq.heappop(self._ticks)]
        return None

    @property
    def has_ready(self) -> bool:
        """Whether a pull would get something now."""
        return bool(self._ready)

    def count(self) -> int:
        """How many messages are not acknowledged, leased ones included."""
        groups = self._ordered  # only then key groups stand in the queue
        alone = sum(1 for item in self._ready if isinstance(item, Delivery)) if groups else len(self._ready)
        return alone + sum(len(group.waiting) for group in self._groups.values()) + len(self._leases)

    def waiting(self) -> Iterator[Message]:
        """The messages that are not leased."""
        for item in self._ready:
            if isinstance(item, Delivery):
                yield item.message
        for group in self._groups.values():
            for delivery in group.waiting:
                yield delivery.message

    def outstanding(self) -> Iterator[Message]:
        """The messages that are leased."""
        for delivery in self._leases.values():
            yield delivery.message

    def drop_published_before(self, time: float) -> None:
        """Drops leased and waiting messages that were published before `time`."""
        self.acknowledge([d for d in self._leases.values() if d.message.published_at < time])
        for group in list(self._groups.values()):
            group.waiting = deque(d for d in group.waiting if d.message.published_at >= time)
            if not group.waiting and not group.leased:
                del self._groups[group.key]
        self._ready = deque(
            item
            for item in self._ready
            if (item.waiting if isinstance(item, KeyGroup) else item.message.published_at >= time)
        )
