"""The loop that compares what was asked for with what Dataflow says, until both agree."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from service import job_store
from service.config import Settings
from service.dataflow import Dataflow, DataflowError, RefusedError, SeenJob
from service.db import Database
from service.errors import DatabaseUnavailableError
from service.job_control import JobControl, costs_calls
from service.job_store import Lineage
from service.job_watch import JobWatch
from service.lease import Lease
from service.metrics import Metrics
from service.models import utc_now

if TYPE_CHECKING:
    from service.spans import Traces

log = logging.getLogger(__name__)

LEASE = "reconciler"
LONGEST_PAUSE_SECONDS = 60.0
RELEASE_SECONDS = 2.0
_JITTER = 0.2
_WAKE_SPACING_SECONDS = 0.05


@dataclass(slots=True)
class _Region:
    """How Dataflow in one region has answered: nothing is asked there before `not_before`."""

    failures: int = 0
    not_before: datetime | None = None


@dataclass(slots=True)
class _Tick:
    """One look at all jobs; `unchanged` are the ids of those that are as they were."""

    at: datetime
    last_call: int
    unchanged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TickReport:
    """A look at all jobs that has ended; `outcome` is complete, incomplete or failed."""

    ended_at: datetime
    seconds: float
    outcome: str


class Reconciler:
    """Looks at every active job in turn; a lease lets one replica do it.

    Ticks of several loops at once do no harm, only double work.
    """

    def __init__(
        self,
        database: Database,
        dataflow: Dataflow,
        settings: Settings,
        clock: Callable[[], datetime] | None = None,
        metrics: Metrics | None = None,
        traces: Traces | None = None,
    ) -> None:
        metrics = metrics or Metrics()
        self._traces = traces
        self._tick_seconds = metrics.tick_seconds
        self.control = JobControl(database, dataflow, settings, clock or utc_now)
        self.lease = Lease(database, LEASE, settings.reconcile_lease_seconds, clock)
        self.watch = JobWatch(metrics, self.lease, settings, clock or utc_now)
        self._database = database
        self._dataflow = dataflow
        self.last_tick: TickReport | None = None
        self._interval = settings.reconcile_interval_seconds
        self._max_calls = settings.reconcile_max_calls
        self._clock = clock or utc_now
        self._woken = asyncio.Event()
        self._regions: dict[tuple[str, str], _Region] = defaultdict(_Region)
        self._turns: dict[str, int] = {}
        self._turn = 0

    def wake(self) -> None:
        """Makes the next tick come at once; within the event loop of `run` only."""
        self._woken.set()

    async def run(self) -> None:
        """Ticks until it is cancelled, while it has the lease; pauses grow while the database is away."""
        failures = 0
        try:
            while True:
                try:
                    await self.tick_alone()
                    failures = 0
                except DatabaseUnavailableError:
                    failures += 1
                except Exception:
                    failures += 1
                    log.exception("a tick of the reconciler broke")
                await self._pause(failures)
        finally:
            with suppress(DatabaseUnavailableError, TimeoutError):
                async with asyncio.timeout(RELEASE_SECONDS):
                    await self.lease.release()

    async def tick_alone(self) -> bool:
        """A tick, unless another replica has the lease; False where there was none, or it was not whole."""
        if not await self.lease.take():
            self.watch.lose()
            return False
        async with self.lease.kept():
            started, outcome = time.perf_counter(), "failed"
            try:
                with self._traces.tick() if self._traces else nullcontext():
                    whole = await self.tick()
                outcome = "complete" if whole else "incomplete"
            finally:
                seconds = time.perf_counter() - started
                self._tick_seconds.cell(outcome).observe(seconds)
                self.last_tick = TickReport(self._clock(), round(seconds, 3), outcome)
            return whole

    async def tick(self) -> bool:
        """One look at every active job; False where Dataflow could not be asked about some of them.

        Calls ListJobs once for each region that has launched jobs, and GetJob for single jobs only
        where they are in transition or gone from the list; those that had no turn for longest first,
        until the budget of calls is spent. A region that fails is left alone for a growing while.
        """
        async with self._database.session() as session:
            lineages = await job_store.active(session)
            await self.watch.take(session, lineages)
        regions: dict[tuple[str, str], list[Lineage]] = defaultdict(list)
        for lineage in lineages:
            regions[lineage.job.project, lineage.job.region].append(lineage)
        self._turns = {lineage.job.id: self._turns.get(lineage.job.id, 0) for lineage in lineages}
        tick = _Tick(self._clock(), self._dataflow.calls + self._max_calls)
        outcomes = await asyncio.gather(
            *(self._tick_region(place, jobs, tick) for place, jobs in regions.items()), return_exceptions=True
        )
        if tick.unchanged:
            await self._touch(tick)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return all(outcomes)

    async def _tick_region(self, place: tuple[str, str], jobs: list[Lineage], tick: _Tick) -> bool:
        region = self._regions[place]
        if region.not_before is not None and tick.at < region.not_before:
            return False
        try:
            answered = await self._ask_region(place, jobs, tick)
        except DataflowError as error:
            region.failures += 1
            pause = self._longer(region.failures)
            region.not_before = self._clock() + timedelta(seconds=pause)
            log.warning(
                "Dataflow in %s cannot be asked (%s); again in %.0f s", place[1], error.status or error, pause
            )
            return False
        region.failures, region.not_before = 0, None
        return answered

    async def _ask_region(self, place: tuple[str, str], jobs: list[Lineage], tick: _Tick) -> bool:
        """Looks at the jobs of one region; False where Dataflow refuses to tell of some.

        Raises DataflowError where the rest would fail alike, each with a whole deadline.
        """
        listed: dict[str, SeenJob] = {}
        if any(attempt.dataflow_job_id for lineage in jobs for attempt in lineage.open):
            listed = await self._dataflow.list_active(*place)
        answered = True
        for lineage in sorted(jobs, key=lambda lineage: self._turns[lineage.job.id]):
            try:
                await self._look(lineage, listed, tick)
            except RefusedError as error:  # of this job alone: the others may still be asked about
                log.warning("job %s cannot be looked at: %s", lineage.job.id, error.status or error.detail)
                answered = False
            except (DataflowError, DatabaseUnavailableError):
                raise  # not of this job alone
            except Exception:  # whatever is wrong with this job, the others must not wait for it
                log.exception("the look at job %s broke", lineage.job.id)
                answered = False
        return answered

    async def _look(self, lineage: Lineage, listed: Mapping[str, SeenJob], tick: _Tick) -> None:
        if costs_calls(lineage, listed):
            if self._dataflow.calls >= tick.last_call:
                return
            self._turn += 1
            self._turns[lineage.job.id] = self._turn
        if await self.control.look(lineage, listed):
            tick.unchanged.append(lineage.job.id)

    async def _touch(self, tick: _Tick) -> None:
        """Notes when the unchanged jobs were seen, unless another replica has seen them since."""
        async with self._database.transaction() as session:
            if self.lease.token is None or await self.lease.holds(session):
                await job_store.touch(session, tick.unchanged, tick.at)

    async def _pause(self, failures: int) -> None:
        """Waits for the next look; the lease is kept, for the pause may be the longer one."""
        kept = self.lease.kept() if self.lease.token is not None else nullcontext()
        try:
            async with kept, asyncio.timeout(self._longer(failures)):
                await self._woken.wait()
                await asyncio.sleep(_WAKE_SPACING_SECONDS)  # many wakes at once make one tick
        except TimeoutError:
            pass
        self._woken.clear()

    def _longer(self, failures: int) -> float:
        """Seconds until the next try after so many failures, spread so that replicas do not meet."""
        doublings: int = 2 ** min(failures, 10)
        pause = min(self._interval * doublings, max(LONGEST_PAUSE_SECONDS, self._interval))
        return pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- hides nothing
