"""The numbers of one process, counted within its event loop: no locks, an addition or two for each event.

A label set is looked up once and its cell kept by whoever counts often.
"""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from service.errors import PublishRefusedError
from service.metrics import families, process
from service.metrics.families import Family
from service.metrics.shared import Gauges, Region, Snapshot

Labels = tuple[str, ...]
FLUSH_SECONDS = 1.0
_LAG_LOOKS = 4  # how often within that time the event loop is asked how late it is
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_SINGLE_SIGNINS = "/events/signin"
_DIRECT = frozenset((_SINGLE_SIGNINS, "/events/signin/batch"))  # answered without a router


class Cell:
    """One number that grows; `cell.value += n` is all there is to it."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Counter:
    """A number for each set of label values; these come from bounded sets, never from a caller."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.cells: dict[Labels, Cell] = {}

    def cell(self, *labels: str) -> Cell:
        found = self.cells.get(labels)
        if found is None:
            found = self.cells[labels] = Cell()
        return found

    def add(self, *labels: str, count: float = 1) -> None:
        self.cell(*labels).value += count


class Buckets:
    """How many values lie in each bucket, and their sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Histogram:
    """Buckets for each set of label values."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.cells: dict[Labels, Buckets] = {}

    def cell(self, *labels: str) -> Buckets:
        found = self.cells.get(labels)
        if found is None:
            found = self.cells[labels] = Buckets(self.family.bounds)
        return found


class Metrics:
    """All that one process counts; `region` is where it shows that to the others, if there are any.

    What a worker before this one has counted there is taken over, so that no sum ever falls.
    """

    def __init__(self, region: Region | None = None) -> None:
        self.requests = Counter(families.REQUESTS)
        self.request_seconds = Histogram(families.REQUEST_SECONDS)
        self.problems = Counter(families.PROBLEMS)
        self.refused_connections = Counter(families.REFUSED_CONNECTIONS)
        self.events = Counter(families.EVENTS)
        self.publish_seconds = Histogram(families.PUBLISH_SECONDS)
        self.publish_messages = Histogram(families.PUBLISH_MESSAGES)
        self.breaker_opened = Counter(families.BREAKER_OPENED)
        self.outbox_commit_seconds = Histogram(families.OUTBOX_COMMIT_SECONDS)
        self.relayed = Counter(families.RELAYED)
        self.tick_seconds = Histogram(families.TICK_SECONDS)
        self.dataflow_seconds = Histogram(families.DATAFLOW_SECONDS)
        self.outbox_wait_seconds = Histogram(families.OUTBOX_WAIT_SECONDS)
        self.replayed = Counter(families.REPLAYED)
        self.jobs_ended = Counter(families.JOBS_ENDED)
        self.loop_lag_seconds = Histogram(families.LOOP_LAG_SECONDS)
        self.cpu = Counter(families.CPU)
        # Asked for their numbers at each snapshot, by the name of the gauge.
        self.gauges: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        everything = list(vars(self).values())
        self._counters = {each.family.name: each for each in everything if isinstance(each, Counter)}
        self._histograms = {each.family.name: each for each in everything if isinstance(each, Histogram)}
        self._region = region
        self.began_at = time.time()  # of the count, which is older than this process where it was taken over
        if region and (before := region.own()):
            self._take_over(before)
        self.published = self.events.cell("published", "")
        self.spooled = self.events.cell("spooled", "")
        self.events.cell("refused", PublishRefusedError.code)  # an alert wants a zero before the one
        self._batches = self.publish_messages.cell()
        self._lag = self.loop_lag_seconds.cell()
        self._cpu_before = self.cpu.cell().value  # of the processes whose place this one took
        self._answers: dict[tuple[str, str, int], tuple[Cell, Buckets]] = {}

    def request_answered(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Counts a request and the status of its answer."""
        method, route = scope["method"], route_of(scope)
        if method not in METHODS:
            method = "other"
        key = (method, route, status)
        cells = self._answers.get(key)
        if cells is None:
            cells = (self.requests.cell(method, route, str(status)), self.request_seconds.cell(method, route))
            self._answers[key] = cells
        cells[0].value += 1
        cells[1].observe(seconds)

    def problem_answered(self, scope: MutableMapping[str, Any], code: str) -> None:
        """Counts a problem document, and the sign-in that was refused with it where it is a single one."""
        route = route_of(scope)
        self.problems.add(route, code)
        if route == _SINGLE_SIGNINS and scope["method"] == "POST":
            self.events.add("refused", code)

    def events_refused(self, codes: Iterable[str]) -> None:
        """Counts events of a batch that were not taken, by the codes of their errors."""
        for code in codes:
            self.events.add("refused", code)

    def publish_called(self, messages: int, seconds: float, status: str = "OK") -> None:
        """Counts a Publish call of so many messages that ended with this gRPC status."""
        self.publish_seconds.cell(status).observe(seconds)
        self._batches.observe(messages)

    @contextmanager
    def dataflow_call(self, method: str) -> Iterator[None]:
        """Counts the call that the block makes; its errors tell their gRPC status as `status`."""
        started = time.perf_counter()
        code = "UNKNOWN"
        try:
            yield
            code = "OK"
        except Exception as error:
            code = getattr(error, "status", "") or code
            raise
        finally:
            self.dataflow_seconds.cell(method, code).observe(time.perf_counter() - started)

    def breaker_is(self, state: Callable[[], str]) -> None:
        """Names the function that tells the state of this process's circuit breaker."""
        self.gauges[families.BREAKER.name] = lambda: {(state(),): 1}

    def tells(self, family: Family, value: Callable[[], float | None]) -> None:
        """Names the function that tells a gauge without labels; None where there is nothing to tell."""

        def told() -> Mapping[Labels, float]:
            found = value()
            return {} if found is None else {(): found}

        self.gauges[family.name] = told

    def snapshot(self, at: float) -> Snapshot:
        """The numbers as they are at `at` (seconds of the monotonic clock)."""
        self.cpu.cell().value = self._cpu_before + process.cpu_seconds()
        return Snapshot(
            at=at,
            pid=os.getpid(),
            counters={
                name: [(labels, cell.value) for labels, cell in counter.cells.items()]
                for name, counter in self._counters.items()
            },
            histograms={
                name: [(labels, cell.counts, cell.sum) for labels, cell in histogram.cells.items()]
                for name, histogram in self._histograms.items()
            },
            gauges=self._gauges(),
            began_at=self.began_at,
        )

    def _gauges(self) -> Gauges:
        found = {name: list(ask().items()) for name, ask in self.gauges.items()}
        of_process = {**process.gauges(), families.PROCESSES.name: 1.0}
        return found | {name: [((), value)] for name, value in of_process.items()}

    def _take_over(self, before: Snapshot) -> None:
        self.began_at = before.began_at
        for name, cells in before.counters.items():
            if name in self._counters:
                for labels, value in cells:
                    self._counters[name].add(*labels, count=value)
        for name, buckets in before.histograms.items():
            if name in self._histograms:
                for labels, counts, total in buckets:
                    mine = self._histograms[name].cell(*labels)
                    if len(mine.counts) == len(counts):
                        mine.counts, mine.sum = list(counts), total

    @property
    def speaks_for_all(self) -> bool:
        """Whether this process is the one of its service that sends the numbers of all."""
        return self._region is None or self._region.index == 0

    def everybody(self) -> list[Snapshot]:
        """The numbers of all processes of the service, this one's as they are now."""
        now = self.snapshot(time.monotonic())
        if self._region is None:
            return [now]
        self._region.write(now)
        return [now, *self._region.others()]

    async def run(self) -> None:
        """Watches the event loop, and shows the numbers to the other processes, until it is cancelled."""
        try:
            while True:
                if self._region:
                    self._region.write(self.snapshot(time.monotonic()))
                for _ in range(_LAG_LOOKS):
                    asked_at = time.monotonic() + FLUSH_SECONDS / _LAG_LOOKS
                    await asyncio.sleep(FLUSH_SECONDS / _LAG_LOOKS)
                    self._lag.observe(max(0.0, time.monotonic() - asked_at))
        finally:
            if self._region:
                self._region.write(self.snapshot(float("-inf")))  # the gauges end with the process


def route_of(scope: MutableMapping[str, Any]) -> str:
    """The path of the route that took a request, with names in the place of values; empty where none did."""
    path: str = scope["path"]
    if path in _DIRECT:
        return path
    route = scope.get("route")
    return "" if route is None else str(route.path)
