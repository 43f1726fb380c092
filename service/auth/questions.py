"""Turns to ask the database who calls, where that is not known: bounds for what waits there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.auth.rate_limits import Bucket
from service.errors import AuthenticationUnavailableError, DatabaseUnavailableError

MOST_QUESTIONS = 4
MOST_WAITING = 200
QUESTION_SECONDS = 6.0
# After a question without an answer the next callers are told so at once.
PAUSE_SECONDS = 1.0
# Keys that nobody knows cost a look into the database each: so many a second, those that we know not counted.
LOOK_UPS_PER_SECOND = 200.0
LOOK_UPS_PER_ADDRESS = 100.0
MOST_ADDRESSES = 1024


class Questions:
    """The questions under way, and those that wait for their turn."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(MOST_QUESTIONS)
        self._waiting = 0
        self._failed_at = float("-inf")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A turn to ask, in time. Raises AuthenticationUnavailableError."""
        if self._waiting >= MOST_WAITING or time.monotonic() - self._failed_at < PAUSE_SECONDS:
            raise _unavailable("Others wait for the same.")
        self._waiting += 1
        try:
            async with asyncio.timeout(QUESTION_SECONDS), self._turns:
                yield
        except (DatabaseUnavailableError, TimeoutError) as error:
            self._failed_at = time.monotonic()
            raise _unavailable(getattr(error, "detail", "There was no answer in time.")) from error
        finally:
            self._waiting -= 1


class LookUps:
    """How many unknown keys may be looked up: for one address, so that others have their part, and in all."""

    def __init__(self, now: float) -> None:
        self._all = Bucket(LOOK_UPS_PER_SECOND, now)
        self._by_address: dict[str, Bucket] = {}  # who asked last comes last

    def take(self, address: str, now: float) -> bool:
        """Whether one more may be looked up for `address` at `now` (seconds, monotonic)."""
        bucket = self._by_address.pop(address, None) or Bucket(LOOK_UPS_PER_ADDRESS, now)
        if len(self._by_address) >= MOST_ADDRESSES:
            del self._by_address[next(iter(self._by_address))]
        self._by_address[address] = bucket
        return bucket.take(now, LOOK_UPS_PER_ADDRESS, LOOK_UPS_PER_ADDRESS) and self._all.take(
            now, LOOK_UPS_PER_SECOND, LOOK_UPS_PER_SECOND
        )


def _unavailable(cause: str) -> AuthenticationUnavailableError:
    return AuthenticationUnavailableError(f"Keys cannot be checked now. {cause}", retry_after_seconds=1)
