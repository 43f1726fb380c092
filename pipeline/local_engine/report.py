"""What the engine tells whoever started it: JSON lines on standard output."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from pipeline.local_engine.runs import CounterKey

NAMESPACE = "local_engine"


class Report:
    """The engine's state, errors and counters. Thread-safe. Counters are sums since the start."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._counters: Counter[CounterKey] = Counter()
        self._changed = False

    def state(self, state: str) -> None:
        """RUNNING, DRAINING or DRAINED."""
        self._write({"event": "state", "state": state})

    def graph(self, transforms: Sequence[str]) -> None:
        """The full names of the graph's steps: what a replacement of this job must fit."""
        self._write({"event": "graph", "transforms": list(transforms)})

    def error(self, message: str) -> None:
        """Something that keeps messages waiting, or ends the job."""
        self._write({"event": "error", "message": message})

    def count(self, name: str, number: int = 1) -> None:
        """Adds to one of the engine's own counters."""
        self.add({CounterKey(NAMESPACE, name, ""): number})

    def add(self, counters: Mapping[CounterKey, int]) -> None:
        """Adds what one successful run counted."""
        with self._lock:
            self._counters.update(counters)
            self._changed = True

    def metrics(self) -> None:
        """Writes all counters, if any changed since the last time."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            counters = [{**key._asdict(), "value": value} for key, value in self._counters.items()]
        self._write({"event": "metrics", "counters": counters})

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps(event) + "\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()
