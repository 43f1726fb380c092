"""Answers that are kept for a moment, so that many who ask cost one call."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """At most `most` values, each fresh for `seconds`; the one that was put first goes first."""

    def __init__(self, seconds: float, most: int = 256) -> None:
        self._seconds = seconds
        self._most = most
        self._values: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()

    def get(self, key: Hashable) -> _T | None:
        """The value while it is fresh."""
        found = self._values.get(key)
        return found[1] if found and time.monotonic() - found[0] < self._seconds else None

    def stale(self, key: Hashable) -> _T | None:
        """The value, however old it is."""
        found = self._values.get(key)
        return found[1] if found else None

    def put(self, key: Hashable, value: _T) -> None:
        self._values[key] = (time.monotonic(), value)
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)
