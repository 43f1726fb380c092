"""How long a Publish call may take before its events go to the outbox instead."""

from __future__ import annotations

_LEAST_SECONDS = 0.5
_FACTOR = 20
_SMOOTHING = 0.1


class Patience:
    """Follows the usual time of a call: 20 times that, at least half a second and at most `most_seconds`."""

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._usual: float | None = None

    def took(self, seconds: float) -> None:
        """Notes how long a call took that succeeded."""
        # The first calls also connect: one that is quicker than usual is believed at once.
        if self._usual is None or seconds < self._usual:
            self._usual = seconds
        else:
            self._usual += _SMOOTHING * (seconds - self._usual)

    def seconds(self) -> float:
        if self._usual is None:
            return self._most_seconds
        return min(self._most_seconds, max(_LEAST_SECONDS, _FACTOR * self._usual))
