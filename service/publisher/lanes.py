"""What waits to be published: single events and large groups, each with its fair part of every call."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from service.errors import ProblemError

# Groups up to this many events wait in the lane of the single ones.
SMALL_GROUP = 16
# What one group gives to a call before the next group has its turn.
_TURN = 100


class Receipt(NamedTuple):
    """Where an event is safe: in the topic, or in the outbox, which has no message id yet."""

    status: Literal["published", "spooled"]
    message_id: str | None


Outcome = Receipt | ProblemError


class Group:
    """Events that came together; `done` ends when each of them has its outcome in `outcomes`."""

    __slots__ = ("done", "missing", "outcomes", "waiting")

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * count
        self.missing = count
        self.waiting: deque[Event] = deque()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


@dataclass(slots=True, eq=False)
class Event:
    """One event on its way; it tells its outcome to `answer`, or to its group under `index`."""

    data: bytes
    attributes: Mapping[str, str]
    size: int
    deadline: float
    answer: asyncio.Future[Receipt] | None
    group: Group | None = None
    index: int = 0

    def settle(self, outcome: Outcome) -> None:
        if self.group is not None:
            self.group.put(self.index, outcome)
        elif self.answer is not None and not self.answer.done():
            if isinstance(outcome, ProblemError):
                self.answer.set_exception(outcome)
            else:
                self.answer.set_result(outcome)


Batch = list[Event]


class Lanes:
    """Two queues: `singles` in the order of their arrival, and `groups` that take turns."""

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self.singles: deque[Event] = deque()
        self.groups: deque[Group] = deque()
        self.count = 0
        self.bytes = 0

    @property
    def full_batch(self) -> bool:
        return self.count >= self._most_messages or self.bytes >= self._most_bytes

    def add(self, group: Group) -> None:
        """Queues what stands in `group.waiting`."""
        self.count += len(group.waiting)
        self.bytes += sum(event.size for event in group.waiting)
        if len(group.waiting) <= SMALL_GROUP:
            self.singles.extend(group.waiting)
            group.waiting.clear()
        else:
            self.groups.append(group)

    def take(self, *, with_groups: bool) -> Batch:
        """The events of one call, oldest first in each lane.

        Single events leave a quarter of the call to groups that wait, and one message at least: in calls of
        a single message they have those without groups.
        """
        batch: Batch = []
        most, most_bytes = self._most_messages, self._most_bytes
        from_groups = with_groups and bool(self.groups)
        if from_groups:
            size = self._fill(batch, self.singles, most - max(1, most // 4), most_bytes - most_bytes // 4, 0)
        else:
            size = self._fill(batch, self.singles, most, most_bytes, 0)
        while from_groups and self.groups and len(batch) < most:
            group = self.groups.popleft()
            before = len(batch)
            size = self._fill(batch, group.waiting, min(most, before + _TURN), most_bytes, size)
            if group.waiting:
                self.groups.append(group)
            if len(batch) == before:
                break
        self.count -= len(batch)
        self.bytes -= size
        return batch

    @staticmethod
    def _fill(batch: Batch, lane: deque[Event], most: int, most_bytes: int, size: int) -> int:
        """Moves events from the lane to the batch while they fit; returns the size of the batch."""
        while lane and len(batch) < most:
            event = lane[0]
            if batch and size + event.size > most_bytes:
                break
            batch.append(lane.popleft())
            size += event.size
        return size
