"""One of the batches under way: taken, run, acknowledged; what cannot be run is isolated."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from pipeline.local_engine.deduplication import CommittedIds
from pipeline.local_engine.leases import Leases
from pipeline.local_engine.prefetch import Prefetch
from pipeline.local_engine.report import Report
from pipeline.local_engine.subscriber import Subscriber, describe, jittered

MAX_SUSPECTS = 1_000
_log = logging.getLogger(__name__)


class Runs(Protocol):
    """What runs the graph over one batch of raw messages; returns the counters or raises."""

    def run(self, messages: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Limits:
    """Sizes in messages and bytes, times in seconds."""

    lanes: int = 2  # batches at once: one decodes while BigQuery takes the other's rows
    batch_messages: int = 10_000
    prefetch_messages: int = 20_000
    prefetch_bytes: int = 64_000_000
    linger_seconds: float = 0.05  # between the starts of two runs; a message after a pause goes at once
    retry_seconds: float = 0.1  # before a failed batch is tried again as a whole
    max_pause_seconds: float = 5.0  # between failing runs, when nothing succeeds
    park_seconds: int = 60  # that a message which fails alone is kept away


class Suspects:
    """The ids of the last messages that failed alone. Thread-safe."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._ids

    def add(self, message_id: str) -> None:
        """Remembers one; beyond the bound the first is forgotten."""
        with self._lock:
            self._ids[message_id] = None
            if len(self._ids) > MAX_SUSPECTS:
                self._ids.popitem(last=False)


@dataclass(frozen=True)
class Workplace:
    """What all lanes of an engine share."""

    subscriber: Subscriber
    runs: Runs
    report: Report
    limits: Limits
    committed: CommittedIds
    leases: Leases
    prefetch: Prefetch
    draining: threading.Event
    suspects: Suspects = field(default_factory=Suspects)


class Lane:
    """Works on one batch after the other until the engine drains."""

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._limits = place.limits
        self._failures = 0  # runs that failed since one succeeded
        self._expected_failures = math.ceil(math.log2(self._limits.batch_messages)) + 2
        self._works = False  # whether a run of the present batch succeeded

    def run(self) -> None:
        """Raises what ended the pulling."""
        place = self._place
        while batch := place.prefetch.take(
            self._limits.batch_messages, self._limits.linger_seconds, place.draining.is_set
        ):
            self._process(batch)

    def _process(self, batch: list[Any]) -> None:
        """Runs the batch; what failed alone before runs alone again, so that it holds up nobody.

        Where one single message after the other fails, the largest part is next: it may well work, and
        then what the graph writes to is there.
        """
        self._works = False
        parts = deque([batch])
        suspects = self._place.suspects
        if suspects:
            parts = deque([m] for m in batch if m.message.message_id in suspects)
            innocent = [m for m in batch if m.message.message_id not in suspects]
            if innocent:
                parts.append(innocent)
        whole = parts[-1]
        while parts:
            is_stuck = self._failures > self._expected_failures and not self._works
            part = parts.popleft() if is_stuck else parts.pop()
            if self._attempt(part):
                continue
            if part is whole and not self._place.draining.is_set() and self._attempt(part):
                continue
            if self._place.draining.is_set():
                self._place.leases.give_back(m.ack_id for rest in (part, *parts) for m in rest)
                return
            if len(part) == 1:
                self._park(part[0])
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _attempt(self, received: list[Any]) -> bool:
        """Runs and acknowledges; False where the run failed. Nothing of a failed run is acknowledged."""
        place = self._place
        fresh, ids = place.committed.claim([m.message for m in received])
        counters: Any = None
        failure: Exception | None = None
        try:
            counters = place.runs.run(fresh) if fresh else {}
        except Exception as error:  # noqa: BLE001 - a step's own error must not end the job
            failure = error
        finally:
            place.committed.settle(ids, committed=counters is not None)
        if failure:
            self._fail(received, failure)
            return False
        self._failures = 0
        self._works = self._works or bool(fresh)
        place.report.add(counters)
        if len(fresh) < len(received):
            place.report.count("duplicates_dropped", len(received) - len(fresh))
        self._acknowledge([m.ack_id for m in received])
        return True

    def _acknowledge(self, ack_ids: list[str]) -> None:
        try:
            self._place.subscriber.acknowledge(ack_ids)
            self._place.report.count("messages_acknowledged", len(ack_ids))
        except grpc.RpcError as error:
            sentence = f"{len(ack_ids)} messages were not acknowledged and will come again: {describe(error)}"
            _log.warning(sentence)
            self._place.report.error(sentence)
        self._place.leases.forget(ack_ids)

    def _fail(self, received: list[Any], error: Exception) -> None:
        # What is expected to fail says nothing of what the graph writes to, and is kept away afterwards.
        is_suspect = len(received) == 1 and received[0].message.message_id in self._place.suspects
        self._failures += not is_suspect
        self._place.report.count("runs_failed")
        cause = str(error).strip().rsplit("\n", 1)[-1][:500] or type(error).__name__
        sentence = f"A batch of {len(received)} messages failed: {cause}"
        _log.warning(sentence, exc_info=error if self._failures == 1 else None)
        self._place.report.error(sentence)
        # Bisecting to one poison message takes log2(batch) failures in a row and must be quick. Twice that
        # mean that what the graph writes to is away.
        expected = 2 * self._expected_failures
        pause = self._limits.retry_seconds if self._failures == 1 else 0.0
        if self._failures > expected:
            pause = min(0.25 * 2 ** min(self._failures - expected, 10), self._limits.max_pause_seconds)
        if not (is_suspect or self._works):
            self._place.draining.wait(jittered(pause))

    def _park(self, message: Any) -> None:
        seconds = self._limits.park_seconds
        sentence = f"Message {message.message.message_id} fails alone; it is tried again in {seconds} s"
        _log.error(sentence)
        self._place.report.error(sentence)
        self._place.report.count("messages_parked")
        self._place.suspects.add(message.message.message_id)
        self._place.leases.park(message.ack_id, seconds)
