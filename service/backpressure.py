"""How long a caller that is turned away should wait, by how fast what waits is getting less."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

LEAST_SECONDS = 1
MOST_SECONDS = 60
_WINDOW_SECONDS = 2.0


class Drain:
    """The rate at which something is emptied, over the last few seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._count = 0
        self._rate = 0.0

    def took(self, count: int) -> None:
        """Notes that `count` have left."""
        self._roll()
        self._count += count

    def per_second(self) -> float:
        """What left each second lately; 0.0 where nothing did."""
        self._roll()
        elapsed = self._clock() - self._since
        return self._rate if elapsed < _WINDOW_SECONDS / 2 else self._count / elapsed

    def retry_after_seconds(self, count: int) -> int:
        """Whole seconds until `count` more will have left, 1 to 60; 60 where nothing moves."""
        rate = self.per_second()
        if rate <= 0:
            return MOST_SECONDS
        return max(LEAST_SECONDS, min(math.ceil(count / rate), MOST_SECONDS))

    def _roll(self) -> None:
        elapsed = self._clock() - self._since
        if elapsed >= _WINDOW_SECONDS:
            # A pause longer than two windows leaves a rate that is as low as it was.
            self._rate = self._count / elapsed
            self._since += elapsed
            self._count = 0
