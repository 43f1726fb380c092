"""The batching publisher: many callers, few Publish calls, an answer only after Pub/Sub gave the id.

An event waits in `_waiting` until `_pump` sends it. While no call is under way it is sent as soon as
the event loop has nothing else to do, so that a lone caller does not wait and a crowd still shares one
call; while calls are under way, events collect for `publish_linger_seconds` or until a batch is full.
Each event has one deadline, `publish_deadline_seconds` after its arrival. A call has the deadline of
its oldest event, so a slot becomes free before the next event in the queue has to be given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.clients import Clients
from service.config import Settings
from service.errors import (
    ProblemError,
    PublishOverloadedError,
    PublishRefusedError,
    PublishUnavailableError,
    ShuttingDownError,
)

log = logging.getLogger(__name__)

MAX_CALLS = 16
RETRY_AFTER_SECONDS = 1
_GRACE_SECONDS = 0.5
# Every other status is for good: asking again gives the same answer.
_TRANSIENT = frozenset(
    ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "UNKNOWN")
)
# What a message and an attribute cost on the wire beside their own bytes.
_MESSAGE_OVERHEAD_BYTES = 16
_ATTRIBUTE_OVERHEAD_BYTES = 8


@dataclass(slots=True, eq=False)
class _Event:
    """One event on its way; `answer` ends with the message id or with a ProblemError."""

    data: bytes
    attributes: Mapping[str, str]
    size: int
    deadline: float
    answer: asyncio.Future[str]


_Batch = list[_Event]


class Publisher:
    """Publishes to one topic, within one event loop; `publish` answers and `close` ends in bounded time."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients = clients
        self._topic = settings.topic_path
        self._linger = settings.publish_linger_seconds
        self._max_messages = settings.publish_batch_messages
        self._max_bytes = settings.publish_batch_bytes
        self._deadline = settings.publish_deadline_seconds
        self._most_events = settings.publish_inflight_messages
        self._most_bytes = settings.publish_inflight_bytes
        self._waiting: deque[_Event] = deque()
        self._waiting_bytes = 0
        self._halves: deque[_Batch] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._inflight_events = 0
        self._inflight_bytes = 0
        self._alarm: asyncio.Handle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._away = False

    async def publish(self, data: bytes, attributes: Mapping[str, str]) -> str:
        """Publishes one message and returns the id that Pub/Sub gave it.

        Raises PublishUnavailableError, PublishRefusedError, PublishOverloadedError or
        ShuttingDownError; each means that nothing is promised. A cancelled caller only stops
        waiting: its event stays in its batch.
        """
        if self._closing:
            raise ShuttingDownError("The service is shutting down.", retry_after_seconds=RETRY_AFTER_SECONDS)
        size = len(data) + _MESSAGE_OVERHEAD_BYTES
        for key, value in attributes.items():
            size += len(key) + len(value) + _ATTRIBUTE_OVERHEAD_BYTES
        if self._inflight_events >= self._most_events or self._inflight_bytes + size > self._most_bytes:
            raise PublishOverloadedError(
                "Too many events wait for their message id.", retry_after_seconds=RETRY_AFTER_SECONDS
            )
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        self._inflight_events += 1
        self._inflight_bytes += size
        self._idle.clear()
        self._waiting.append(_Event(data, attributes, size, loop.time() + self._deadline, answer))
        self._waiting_bytes += size
        self._wake(loop)
        return await answer

    async def close(self) -> None:
        """Publishes or fails all that waits, within the publish deadline; then refuses everything."""
        self._closing = True
        self._pump()
        try:
            await asyncio.wait_for(self._idle.wait(), self._deadline + 2 * _GRACE_SECONDS)
        except TimeoutError:
            log.warning("%d events got no answer before the end", self._inflight_events)
            leftovers = [*self._waiting, *(event for half in self._halves for event in half)]
            self._waiting.clear()
            self._halves.clear()
            self._fail(leftovers, lambda: _unavailable("CANCELLED"))
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sees to it that what waits is sent: now if a batch is full, else at the right moment."""
        if len(self._waiting) >= self._max_messages or self._waiting_bytes >= self._max_bytes:
            self._pump()
        elif self._alarm is None:
            if self._calls:
                self._alarm = loop.call_later(self._linger, self._pump)
            else:
                self._alarm = loop.call_soon(self._pump_when_quiet, loop, 0, loop.time() + self._linger)

    def _pump_when_quiet(self, loop: asyncio.AbstractEventLoop, before: int, until: float) -> None:
        """Lets the loop turn while each turn brings new events, at most until `until` (loop time)."""
        count = len(self._waiting)
        if count > before and loop.time() < until:
            self._alarm = loop.call_soon(self._pump_when_quiet, loop, count, until)
        else:
            self._pump()

    def _pump(self) -> None:
        """Starts calls while there is something to send and a slot is free."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        while len(self._calls) < MAX_CALLS:
            batch = self._halves.popleft() if self._halves else self._take()
            if not batch:
                return
            call = asyncio.get_running_loop().create_task(self._send(batch))
            self._calls.add(call)
            call.add_done_callback(self._called)

    def _called(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._halves or self._closing or len(self._calls) == MAX_CALLS - 1:
            self._pump()
        elif self._waiting and not self._calls:
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
            self._wake(asyncio.get_running_loop())

    def _take(self) -> _Batch:
        """The oldest events that fit into one call; those that are too late are answered here."""
        batch: _Batch = []
        late: _Batch = []
        size = 0
        now = asyncio.get_running_loop().time()
        while self._waiting and len(batch) < self._max_messages:
            event = self._waiting[0]
            if batch and size + event.size > self._max_bytes:
                break
            self._waiting.popleft()
            self._waiting_bytes -= event.size
            if event.deadline <= now:
                late.append(event)
            else:
                batch.append(event)
                size += event.size
        if late:
            self._fail_for_now(late, "DEADLINE_EXCEEDED")
        return batch

    async def _send(self, batch: _Batch) -> None:
        """Publishes `batch` and answers each of its events, or splits it for further calls."""
        try:
            ids = await self._call(batch)
        except asyncio.CancelledError:
            self._fail(batch, lambda: _unavailable("CANCELLED"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens, a caller waits for an answer
            status = _status(error)
            if status in _TRANSIENT:
                self._fail_for_now(batch, status)
            elif status == "INVALID_ARGUMENT" and len(batch) > 1:
                # One bad message makes Pub/Sub refuse its batch: find it and let the others pass.
                middle = len(batch) // 2
                self._halves.extend((batch[:middle], batch[middle:]))
            else:
                log.warning("Pub/Sub refused %d events for good: %s", len(batch), status)
                self._fail(batch, lambda: _refused(status, self._topic))
        else:
            self._answer(batch, ids)

    async def _call(self, batch: _Batch) -> list[str]:
        """One Publish call; once more if the connection broke, within the deadline of the oldest event."""
        loop = asyncio.get_running_loop()
        deadline = batch[0].deadline
        # gRPC keeps the deadline by itself; the outer one also covers finding the credentials.
        async with asyncio.timeout_at(deadline + _GRACE_SECONDS):
            pubsub = await self._clients.pubsub()
            message = pubsub.PubsubMessage
            request = pubsub.PublishRequest(
                topic=self._topic,
                messages=[message(data=event.data, attributes=event.attributes) for event in batch],
            )
            try:
                reply = await pubsub.publish(
                    request, timeout=max(deadline - loop.time(), 0), metadata=pubsub.metadata
                )
            except Exception as error:
                if _status(error) != "UNAVAILABLE":
                    raise
                # The server may have closed a connection that was idle. If it is really away, a second
                # try fails at once; if the first took effect, the copy carries the same event_id.
                reply = await pubsub.publish(
                    request, timeout=max(deadline - loop.time(), 0), metadata=pubsub.metadata
                )
        ids = list(reply.message_ids)
        if len(ids) != len(batch) or not all(ids):
            raise RuntimeError(f"Pub/Sub gave {len(list(filter(None, ids)))} ids for {len(batch)} messages")
        return ids

    def _answer(self, batch: _Batch, ids: list[str]) -> None:
        if self._away:
            self._away = False
            log.info("Pub/Sub takes events again")
        for event, message_id in zip(batch, ids, strict=True):
            if not event.answer.done():
                event.answer.set_result(message_id)
        self._release(batch)

    def _fail_for_now(self, batch: _Batch, status: str) -> None:
        """Tells the callers to try again later: nothing keeps these events any more."""
        if not self._away:
            self._away = True
            log.warning("Pub/Sub cannot take events: %s; more of the same is logged at DEBUG", status)
        log.debug("%d events were not published: %s", len(batch), status)
        self._fail(batch, lambda: _unavailable(status))

    def _fail(self, batch: _Batch, problem: Callable[[], ProblemError]) -> None:
        for event in batch:
            if not event.answer.done():
                event.answer.set_exception(
                    problem()
                )  # each its own: raising one writes its traceback into it
        self._release(batch)

    def _release(self, batch: _Batch) -> None:
        for event in batch:
            self._inflight_events -= 1
            self._inflight_bytes -= event.size
        if not self._inflight_events:
            self._idle.set()


def _status(error: Exception) -> str:
    """The name of the gRPC status that `error` stands for."""
    code: Any = getattr(error, "code", None)
    if callable(code):
        return str(code().name)
    if isinstance(error, TimeoutError):
        return "DEADLINE_EXCEEDED"
    log.error("publishing failed", exc_info=error)
    return "INTERNAL"


def _unavailable(status: str) -> PublishUnavailableError:
    return PublishUnavailableError(
        f"Pub/Sub did not confirm the event ({status}). It may have arrived all the same: "
        "send it again with the same event_id.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _refused(status: str, topic: str) -> PublishRefusedError:
    reason = {
        "NOT_FOUND": f"there is no topic {topic}",
        "PERMISSION_DENIED": f"this service may not publish to {topic}",
        "UNAUTHENTICATED": "the credentials of this service are not accepted",
        "INVALID_ARGUMENT": "the message does not fit the topic",
    }.get(status, "it gave no reason")
    return PublishRefusedError(f"Pub/Sub refused the event: {reason} ({status}).")
