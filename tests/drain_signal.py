"""SIGTERM as the sample jobs hear it."""

from __future__ import annotations

import signal
import time

POLL_SECONDS = 0.01


class DrainSignal:
    """Whether SIGTERM has come. Without a lock: a handler runs while the main thread may hold it."""

    def __init__(self):
        self._is_here = False

    def listen(self):
        signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_):
        self._is_here = True

    def wait(self, seconds):
        """Returns as soon as it is here, at the latest after `seconds`: whether it is."""
        deadline = time.monotonic() + seconds
        while not self._is_here and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        return self._is_here
