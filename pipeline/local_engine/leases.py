"""What this process holds: leases are extended until the messages are acknowledged or given back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

import grpc

from pipeline.local_engine.subscriber import Subscriber, describe

EXTEND_WHEN_LEFT = 0.6  # of the ack deadline
GIVE_BACK_SECONDS = 2.0  # for each call, so that a stop does not hang on a server that is away

_log = logging.getLogger(__name__)


class Leases:
    """Ack ids with the time at which Pub/Sub delivers their messages again. Thread-safe."""

    def __init__(self, subscriber: Subscriber, deadline_seconds: int) -> None:
        self._subscriber = subscriber
        self._deadline = deadline_seconds
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # to call: an extension that is late would undo a later call
        self._expiry: dict[str, float] = {}
        self._parked: dict[str, float] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def start(self) -> None:
        """Begins to extend."""
        self._thread.start()

    def hold(self, ack_ids: Iterable[str], begun: float) -> None:
        """Takes charge of messages whose lease began at the monotonic time `begun`."""
        with self._lock:
            self._expiry.update(dict.fromkeys(ack_ids, begun + self._deadline))

    def forget(self, ack_ids: Iterable[str]) -> None:
        """Lets go of messages that are acknowledged."""
        with self._lock:
            for ack_id in ack_ids:
                self._expiry.pop(ack_id, None)

    def park(self, ack_id: str, seconds: int) -> None:
        """Keeps a message away for so many seconds; then Pub/Sub delivers it again."""
        with self._lock:
            self._expiry.pop(ack_id, None)
            self._parked[ack_id] = time.monotonic() + seconds
        self._modify_in_turn([ack_id], seconds)

    def give_back(self, ack_ids: Iterable[str]) -> None:
        """Lets Pub/Sub deliver these messages again at once."""
        given = list(ack_ids)
        self.forget(given)
        self._modify_in_turn(given, 0, GIVE_BACK_SECONDS)

    def close(self) -> None:
        """Gives everything back and extends nothing any more."""
        self._closed.set()
        with self._lock:
            held = [*self._expiry, *self._parked]
            self._expiry.clear()
            self._parked.clear()
        self._modify_in_turn(held, 0, GIVE_BACK_SECONDS)

    def _run(self) -> None:
        while not self._closed.wait(self._deadline / 10):
            with self._turn:
                self._extend()

    def _extend(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [
                a for a, expiry in self._expiry.items() if expiry - now < EXTEND_WHEN_LEFT * self._deadline
            ]
            self._parked = {a: expiry for a, expiry in self._parked.items() if expiry > now}
        if due and self._modify(due, self._deadline):
            with self._lock:
                self._expiry.update((a, now + self._deadline) for a in due if a in self._expiry)

    def _modify_in_turn(self, ack_ids: list[str], seconds: int, timeout: float = 5.0) -> None:
        """Waits for an extension under way, but not for a server that is away."""
        has_turn = self._turn.acquire(timeout=GIVE_BACK_SECONDS)
        try:
            self._modify(ack_ids, seconds, timeout)
        finally:
            if has_turn:
                self._turn.release()

    def _modify(self, ack_ids: list[str], seconds: int, timeout: float = 5.0) -> bool:
        try:
            self._subscriber.modify_deadline(ack_ids, seconds, timeout)
        except grpc.RpcError as error:
            # At worst the messages are delivered twice.
            _log.warning("The ack deadline of %d messages was not changed: %s", len(ack_ids), describe(error))
            return False
        return True
