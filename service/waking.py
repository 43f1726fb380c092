"""Waiting for what wakes a loop, which may also be stopped in that very moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress


async def woken(event: asyncio.Event, seconds: float) -> None:
    """Returns when the event is set, and after so many seconds at the latest.

    Not wait_for: on Python 3.11 it loses a cancellation that comes with the result.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
