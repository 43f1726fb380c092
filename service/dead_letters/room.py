"""How many letters of a replay the outbox can take now, and which it can never take."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from service.dead_letters.letters import Letter
from service.outbox import Outbox

# Replayed letters wait behind each other, not sign-ins behind thousands of them.
MOST_WAITING_EVENTS = 2000
MOST_WAITING_BYTES = 32_000_000
_ATTRIBUTES_BYTES = 500  # about what the attributes of a replay take


def demand(letter: Letter) -> int:
    """About how many bytes of the outbox the letter takes."""
    return len(letter.payload) + _ATTRIBUTES_BYTES


class Room:
    """What the outbox has room for; it may be smaller than a batch, and parked events may take most of it.

    Letters are told by their demand in bytes; 0 is one that is left out.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def can_ever_hold(self, size: int) -> bool:
        """Whether an empty outbox has room for the letter."""
        return size <= self._outbox.max_bytes

    def fitting(self, sizes: Sequence[int]) -> int:
        """How many letters, from the first on, have room: all, or those that do where no more will come.

        More comes while anything waits in the outbox; until then 0, unless no letter needs room.
        """
        if not any(sizes):
            return len(sizes)
        waiting = self._outbox.waiting
        if waiting > MOST_WAITING_EVENTS or (waiting > 0 and self._outbox.bytes > MOST_WAITING_BYTES):
            return 0
        if self._fit(sizes):
            return len(sizes)
        if waiting > 0:
            return 0
        counts = range(1, len(sizes))
        return bisect.bisect(counts, False, key=lambda count: not self._fit(sizes[:count]))

    def _fit(self, sizes: Sequence[int]) -> bool:
        return self._outbox.has_room(sum(map(bool, sizes)), sum(sizes))
