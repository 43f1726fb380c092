"""The circuit breaker before Pub/Sub: a pure state machine that is told of each call and of the time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed lets every call pass; open none; half open one at a time, the probe.

    `failures` in a row open it, and so does a single call that hung: the next ones would make their
    callers wait as long. After `open_seconds` one probe may pass: its success closes the breaker, its
    failure opens it again. A probe of which nothing is heard for `probe_seconds` makes way for the next.
    A failure of a call that began (by `now`) before one that succeeded is old news, and changes nothing.
    Where an older probe fails first, the success of the newest one takes its effect back.
    `on_opened` finds why in `cause`.
    """

    def __init__(
        self,
        *,
        failures: int,
        open_seconds: float,
        probe_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        on_opened: Callable[[], None] = lambda: None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit = failures
        self._open_seconds = open_seconds
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._on_opened = on_opened
        self._on_closed = on_closed
        self._failures = 0
        self._retry_at = 0.0
        self._good_since = -math.inf
        self._probed_at = math.inf
        self.state: State = "closed"
        self.cause = ""
        self.opened = 0

    def now(self) -> float:
        """The breaker's own time in seconds, for the moment at which a call begins."""
        return self._clock()

    @property
    def is_closed(self) -> bool:
        return self.state == "closed"

    def seconds_since_good(self) -> float:
        """How long ago the newest call began that succeeded; infinite where none has."""
        return self._clock() - self._good_since

    def probe(self) -> bool:
        """Whether the caller may make the one call that tries; it must tell how that call ended."""
        if self.state == "closed" or self._clock() < self._retry_at:
            return False
        self.state = "half_open"
        self._probed_at = self._clock()
        self._retry_at = self._probed_at + self._probe_seconds
        return True

    def seconds_to_probe(self) -> float:
        """How long until the next probe may pass; 0 where the breaker is closed."""
        return 0.0 if self.state == "closed" else max(0.0, self._retry_at - self._clock())

    @property
    def is_untried(self) -> bool:
        """Whether a probe has been due for `open_seconds` and nobody had anything to make it with."""
        return self.state != "closed" and self._clock() - self._retry_at >= self._open_seconds

    def succeeded(self, began: float) -> bool:
        """A call was answered in time; returns True where that closed the breaker.

        While open only the newest probe counts, which an older one that failed meanwhile has overtaken; any
        other call began before the failures.
        """
        if self.state == "open" and began < self._probed_at:
            return False
        closed = self.state != "closed"
        self._good_since = max(self._good_since, began)
        self.state = "closed"
        self._failures = 0
        self.cause = ""
        if closed:
            self._on_closed()
        return closed

    def failed(self, cause: str, began: float, *, hung: bool = False) -> bool:
        """A call failed for `cause`, a gRPC status; returns True where that opened a closed breaker."""
        if self.state == "open" or began < self._good_since:
            return False
        was_closed = self.state == "closed"
        self._failures += self._limit if hung else 1
        if was_closed and self._failures < self._limit:
            return False
        self.state = "open"
        self.cause = cause
        self.opened += was_closed
        self._retry_at = self._clock() + self._open_seconds
        if was_closed:
            self._probed_at = math.inf
            self._on_opened()
        return was_closed
