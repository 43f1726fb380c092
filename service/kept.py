"""Answers that are kept for a moment, so that many who ask cost one call."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """At most `most` values, each fresh for `seconds`; the one that was put first goes first."""

    def __init__(self, seconds: float, most: int = 256) -> None:
        self._seconds = seconds
        self._most = most
        self._values: OrderedDict[Hashable, tuple[float, _T]] = OrderedDict()
        self._under_way: dict[Hashable, asyncio.Task[_T]] = {}

    async def fetch(self, key: Hashable, make: Callable[[], Awaitable[_T]]) -> _T:
        """The fresh value, or what `make` returns; who asks meanwhile waits for the same call.

        Raises what `make` raises, and keeps nothing then. A caller that goes away does not end the call.
        """
        found = self.get(key)
        if found is not None:
            return found
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.ensure_future(self._made(key, make))
            task.add_done_callback(lambda done: self._forget(key, done))
        return await asyncio.shield(task)

    async def _made(self, key: Hashable, make: Callable[[], Awaitable[_T]]) -> _T:
        value = await make()
        self.put(key, value)
        return value

    def _forget(self, key: Hashable, done: asyncio.Task[_T]) -> None:
        self._under_way.pop(key, None)
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits any more

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
