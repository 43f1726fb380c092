"""The engine as a process: signals, the subscription, and the exit code."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import uuid
from typing import Any

from pipeline.local_engine.engine import Engine
from pipeline.local_engine.report import Report
from pipeline.local_engine.runs import Build, GraphRuns
from pipeline.local_engine.signals import CANCELLED_EXIT_CODE, ENDED, Signals
from pipeline.local_engine.subscriber import Subscriber, SubscriptionError, open_channel
from pipeline.options import SigninOptions, Source

METRICS_SECONDS = 0.5
GARBAGE_OBJECTS = 50_000  # that are made before the youngest are looked through; Python's own bound is 700

_log = logging.getLogger(__name__)


class Session:
    """One job on this machine, from its start to its exit code."""

    def __init__(self, options: SigninOptions, build: Build, signals: Signals) -> None:
        self._options = options
        self._build = build
        self._signals = signals
        self._report = Report(sys.stdout)
        self._failure: BaseException | None = None
        self._own: Subscriber | None = None

    def run(self) -> int:
        """Runs until a signal or a failure: 0 drained, 1 failed. A cancel leaves the process, with 130."""
        runs = GraphRuns(self._build, self._options)
        self._report.graph(runs.transforms)
        _collect_seldom()
        self._signals.something_is_held()
        with open_channel() as channel:
            try:
                subscriber = self._subscriber(channel)
                engine = Engine(
                    subscriber, runs, self._report, id_label=self._options.deduplicating_attribute()
                )
                self._report.state("RUNNING")
                self._work(engine)
            except SubscriptionError as error:
                self._failure = error
            finally:
                self._delete_own()
        return self._conclude()

    def _subscriber(self, channel: Any) -> Subscriber:
        source: Source = self._options.source()
        if source.subscription:
            return Subscriber(channel, source.subscription)
        name = f"{self._options.job_name()}-{uuid.uuid4().hex[:8]}"
        subscriber = Subscriber(channel, f"projects/{self._options.project()}/subscriptions/{name}")
        subscriber.create(source.topic)
        self._own = subscriber
        return subscriber

    def _work(self, engine: Engine) -> None:
        thread = threading.Thread(target=self._guard, args=(engine,), name="engine", daemon=True)
        thread.start()
        while (event := self._signals.wait(METRICS_SECONDS)) != ENDED:
            if event == signal.SIGTERM:
                self._report.state("DRAINING")
                engine.drain()
            elif event == signal.SIGINT:
                self._cancel(engine)
            self._report.metrics()
        thread.join()

    def _guard(self, engine: Engine) -> None:
        try:
            engine.run()
        except BaseException as error:  # noqa: BLE001 - the main thread makes the exit code of it
            self._failure = error
        finally:
            self._signals.end()

    def _cancel(self, engine: Engine) -> None:
        """Leaves at once: the engine's thread may be in the middle of a write."""
        _log.info("Cancelled")
        try:
            engine.give_back()
            self._delete_own()
            self._report.metrics()
        except Exception:  # noqa: BLE001 - a cancel ends the process whatever else fails
            _log.warning("Not everything was given back", exc_info=True)
        sys.stderr.flush()
        os._exit(CANCELLED_EXIT_CODE)

    def _delete_own(self) -> None:
        if self._own:
            self._own.delete()
            self._own = None

    def _conclude(self) -> int:
        self._report.metrics()
        if self._failure is None:
            self._report.state("DRAINED")
            return 0
        if isinstance(self._failure, SubscriptionError):
            _log.error("%s", self._failure)
        else:
            _log.error("The engine failed", exc_info=self._failure)
        self._report.error(f"{type(self._failure).__name__}: {self._failure}"[:1000])
        return 1


def _collect_seldom() -> None:
    """Keeps the garbage collector from walking through all of Beam again and again.

    Tens of thousands of messages come and go, each an object that it counts, none of them in a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, 3, 3)
