"""The acts on one job: intend, act, record.

What is meant is committed before Dataflow is called, and what came of it after; no transaction is open
during a call. Whoever writes names the version that it has read and writes nothing over a newer one, so
requests, ticks and replicas may meet on one job.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial

from service.config import Settings
from service.dataflow import CONNECT_SECONDS, Dataflow, RefusedError, SeenJob
from service.db import Database
from service.job_control.adoption import Adoption
from service.job_control.launching import Launching
from service.job_control.looking import Looking
from service.job_control.means import Means
from service.job_control.stopping import DrainPolicy, Stopping
from service.job_control.updating import UpdateRequest, Updating
from service.job_state import StopAction
from service.job_store import Lineage
from service.models import Job, utc_now
from service.pipelines import is_batch


class JobControl:
    """The acts on one job; keeps nothing in memory, so any replica may go on with any job."""

    def __init__(
        self,
        database: Database,
        dataflow: Dataflow,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        # A launch under way may still take effect until it breaks off: no second one before.
        grace = timedelta(
            seconds=max(settings.launch_grace_seconds, settings.dataflow_deadline_seconds + CONNECT_SECONDS)
        )
        means = Means(database, dataflow, clock, grace, partial(is_batch, settings))
        self._launching = Launching(means)
        self._stopping = Stopping(means)
        self._updating = Updating(means, self._launching)
        self._looking = Looking(means, self._launching, self._stopping, self._updating)
        self._adoption = Adoption(means)

    async def launch(self, job: Job) -> RefusedError | None:
        """Launches a job whose row is committed; returns Dataflow's refusal, if that is what came of it.

        Does nothing where somebody else has changed the job since `job` was read.
        """
        return await self._launching.launch(job.id, job.attempt, job.version)

    async def look(self, lineage: Lineage, listed: Mapping[str, SeenJob]) -> bool:
        """Compares a job with what Dataflow says; True where it was seen as it was. Raises DataflowError."""
        return await self._looking.look(lineage, listed)

    async def stop(
        self,
        job_id: str,
        action: StopAction,
        actor: str,
        *,
        deadline_seconds: int | None = None,
        on_deadline: DrainPolicy | None = None,
    ) -> bool:
        """Commits what is asked for, then asks Dataflow; False where it was so already.

        A drain may have a deadline, counted from now, and a policy of what follows then. Raises
        JobNotFoundError and ActionNotAllowedError.
        """
        return await self._stopping.stop(job_id, action, actor, deadline_seconds, on_deadline)

    async def force_cancel(self, job_id: str, actor: str) -> bool:
        """Cancels without waiting for the workers, at the earliest 30 minutes after the cancel.

        False where it was so already. Raises JobNotFoundError and ActionNotAllowedError.
        """
        return await self._stopping.force_cancel(job_id, actor)

    async def update(self, job_id: str, asked: UpdateRequest, actor: str) -> RefusedError | None:
        """Replaces the running job in place; returns Dataflow's refusal, if that is what came of it.

        Raises JobNotFoundError, ActionNotAllowedError and InvalidRequestError.
        """
        return await self._updating.update(job_id, asked, actor)

    async def scale(
        self, job_id: str, min_workers: int | None, max_workers: int | None, actor: str
    ) -> RefusedError | None:
        """Sets bounds of a job's workers, None for one that stays; returns Dataflow's refusal, if any.

        Raises JobNotFoundError, ActionNotAllowedError and InvalidRequestError.
        """
        return await self._updating.scale(job_id, min_workers, max_workers, actor)

    async def adopt(self, project: str, region: str, dataflow_job_id: str, actor: str) -> str:
        """Takes over a Dataflow job that somebody else launched; returns the id of the new job.

        Raises AlreadyManagedError, ActionNotAllowedError and DataflowError.
        """
        return await self._adoption.adopt(project, region, dataflow_job_id, actor)
