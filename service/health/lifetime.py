"""How far a process has come between its start and its end."""

from __future__ import annotations

import time


class Lifetime:
    """Warm once the first sign-in need not wait for an import; ending from the signal on.

    Signal handlers write here: only plain values, so that a reader never sees half of one.
    """

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self.warm_after_seconds: float | None = None
        self.ending_since: float | None = None

    def warmed_up(self) -> None:
        self.warm_after_seconds = time.monotonic() - self._began_at

    def end(self) -> None:
        self.ending_since = time.monotonic()

    @property
    def is_ending(self) -> bool:
        return self.ending_since is not None
