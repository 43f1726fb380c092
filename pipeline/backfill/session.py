"""A backfill on this machine: batch after batch through the unchanged graph, until the files end."""

from __future__ import annotations

import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from pipeline.backfill.lines import LINE_ATTRIBUTE, Segment, Unreadable, read
from pipeline.local_engine.report import Report
from pipeline.local_engine.runs import GraphRuns
from pipeline.local_engine.signals import Signals

BATCH_LINES = 5_000
BATCH_BYTES = 16_000_000
METRICS_SECONDS = 0.5
ATTEMPTS = 4  # at one batch, as on Dataflow at one bundle of a batch job
PAUSE_SECONDS = 2.0  # after the first failure, doubled after each further one

_log = logging.getLogger(__name__)


class BackfillSession:
    """One job on this machine. A batch that cannot be written in four attempts fails it."""

    def __init__(self, runs: GraphRuns, signals: Signals) -> None:
        self._runs = runs
        self._signals = signals
        self._report = Report(sys.stdout)
        self._told = 0.0
        self._draining = False

    def run(self, files: list[tuple[str, int]]) -> int:
        """Reads the files in turn; returns the exit code: 0 done or drained, 1 failed."""
        self._report.state("RUNNING")
        try:
            for path, _ in files:
                for batch in batches(read(Segment(path))):
                    if self._is_draining():
                        break
                    self._write(path, batch)
                if self._is_draining():
                    break
                self._report.count("files_read")
        except Exception as error:  # noqa: BLE001 - the job ends with a sentence, whatever it is
            _log.error("The backfill failed", exc_info=error)
            self._report.error(str(error)[:1000])
            return 1
        finally:
            self._report.metrics()
        self._report.state("DRAINED" if self._draining else "DONE")
        return 0

    def _write(self, path: str, batch: list[Any]) -> None:
        """Runs the graph over the batch. Raises RuntimeError where that fails again and again."""
        for failures in itertools.count(1):
            try:
                self._report.add(self._runs.run(batch))
            except Exception as error:
                self._report.count("runs_failed")
                cause = str(error).strip().rsplit("\n", 1)[-1][:500] or type(error).__name__
                sentence = f"{len(batch)} lines from {place(path, batch[0])} on were not written: {cause}"
                if failures == ATTEMPTS:
                    raise RuntimeError(sentence) from error
                _log.warning("%s", sentence)
                self._report.error(sentence)
                self._hear(PAUSE_SECONDS * 2 ** (failures - 1))
            else:
                break
        self._report.count("lines_read", len(batch))
        if time.monotonic() - self._told > METRICS_SECONDS:
            self._told = time.monotonic()
            self._report.metrics()

    def _is_draining(self) -> bool:
        self._hear(0.0)
        return self._draining

    def _hear(self, seconds: float) -> None:
        """Waits for a SIGTERM; a SIGINT ends the process by itself, since nothing is held."""
        if self._signals.wait(seconds) == signal.SIGTERM and not self._draining:
            self._draining = True
            self._report.state("DRAINING")


def batches(lines: Iterator[Any]) -> Iterator[list[Any]]:
    """The lines in batches, bounded by number and by bytes."""
    batch: list[Any] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.payload if isinstance(line, Unreadable) else line.data)
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def place(path: str, line: Any) -> str:
    """Where a line lies, for a sentence."""
    attributes = line.attributes() if isinstance(line, Unreadable) else line.attributes
    return f"{path}, line {attributes[LINE_ATTRIBUTE]}"
