"""SIGTERM and SIGINT, heard from the first moment of the process and acted upon when it is ready."""

from __future__ import annotations

import os
import select
import signal
from types import FrameType

ENDED = 0
CANCELLED_EXIT_CODE = 130


class Signals:
    """SIGTERM and SIGINT as bytes in a pipe, from the moment on that this is made.

    A handler runs between any two instructions of the main thread and must not take a lock.
    """

    def __init__(self) -> None:
        self._holding = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous = {
            number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and not self._holding:
            os._exit(CANCELLED_EXIT_CODE)  # a start that waits for a server shall not keep anybody waiting
        os.write(self._write, bytes([number]))

    def something_is_held(self) -> None:
        """From now on a SIGINT has to be waited for, because there is something to give back."""
        self._holding = True

    def end(self) -> None:
        """Makes `wait` return `ENDED`; for the engine's thread."""
        os.write(self._write, bytes([ENDED]))

    def wait(self, seconds: float) -> int | None:
        """The next signal's number, `ENDED`, or None when the time is over."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        return os.read(self._read, 1)[0] if ready else None

    def close(self) -> None:
        """Puts the handlers back that were there before; a second call does nothing."""
        if not self._previous:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        os.close(self._read)
        os.close(self._write)
