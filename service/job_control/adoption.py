"""Taking over a Dataflow job that was launched by somebody else."""

from __future__ import annotations

import sqlalchemy.exc
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service import job_store
from service.dataflow import SeenJob
from service.errors import ActionNotAllowedError, AlreadyManagedError, DatabaseUnavailableError
from service.job_control import settling
from service.job_control.means import Means
from service.job_state import LAUNCHING, is_terminal, observe
from service.job_store import Lineage
from service.models import SHORT_ID_LENGTH, Job, new_id

ADOPTED_PIPELINE = "adopted"
_LONGEST_NAME = 128 - SHORT_ID_LENGTH - 1
_TRIES = 3


class Adoption:
    def __init__(self, means: Means) -> None:
        self._means = means

    async def adopt(self, project: str, region: str, dataflow_job_id: str, actor: str) -> str:
        """Makes a job of an active streaming job of Dataflow and returns its id.

        Raises AlreadyManagedError, ActionNotAllowedError and DataflowError.
        """
        seen = await self._means.dataflow.get(project, region, dataflow_job_id)
        if is_terminal(seen.state):
            raise ActionNotAllowedError(f"The Dataflow job has ended as {seen.state}.")
        if not seen.streaming:
            raise ActionNotAllowedError("The Dataflow job is a batch job.")
        for _ in range(_TRIES):
            try:
                async with self._means.database.transaction() as session:
                    return await self._insert(session, project, region, seen, actor)
            except sqlalchemy.exc.IntegrityError:
                continue  # another request was faster, with this job or with its name
        raise DatabaseUnavailableError("Other requests changed the same jobs. Try again.")

    async def _insert(
        self, session: AsyncSession, project: str, region: str, seen: SeenJob, actor: str
    ) -> str:
        holder = await job_store.holder(session, seen.id)
        if holder:
            raise AlreadyManagedError(f"The job {holder} manages it.", members={"job_id": holder})
        heir = await job_store.heir(session, project, region, seen.name, seen.replaces)
        if heir:
            raise AlreadyManagedError(f"The job {heir} may be about to manage it.", members={"job_id": heir})
        now = self._means.clock()
        job_id = new_id(now)
        name = seen.name[:_LONGEST_NAME]
        if name != seen.name or (await session.exec(select(Job.id).where(col(Job.name) == name))).first():
            name = f"{name}-{job_id[-SHORT_ID_LENGTH:]}"
        job = Job(
            id=job_id,
            name=name,
            base_name=seen.name[:_LONGEST_NAME],
            pipeline=ADOPTED_PIPELINE,
            project=project,
            region=region,
            # Not as its only reader: another one may be there already. The next launch is told of it.
            subscription=next(iter(seen.subscriptions), None),
            template_path="",
            state=LAUNCHING,
            launch_token=settling.new_token(),
            labels=dict(seen.labels),
            created_at=now,
            adopted=True,
        )
        await job_store.insert(session, job, actor)
        lineage = await job_store.lock(session, job_id)
        assert lineage
        attempt = lineage.attempt
        attempt.kind, attempt.job_name = "adopt", seen.name
        settling.tie(session, lineage, attempt, seen.id, now, "adopted")
        transition = observe(attempt.state, job.requested_state, seen.state)
        settling.see(session, Lineage(job, [attempt]), attempt, transition, now, None)
        return job_id
