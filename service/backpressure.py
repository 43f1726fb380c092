"""How long a caller that is turned away should wait, by how fast what waits is getting less."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LEAST_SECONDS = 1
FIRST_SECONDS = 2  # while nobody knows the rate yet
MOST_SECONDS = 60
_WINDOW_SECONDS = 2.0


class Drain:
    """The rate at which something is emptied, over the last few seconds in which callers were turned away.

    What leaves at other times says how much came, and nothing about how much could leave.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._asked_at = -math.inf
        self._stands_since: float | None = None
        self._count = 0
        self._rate = 0.0

    def took(self, count: int) -> None:
        """Notes that `count` have left."""
        if count:
            self._count += count
            self._stands_since = None

    def retry_after_seconds(self, count: int) -> int:
        """Whole seconds until `count` more will have left, 1 to 60.

        Where nothing leaves it is as long as that has lasted, and at first, while the rate is unknown, 2.
        """
        now = self._clock()
        rate = self._per_second(now)
        if rate > 0:
            return max(LEAST_SECONDS, min(math.ceil(count / rate), MOST_SECONDS))
        if self._stands_since is None:
            self._stands_since = now
        return max(FIRST_SECONDS, min(math.ceil(now - self._stands_since), MOST_SECONDS))

    def _per_second(self, now: float) -> float:
        """What left each second while callers were turned away; 0.0 where nothing did or nobody knows."""
        elapsed = now - self._since
        if now - self._asked_at > _WINDOW_SECONDS:
            self._begin(now, 0.0)
        elif elapsed >= _WINDOW_SECONDS:
            self._begin(now, self._count / elapsed)
        elif elapsed >= _WINDOW_SECONDS / 2:
            self._rate = self._count / elapsed
        self._asked_at = now
        return self._rate

    def _begin(self, now: float, rate: float) -> None:
        self._since, self._count, self._rate = now, 0, rate
