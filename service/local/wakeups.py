"""Who waits for messages and leases, and what wakes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.local.broker import Broker, Subscription


class Bells:
    """One bell for each subscription, and the timer that rings it when leases expire.

    A puller takes the bell, looks, and waits, with no await between the first two: the bell that it
    took rings for all that happens after. A ring wakes everybody, so that none is lost with a puller
    that goes away.
    """

    def __init__(self, broker: Broker, clock: Callable[[], float]) -> None:
        self.closed = False
        self._broker = broker
        self._clock = clock
        self._bells: dict[str, asyncio.Event] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def take(self, name: str) -> asyncio.Event:
        """The event that is set at the next ring for subscription `name`."""
        bell = self._bells.get(name)
        if bell is None:
            bell = self._bells[name] = asyncio.Event()
        return bell

    def ring(self, name: str) -> None:
        """Wakes all who wait on subscription `name`."""
        bell = self._bells.pop(name, None)
        if bell is not None:
            bell.set()

    def leased(self, subscription: Subscription) -> None:
        """Sets the timer to the next expiry, where leases of `subscription` may be the first to expire."""
        due = subscription.backlog.next_due()
        if due is not None and not self.closed and (self._timer is None or due < self._timer_due):
            self._set_timer(due)

    def _set_timer(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = due
        # A millisecond more, so that rounding does not wake it just before the lease ends.
        delay = max(due - self._clock(), 0) + 0.001
        self._timer = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._timer = None
        try:
            for subscription in self._broker.expire():
                self.ring(subscription.pb.name)
        finally:
            due = self._broker.next_due()
            if due is not None and not self.closed:
                self._set_timer(due)

    def close(self) -> None:
        """Wakes everybody for the last time."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for name in list(self._bells):
            self.ring(name)
