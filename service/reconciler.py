"""The loop that compares what was asked for with what Dataflow says, until both agree."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

from service import job_store
from service.config import Settings
from service.dataflow import Dataflow, DataflowError, RefusedError, SeenJob
from service.db import Database
from service.errors import DatabaseUnavailableError
from service.job_control import JobControl
from service.job_store import Entry
from service.metrics import Metrics
from service.models import utc_now

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
_JITTER = 0.2
_WAKE_SPACING_SECONDS = 0.05


class Reconciler:
    """Looks at every active job in turn. Ticks of several loops at once do no harm, only double work."""

    def __init__(
        self,
        database: Database,
        dataflow: Dataflow,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
        metrics: Metrics | None = None,
    ) -> None:
        self._tick_seconds = (metrics or Metrics()).tick_seconds
        self.control = JobControl(database, dataflow, settings, clock)
        self._database = database
        self._dataflow = dataflow
        self._interval = settings.reconcile_interval_seconds
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Makes the next tick come at once; within the event loop of `run` only."""
        self._woken.set()

    async def run(self) -> None:
        """Ticks until it is cancelled; pauses grow to a minute while Dataflow or the database is away."""
        failures = 0
        while True:
            started = time.perf_counter()
            outcome = "failed"
            try:
                outcome = "complete" if await self.tick() else "incomplete"
            except DatabaseUnavailableError:
                pass
            except Exception:
                log.exception("a tick of the reconciler broke")
            failures = 0 if outcome == "complete" else failures + 1
            self._tick_seconds.cell(outcome).observe(time.perf_counter() - started)
            await self._pause(failures)

    async def tick(self) -> bool:
        """One look at every active job; False where Dataflow could not be asked about some of them.

        Calls ListJobs once for each region that has launched jobs, and GetJob for single jobs only
        where they are in transition or gone from the list.
        """
        at = self._clock()
        async with self._database.session() as session:
            entries = await job_store.active(session)
        regions: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            regions[entry.job.project, entry.job.region].append(entry)
        unchanged: list[str] = []
        answered = True
        for (project, region), jobs in regions.items():
            answered &= await self._tick_region(project, region, jobs, unchanged)
        if unchanged:
            async with self._database.transaction() as session:
                await job_store.touch(session, unchanged, at)
        return answered

    async def _tick_region(self, project: str, region: str, jobs: list[Entry], unchanged: list[str]) -> bool:
        """Looks at the jobs of one region and adds the ids of those that are as they were."""
        listed: dict[str, SeenJob] = {}
        try:
            if any(entry.attempt.dataflow_job_id for entry in jobs):
                listed = await self._dataflow.list_active(project, region)
        except DataflowError as error:
            log.warning("Dataflow in %s cannot be asked: %s", region, error.status or error.detail)
            return False
        answered = True
        for entry in jobs:
            try:
                if await self.control.look(entry, listed):
                    unchanged.append(entry.job.id)
            except DataflowError as error:
                log.warning("job %s cannot be looked at: %s", entry.job.id, error.status or error.detail)
                if not isinstance(error, RefusedError):
                    return False  # the others would fail alike, and each could take a whole deadline
                answered = False
        return answered

    async def _pause(self, failures: int) -> None:
        pause = min(self._interval * 2 ** min(failures, 10), max(LONGEST_PAUSE_SECONDS, self._interval))
        pause *= random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 -- spreads replicas, hides nothing
        try:
            async with asyncio.timeout(pause):
                await self._woken.wait()
                await asyncio.sleep(_WAKE_SPACING_SECONDS)  # many wakes at once make one tick
        except TimeoutError:
            pass
        self._woken.clear()
