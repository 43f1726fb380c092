"""Where a process spends its CPU time: what a thread has used since the last look counts for where it is now.

A tracing profiler would slow Python down and leave C alone, and it sees one thread; here many work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import FrameType

LOOK_SECONDS = 0.002
UNSEEN = "threads without Python"
OTHER = "other"


class CpuParts:
    """Collects CPU seconds by part from `start` to `stop`; can be started again.

    A part is named by pieces of what stands for a frame, `path/of/file.py:function`; a thread is in the part
    of its innermost frame that any part names, and of these the first. What threads use that run no Python,
    such as those of gRPC's core, is what the process used and no thread did.
    """

    def __init__(self, parts: Mapping[str, Sequence[str]]) -> None:
        self.seconds: Counter[str] = Counter()
        self._parts = parts
        self._known: dict[str, str] = {}
        self._used: dict[int, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._begun = 0.0

    def start(self) -> None:
        self._stopping.clear()
        self._used.clear()
        self._look(Counter())
        self._begun = time.process_time()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _work(self) -> None:
        found: Counter[str] = Counter()
        while not self._stopping.wait(LOOK_SECONDS):
            self._look(found)
        self._look(found)
        unseen = time.process_time() - self._begun - time.thread_time() - found.total()
        self.seconds += found + Counter({UNSEEN: max(unseen, 0.0)})

    def _look(self, found: Counter[str]) -> None:
        used = {}
        # The lock of the interpreter is held for longer than this takes, so that no thread ends meanwhile.
        for ident, frame in sys._current_frames().items():
            if ident == self._thread.ident:
                continue
            used[ident] = now = time.clock_gettime(time.pthread_getcpuclockid(ident))
            if (spent := now - self._used.get(ident, 0.0)) > 0:
                found[self._part(frame)] += spent
        self._used = used

    def _part(self, frame: FrameType | None) -> str:
        while frame is not None:
            place = f"{frame.f_code.co_filename}:{frame.f_code.co_name}"
            if place not in self._known:
                names = (name for name, marks in self._parts.items() if any(mark in place for mark in marks))
                self._known[place] = next(names, "")
            if part := self._known[place]:
                return part
            frame = frame.f_back
        return OTHER
