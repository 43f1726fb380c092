"""What every act on a job works with, and the few things that all of them do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from service import job_store
from service.dataflow import Dataflow, SeenJob
from service.db import Database
from service.errors import ActionNotAllowedError, JobNotFoundError
from service.job_control import settling
from service.job_state import Action, Verdict, allowed_actions, observe
from service.job_store import Lineage
from service.models import Attempt, Job


@dataclass(frozen=True, slots=True)
class Means:
    """`grace` is how long a launch may still take effect after it began: no second one before.

    `is_batch` tells a batch job, by what the settings say of its pipeline.
    """

    database: Database
    dataflow: Dataflow
    clock: Callable[[], datetime]
    grace: timedelta
    is_batch: Callable[[Job], bool]

    async def read(self, job_id: str) -> Lineage:
        """The job as it is now. Raises JobNotFoundError."""
        async with self.database.session() as session:
            lineage = await job_store.read(session, job_id)
        if lineage is None:
            raise JobNotFoundError(f"There is no job {job_id}.")
        return lineage

    async def note_cause(self, job_id: str, kind: str, cause: str) -> bool:
        """Keeps the newest reason why something is not done yet; False where it is known already.

        `kind` is one of job_log.NOTES. Several reasons may take turns from look to look: each is
        noted once until something else happens to the job.
        """
        async with self.database.transaction() as session:
            lineage = await job_store.lock(session, job_id)
            if not lineage or lineage.job.ended_at or lineage.job.cause == cause:
                return False
            if await job_store.is_noted(session, lineage.job, kind, cause):
                return False
            lineage.job.cause = cause
            job_store.record(session, lineage.job, self.clock(), kind, {"cause": cause})
            return True

    async def see(self, lineage: Lineage, attempt: Attempt, seen: SeenJob) -> Lineage | None:
        """Commits what Dataflow says of an attempt; None where the job has changed since it was read."""
        job = lineage.job
        transition = observe(attempt.state, job.requested_state, seen.state)
        cause = None
        if transition.changed and transition.state == "FAILED":
            cause = await self.dataflow.failure_cause(job.project, job.region, seen.id)
        async with self.database.transaction() as session:
            held = await job_store.lock_attempt(session, job.id, attempt.number, job.version)
            if held is None:
                return None
            current, own = held
            settling.see(session, current, own, transition, self.clock(), cause)
        return current

    def permit(
        self, lineage: Lineage | None, job_id: str, action: Action, now: datetime
    ) -> tuple[Lineage, bool]:
        """The locked job, and whether the action is new; False where it is so already.

        Raises JobNotFoundError and ActionNotAllowedError.
        """
        if lineage is None:
            raise JobNotFoundError(f"There is no job {job_id}.")
        job = lineage.job
        permissions = allowed_actions(job_store.standing(job, now, is_batch=self.is_batch(job)))
        if permissions[action].verdict is Verdict.REFUSED:
            allowed = [name for name, given in permissions.items() if given.verdict is Verdict.ALLOWED]
            raise ActionNotAllowedError(
                permissions[action].reason, members={"state": job.state, "allowed_actions": allowed}
            )
        return lineage, permissions[action].verdict is Verdict.ALLOWED


def job_name(job: Job, attempt: Attempt) -> str:
    """The attempt's name in Dataflow; rows of the first version do not repeat the job's."""
    return attempt.job_name or job.name
