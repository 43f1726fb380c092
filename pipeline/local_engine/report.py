"""What the engine tells whoever started it: JSON lines on standard output."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from pipeline.local_engine.runs import Counted, CounterKey, Distribution

NAMESPACE = "local_engine"


class Report:
    """The engine's state, errors and counters. Thread-safe. Counters and distributions begin at the start."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._counted: dict[CounterKey, int | Distribution] = {}
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

    def add(self, counted: Counted) -> None:
        """Adds what one successful run counted."""
        with self._lock:
            for key, value in counted.items():
                before = self._counted.get(key)
                if isinstance(value, Distribution):
                    self._counted[key] = (
                        before.with_values_of(value) if isinstance(before, Distribution) else value
                    )
                else:
                    self._counted[key] = value + (before if isinstance(before, int) else 0)
            self._changed = True

    def metrics(self) -> None:
        """Writes all counters, if any changed since the last time."""
        with self._lock:
            if not self._changed:
                return
            self._changed = False
            counters = [
                {**key._asdict(), "value": asdict(value) if isinstance(value, Distribution) else value}
                for key, value in self._counted.items()
            ]
        self._write({"event": "metrics", "counters": counters})

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps(event) + "\n"
        with self._lock:
            self._out.write(line)
            self._out.flush()
