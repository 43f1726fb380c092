"""Pulling ahead: the next messages arrive while a batch is being run, in a bounded buffer."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from pipeline.local_engine.subscriber import Subscriber, SubscriptionError, describe, is_permanent, jittered

PULL_MESSAGES = 1_000
PULL_SECONDS = 20.0
LAST_PULL_SECONDS = 0.3  # that a pull under way may take after the stop
EMPTY_PULL_PAUSE_SECONDS = 0.05
MAX_PAUSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Delivery(NamedTuple):
    """The messages of one pull and their size."""

    messages: list[Any]
    size_bytes: int


class Prefetch:
    """A thread that pulls until it is stopped, as long as the buffer has room.

    `received` is told of each delivery with the time at which its lease began, at the latest;
    `report_error` of each transient failure.
    """

    def __init__(
        self,
        subscriber: Subscriber,
        *,
        max_messages: int,
        max_bytes: int,
        received: Callable[[list[Any], float], None],
        report_error: Callable[[str], None],
    ) -> None:
        self._subscriber = subscriber
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._received = received
        self._report_error = report_error
        self._changed = threading.Condition()
        self._buffer: deque[Delivery] = deque()
        self._messages = 0
        self._bytes = 0
        self._taken_at = 0.0
        self._stopped = threading.Event()
        self._failure: BaseException | None = None
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def start(self) -> None:
        """Begins to pull."""
        self._thread.start()

    def wake(self) -> None:
        """Makes a waiting `take` look around."""
        with self._changed:
            self._changed.notify_all()

    def take(self, most: int, linger_seconds: float, interrupted: Callable[[], bool]) -> list[Any]:
        """Up to `most` messages, one delivery at least.

        Waits for the first without limit, and for a full batch until so long after the last take, whoever
        took; empty only when `interrupted`. Raises what ended the pulling.
        """
        with self._changed:
            while not interrupted():
                if self._failure:
                    raise self._failure
                left = self._taken_at + linger_seconds - time.monotonic()
                if self._messages and (self._messages >= most or left <= 0):
                    self._taken_at = time.monotonic()
                    return self._pop(most)
                self._changed.wait(left if self._messages else None)
        return []

    def stop(self) -> None:
        """Ends the pulling; a pull under way gets a moment, because what it brings is leased already."""
        self._stopped.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(LAST_PULL_SECONDS)
            call = self._call
            if call is not None:
                call.cancel()
            self._thread.join(LAST_PULL_SECONDS)

    def _pop(self, most: int) -> list[Any]:
        taken: list[Any] = []
        while self._buffer and (not taken or len(taken) + len(self._buffer[0].messages) <= most):
            delivery = self._buffer.popleft()
            taken += delivery.messages
            self._bytes -= delivery.size_bytes
        self._messages -= len(taken)
        self._changed.notify_all()
        return taken

    def _run(self) -> None:
        try:
            pause = 0.1
            while self._wait_for_room():
                try:
                    self._pull_once()
                    pause = 0.1
                except grpc.RpcError as error:
                    self._judge(error)
                    self._stopped.wait(jittered(pause))
                    pause = min(2 * pause, MAX_PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001 - it is raised again by take, on the engine's thread
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        with self._changed:
            while self._messages >= self._max_messages or self._bytes >= self._max_bytes:
                if self._stopped.is_set():
                    return False
                self._changed.wait()
        return not self._stopped.is_set()

    def _pull_once(self) -> None:
        begun = time.monotonic()
        self._call = self._subscriber.begin_pull(PULL_MESSAGES, PULL_SECONDS)
        try:
            response = self._call.result()
        except grpc.FutureCancelledError:
            return
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return
            raise
        finally:
            self._call = None
        messages = list(response.received_messages)
        if messages:
            self._received(messages, begun)
            with self._changed:
                self._buffer.append(Delivery(messages, response.ByteSize()))
                self._messages += len(messages)
                self._bytes += self._buffer[-1].size_bytes
                self._changed.notify_all()
        elif time.monotonic() - begun < EMPTY_PULL_PAUSE_SECONDS:
            self._stopped.wait(EMPTY_PULL_PAUSE_SECONDS)  # a server that does not wait must not be hammered

    def _judge(self, error: grpc.RpcError) -> None:
        sentence = f"{self._subscriber.subscription} cannot be read: {describe(error)}"
        if is_permanent(error):
            raise SubscriptionError(sentence) from error
        if not self._stopped.is_set():
            _log.warning("%s; trying again", sentence)
            self._report_error(sentence)
