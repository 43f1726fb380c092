"""The batching publisher: how events wait, are sent together, and get their answers.

An event waits in its lane until `_pump` sends it. While no call is under way it is sent as soon as
the event loop has nothing else to do, so that a lone caller does not wait and a crowd still shares one
call; while calls are under way, events collect for `publish_linger_seconds` or until a batch is full.

A batch that Pub/Sub does not take for now goes to the outbox, and so does all that waits while
the breaker is not closed: then only the relay asks Pub/Sub, and no caller waits for the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from service.backpressure import Drain
from service.breaker import Breaker
from service.config import Settings
from service.errors import DatabaseUnavailableError, OutboxFullError, ProblemError, PublishRefusedError
from service.outbox import Outbox
from service.publisher.answers import overloaded, shutting_down, turned_away
from service.publisher.lanes import Batch, Event, Group, Lanes, Outcome, Receipt
from service.publisher.patience import Patience
from service.topic import Message, Topic, TopicError, refusal, wire_size

log = logging.getLogger(__name__)

MAX_CALLS = 16
# Calls that may carry events of large groups, and the part of what may be in flight that is theirs.
_GROUP_CALLS = 12
_GROUP_SHARE = 0.75
_GRACE_SECONDS = 0.5
_SPOOLED = Receipt("spooled", None)


class Publisher:
    """Publishes to one topic, within one event loop; every call ends in bounded time."""

    def __init__(self, topic: Topic, outbox: Outbox, breaker: Breaker, settings: Settings) -> None:
        self._topic = topic
        self._metrics = topic.metrics
        self._outbox = outbox
        self._breaker = breaker
        self._linger = settings.publish_linger_seconds
        self._deadline = settings.publish_deadline_seconds
        self._most_patience = min(settings.publish_patience_seconds, self._deadline)
        self._outbox_deadline = settings.outbox_deadline_seconds
        self._most_events = settings.publish_inflight_messages
        self._most_bytes = settings.publish_inflight_bytes
        self._lanes = Lanes(settings.publish_batch_messages, settings.publish_batch_bytes)
        self._halves: list[Batch] = []
        self._calls: dict[asyncio.Task[None], Batch] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._group_calls = 0
        self._inflight_events = 0
        self._inflight_bytes = 0
        self._patience = Patience(self._most_patience)
        self._drain = Drain()
        self._alarm: asyncio.Handle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._calls_ended = False

    async def publish(self, data: bytes, attributes: Mapping[str, str]) -> Receipt:
        """Takes one message; returns when it is in the topic or in the outbox.

        Raises PublishUnavailableError, PublishRefusedError, PublishOverloadedError, OutboxFullError
        or ShuttingDownError; each means that nothing is promised. A cancelled caller only stops
        waiting: its event stays in its batch.
        """
        if self._closing:
            raise shutting_down()
        size = wire_size(data, attributes)
        if self._inflight_events >= self._most_events or self._inflight_bytes + size > self._most_bytes:
            raise self._overloaded()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Receipt] = loop.create_future()
        self._inflight_events += 1
        self._inflight_bytes += size
        self._idle.clear()
        lanes = self._lanes
        lanes.singles.append(Event(data, attributes, size, loop.time() + self._deadline, answer))
        lanes.count += 1
        lanes.bytes += size
        self._wake(loop)
        return await answer

    async def publish_all(self, messages: Sequence[Message]) -> list[Receipt | ProblemError]:
        """Takes many messages; what became of each, in their order.

        Raises ShuttingDownError. Large groups share each call with single events, and at most three
        quarters of what may be in flight are theirs.
        """
        if self._closing:
            raise shutting_down()
        if not messages:
            return []
        loop = asyncio.get_running_loop()
        group = Group(len(messages))
        deadline = loop.time() + self._deadline
        most_events = max(1, int(self._most_events * _GROUP_SHARE))
        most_bytes = max(1, int(self._most_bytes * _GROUP_SHARE))
        for index, (data, attributes) in enumerate(messages):
            size = wire_size(data, attributes)
            if self._inflight_events >= most_events or self._inflight_bytes + size > most_bytes:
                group.put(index, self._overloaded())
                continue
            self._inflight_events += 1
            self._inflight_bytes += size
            group.waiting.append(Event(data, attributes, size, deadline, None, group, index))
        if group.waiting:
            self._idle.clear()
            self._lanes.add(group)
            self._wake(loop)
        await group.done
        return [outcome for outcome in group.outcomes if outcome is not None]

    def load(self) -> tuple[int, float]:
        """How many events are in flight, and which part of what may be."""
        by_bytes = self._inflight_bytes / self._most_bytes
        return self._inflight_events, max(self._inflight_events / self._most_events, by_bytes)

    async def close(self) -> None:
        """Publishes what waits, keeps in the outbox what Pub/Sub does not take in time, refuses the rest.

        Returns within the patience for a call and the deadline of the outbox.
        """
        self._closing = True
        self._pump()
        try:
            await asyncio.wait_for(self._idle.wait(), self._most_patience + _GRACE_SECONDS)
        except TimeoutError:
            log.warning("%d events go to the outbox before the end", self._inflight_events)
            await self._give_up_calls()
            self._divert("CANCELLED")
            if self._keeping:
                await asyncio.wait(self._keeping, timeout=self._outbox_deadline + _GRACE_SECONDS)
            for task in self._keeping:
                task.cancel()
            await asyncio.gather(*self._keeping, return_exceptions=True)

    async def _give_up_calls(self) -> None:
        """Ends the calls under way and hands their events to the outbox; no further call is started."""
        self._calls_ended = True
        calls = dict(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for call, batch in calls.items():
            if call.cancelled():  # perhaps before its first step
                self._keep_soon(batch, "CANCELLED")

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees to it that what waits is sent: now if a batch is full, else in time."""
        if self._lanes.full_batch:
            self._pump()
        elif self._alarm is None:
            if self._calls:
                self._alarm = loop.call_later(self._linger, self._pump)
            else:
                self._alarm = loop.call_soon(self._pump_when_quiet, loop, 0, loop.time() + self._linger)

    def _pump_when_quiet(self, loop: asyncio.AbstractEventLoop, before: int, until: float) -> None:
        """Lets the loop turn while each turn brings new events, at most until `until` (loop time)."""
        count = self._lanes.count
        if count > before and loop.time() < until:
            self._alarm = loop.call_soon(self._pump_when_quiet, loop, count, until)
        else:
            self._pump()

    def _pump(self) -> None:
        """Starts calls while there is something to send and a slot is free."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        if self._calls_ended or not self._breaker.is_closed:
            self._divert(self._breaker.cause or "CANCELLED")
            return
        while len(self._calls) < MAX_CALLS:
            with_groups = self._group_calls < _GROUP_CALLS
            batch = self._halves.pop() if self._halves else self._lanes.take(with_groups=with_groups)
            if not batch:
                return
            call = asyncio.create_task(self._send(batch))
            self._calls[call] = batch
            self._group_calls += batch[-1].group is not None  # now: the next turn of this loop asks
            call.add_done_callback(self._called)

    def _divert(self, status: str) -> None:
        """Hands everything that waits to the outbox."""
        while batch := self._halves.pop() if self._halves else self._lanes.take(with_groups=True):
            self._keep_soon(batch, status)

    def _keep_soon(self, batch: Batch, status: str) -> None:
        task = asyncio.create_task(self._keep(batch, status))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    def _called(self, call: asyncio.Task[None]) -> None:
        self._group_calls -= self._calls.pop(call)[-1].group is not None
        if self._halves or self._closing or len(self._calls) == MAX_CALLS - 1:
            self._pump()
        elif self._lanes.count and (not self._calls or self._group_calls == _GROUP_CALLS - 1):
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
            self._wake(asyncio.get_running_loop())

    async def _send(self, batch: Batch) -> None:
        """Publishes `batch` and answers each of its events, or splits it, or hands it to the outbox."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if batch[0].deadline <= started:
            self._keep_soon(batch, "DEADLINE_EXCEEDED")
            return
        began = self._breaker.now()
        try:
            ids = await self._topic.publish(
                [(event.data, event.attributes) for event in batch], self._patience.seconds()
            )
        except TopicError as error:
            self._failed(batch, error, began)
        else:
            self._patience.took(loop.time() - started)
            self._breaker.succeeded(began)
            self._answer(batch, ids)

    def _failed(self, batch: Batch, error: TopicError, began: float) -> None:
        if not error.for_good:
            self._keep_soon(batch, error.status)
            if self._breaker.failed(error.status, began, hung=error.hung):
                self._pump()
            return
        self._breaker.succeeded(began)
        if len(batch) > 1:
            # One bad message makes Pub/Sub refuse its batch: find it and let the others pass.
            middle = len(batch) // 2
            self._halves.extend((batch[:middle], batch[middle:]))
        else:
            reason = refusal(error.status)
            log.warning("Pub/Sub refused an event for good: %s", reason)
            self._fail(batch, lambda: PublishRefusedError(f"Pub/Sub refused the event: {reason}."))

    async def _keep(self, batch: Batch, status: str) -> None:
        """Commits the batch to the outbox, or else tells its callers that nothing keeps it."""
        messages = [(event.data, event.attributes) for event in batch]
        problem = turned_away(DatabaseUnavailableError("The service is ending."), status)
        is_safe = False
        try:
            await self._outbox.spool(messages)
            is_safe = True
            for event in batch:
                event.settle(_SPOOLED)
            self._metrics.spooled.value += len(batch)
            self._release(batch)
        except (OutboxFullError, DatabaseUnavailableError) as error:
            problem = turned_away(error, status)
            is_safe = await self._probed(batch, messages)
        finally:
            if not is_safe:  # also where `close` cancels a commit or a probe: nobody is left waiting
                self._fail(batch, problem)

    async def _probed(self, batch: Batch, messages: Sequence[Message]) -> bool:
        """Where the relay has nothing to try Pub/Sub with, a batch that has no other home does it."""
        if not self._breaker.probe():
            return False
        began = self._breaker.now()
        try:
            ids = await self._topic.publish(messages, self._most_patience)
        except TopicError as error:
            self._breaker.failed(error.status, began, hung=error.hung)
            return False
        self._breaker.succeeded(began)
        self._answer(batch, ids)
        return True

    def _answer(self, batch: Batch, ids: Sequence[str]) -> None:
        for event, message_id in zip(batch, ids, strict=True):
            event.settle(Receipt("published", message_id))
        self._metrics.published.value += len(batch)
        self._release(batch)

    def _fail(self, batch: Batch, problem: Callable[[], Outcome]) -> None:
        for event in batch:
            event.settle(problem())  # each its own: raising one writes its traceback into it
        self._release(batch)

    def _release(self, batch: Batch) -> None:
        for event in batch:
            self._inflight_bytes -= event.size
        self._inflight_events -= len(batch)
        self._drain.took(len(batch))
        if not self._inflight_events:
            self._idle.set()

    def _overloaded(self) -> ProblemError:
        return overloaded(self._drain.retry_after_seconds(self._inflight_events))
