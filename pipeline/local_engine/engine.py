"""The engine: pulls ahead, leases, and lanes that work on one batch each."""

from __future__ import annotations

import threading

from pipeline.local_engine.deduplication import CommittedIds
from pipeline.local_engine.lane import Lane, Limits, Runs, Workplace
from pipeline.local_engine.leases import Leases
from pipeline.local_engine.prefetch import Prefetch
from pipeline.local_engine.report import Report
from pipeline.local_engine.subscriber import Subscriber


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
        self._limits = limits or Limits()
        self._report = report
        self._leases = Leases(subscriber, subscriber.ack_deadline_seconds())
        self._prefetch = Prefetch(
            subscriber,
            max_messages=self._limits.prefetch_messages,
            max_bytes=self._limits.prefetch_bytes,
            received=lambda messages, begun: self._leases.hold([m.ack_id for m in messages], begun),
            report_error=report.error,
        )
        self._draining = threading.Event()
        self._place = Workplace(
            subscriber,
            runs,
            report,
            self._limits,
            CommittedIds(id_label),
            self._leases,
            self._prefetch,
            self._draining,
        )
        self._failure: BaseException | None = None

    def drain(self) -> None:
        """Asks for the end: no more is read, the batches under way are finished, the rest is given back."""
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
        lanes = [
            threading.Thread(target=self._work, name=f"lane {number}", daemon=True)
            for number in range(self._limits.lanes)
        ]
        try:
            for lane in lanes:
                lane.start()
            for lane in lanes:
                lane.join()
        finally:
            self._draining.set()
            self._prefetch.stop()
            self._leases.close()
        if self._failure:
            raise self._failure

    def _work(self) -> None:
        try:
            Lane(self._place).run()
        except BaseException as error:  # noqa: BLE001 - it is raised again by `run`
            self._failure = self._failure or error
            self.drain()
