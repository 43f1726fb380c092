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


class Room:
    """What the outbox has room for; it may be smaller than a batch, and parked events may take most of it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def can_ever_hold(self, letter: Letter) -> bool:
        """Whether an empty outbox has room for the letter."""
        return _demand([letter])[1] <= self._outbox.max_bytes

    def fitting(self, letters: Sequence[Letter]) -> list[Letter]:
        """All letters, or the first of them where nothing waits whose end would make more room.

        None while the outbox has much to do, or where not even one has room now.
        """
        waiting = self._outbox.waiting
        if waiting > MOST_WAITING_EVENTS or (waiting > 0 and self._outbox.bytes > MOST_WAITING_BYTES):
            return []
        if self._fit(letters):
            return list(letters)
        if waiting > 0:
            return []
        counts = range(1, len(letters))
        return list(letters[: bisect.bisect(counts, False, key=lambda count: not self._fit(letters[:count]))])

    def _fit(self, letters: Sequence[Letter]) -> bool:
        return self._outbox.has_room(*_demand(letters))


def _demand(letters: Sequence[Letter]) -> tuple[int, int]:
    """How many rows and about how many bytes of the outbox the letters take."""
    sizes = [len(letter.payload) + _ATTRIBUTES_BYTES for letter in letters if not letter.unreplayable]
    return len(sizes), sum(sizes)
