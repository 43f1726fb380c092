"""The loop: lease a micro-batch, run it, acknowledge it; isolate what cannot be run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
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

    batch_messages: int = 5_000
    prefetch_messages: int = 10_000
    prefetch_bytes: int = 64_000_000
    linger_seconds: float = 0.05  # between the starts of two runs; a message after a pause goes at once
    retry_seconds: float = 0.1  # before a failed batch is tried again as a whole
    max_pause_seconds: float = 5.0  # between failing runs, when nothing succeeds
    park_seconds: int = 60  # that a message which fails alone is kept away


class Engine:
    """Runs until it is drained. One instance, one subscription, one process."""

    def __init__(
        self,
        subscriber: Subscriber,
        runs: Runs,
        report: Report,
        *,
        id_label: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._subscriber = subscriber
        self._runs = runs
        self._report = report
        self._limits = limits or Limits()
        self._committed = CommittedIds(id_label)
        self._leases = Leases(subscriber, subscriber.ack_deadline_seconds())
        self._prefetch = Prefetch(
            subscriber,
            max_messages=self._limits.prefetch_messages,
            max_bytes=self._limits.prefetch_bytes,
            received=lambda messages, begun: self._leases.hold([m.ack_id for m in messages], begun),
            report_error=report.error,
        )
        self._draining = threading.Event()
        self._suspects: OrderedDict[str, None] = OrderedDict()  # message ids that failed alone
        self._failures = 0  # runs that failed since one succeeded
        self._expected_failures = math.ceil(math.log2(self._limits.batch_messages)) + 2
        self._works = False  # whether a run of the present batch succeeded

    def drain(self) -> None:
        """Asks for the end: no more is read, the batch under way is finished, the rest is given back."""
        self._draining.set()
        self._prefetch.wake()

    def give_back(self) -> None:
        """Gives all leases back at once, for a cancel."""
        self._draining.set()
        self._prefetch.stop()  # first, or a pull under way takes them again
        self._leases.close()

    def run(self) -> None:
        """Works until `drain`. Raises SubscriptionError when Pub/Sub refuses for good."""
        self._leases.start()
        self._prefetch.start()
        try:
            begun = 0.0
            while True:
                batch = self._prefetch.take(
                    self._limits.batch_messages, begun + self._limits.linger_seconds, self._draining.is_set
                )
                if not batch:
                    return
                begun = time.monotonic()
                self._process(batch)
        finally:
            self._draining.set()
            self._prefetch.stop()
            self._leases.close()

    def _process(self, batch: list[Any]) -> None:
        """Runs the batch; what failed alone before runs alone again, so that it holds up nobody.

        Where one single message after the other fails, the largest part is next: it may well work, and
        then what the graph writes to is there.
        """
        self._works = False
        parts = deque([batch])
        if self._suspects:
            parts = deque([m] for m in batch if m.message.message_id in self._suspects)
            innocent = [m for m in batch if m.message.message_id not in self._suspects]
            if innocent:
                parts.append(innocent)
        whole = parts[-1]
        while parts:
            is_stuck = self._failures > self._expected_failures and not self._works
            part = parts.popleft() if is_stuck else parts.pop()
            if self._attempt(part):
                continue
            if part is whole and not self._draining.is_set() and self._attempt(part):
                continue
            if self._draining.is_set():
                self._leases.give_back(m.ack_id for rest in (part, *parts) for m in rest)
                return
            if len(part) == 1:
                self._park(part[0])
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _attempt(self, received: list[Any]) -> bool:
        """Runs and acknowledges; False where the run failed. Nothing of a failed run is acknowledged."""
        fresh, ids = self._committed.split(m.message for m in received)
        try:
            counters = self._runs.run(fresh) if fresh else {}
        except Exception as error:  # noqa: BLE001 - a step's own error must not end the job
            self._fail(received, error)
            return False
        self._failures = 0
        self._works = self._works or bool(fresh)
        self._committed.add(ids)
        self._report.add(counters)
        if len(fresh) < len(received):
            self._report.count("duplicates_dropped", len(received) - len(fresh))
        self._acknowledge([m.ack_id for m in received])
        return True

    def _acknowledge(self, ack_ids: list[str]) -> None:
        try:
            self._subscriber.acknowledge(ack_ids)
            self._report.count("messages_acknowledged", len(ack_ids))
        except grpc.RpcError as error:
            sentence = f"{len(ack_ids)} messages were not acknowledged and will come again: {describe(error)}"
            _log.warning(sentence)
            self._report.error(sentence)
        self._leases.forget(ack_ids)

    def _fail(self, received: list[Any], error: Exception) -> None:
        # What is expected to fail says nothing of what the graph writes to, and is kept away afterwards.
        is_suspect = len(received) == 1 and received[0].message.message_id in self._suspects
        self._failures += not is_suspect
        self._report.count("runs_failed")
        cause = str(error).strip().rsplit("\n", 1)[-1][:500] or type(error).__name__
        sentence = f"A batch of {len(received)} messages failed: {cause}"
        _log.warning(sentence, exc_info=error if self._failures == 1 else None)
        self._report.error(sentence)
        # Bisecting to one poison message takes log2(batch) failures in a row and must be quick. Twice that
        # mean that what the graph writes to is away.
        expected = 2 * self._expected_failures
        pause = self._limits.retry_seconds if self._failures == 1 else 0.0
        if self._failures > expected:
            pause = min(0.25 * 2 ** min(self._failures - expected, 10), self._limits.max_pause_seconds)
        if not (is_suspect or self._works):
            self._draining.wait(jittered(pause))

    def _park(self, message: Any) -> None:
        seconds = self._limits.park_seconds
        sentence = f"Message {message.message.message_id} fails alone; it is tried again in {seconds} s"
        _log.error(sentence)
        self._report.error(sentence)
        self._report.count("messages_parked")
        self._suspects[message.message.message_id] = None
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)
        self._leases.park(message.ack_id, seconds)
