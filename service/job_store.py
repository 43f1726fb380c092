"""Jobs in the database: the queries, and the one way in which a job changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import and_, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession
from sqlmodel.sql.expression import SelectOfScalar

from service import job_log
from service.job_state import Standing
from service.logs import current_request_id
from service.models import Attempt, Job, JobEvent

SERVICE_ACTOR = "service"
_NEWEST_NOTES = 20


class Entry(NamedTuple):
    """A job with its current attempt; read outside of a transaction they are values of that moment."""

    job: Job
    attempt: Attempt


@dataclass(slots=True)
class Lineage:
    """A job with its attempts by number, at least the current one and all that are open."""

    job: Job
    attempts: list[Attempt]

    @property
    def is_whole(self) -> bool:
        return any(attempt.number == self.job.attempt for attempt in self.attempts)

    @property
    def attempt(self) -> Attempt:
        """The one that stands for the job."""
        return next(attempt for attempt in self.attempts if attempt.number == self.job.attempt)

    @property
    def open(self) -> list[Attempt]:
        """The attempts that may have a living Dataflow job, newest first."""
        return [attempt for attempt in reversed(self.attempts) if attempt.ended_at is None]

    @property
    def dataflow_job_ids(self) -> set[str]:
        return {attempt.dataflow_job_id for attempt in self.attempts if attempt.dataflow_job_id}

    def find(self, number: int | None) -> Attempt | None:
        return next((attempt for attempt in self.attempts if attempt.number == number), None)


def _entries() -> Any:
    current = and_(col(Attempt.job_id) == col(Job.id), col(Attempt.number) == col(Job.attempt))
    return select(Job, Attempt).join(Attempt, current)


def first_attempt(job: Job) -> Attempt:
    """The attempt that a new job begins with."""
    return Attempt(
        job_id=job.id,
        number=job.attempt,
        state=job.state,
        created_at=job.created_at,
        job_name=job.name,
        launch_token=job.launch_token,
        template_path=job.template_path,
        parameters=job.parameters,
        environment=job.environment,
    )


async def insert(session: AsyncSession, job: Job, actor: str) -> None:
    """Adds a new job with its first attempt and the first entry of its history."""
    session.add(job)
    await session.flush()
    session.add(first_attempt(job))
    record(session, job, job.created_at, "created", {"name": job.name, "pipeline": job.pipeline}, actor)


async def find(session: AsyncSession, job_id: str) -> Entry | None:
    row = (await session.exec(_entries().where(col(Job.id) == job_id))).first()
    return Entry(*row) if row else None


async def read(session: AsyncSession, job_id: str) -> Lineage | None:
    """The job with all of its attempts, as they are now."""
    job = (await session.exec(select(Job).where(col(Job.id) == job_id))).first()
    return Lineage(job, await attempts(session, job_id)) if job else None


async def lock(session: AsyncSession, job_id: str, version: int | None = None) -> Lineage | None:
    """The job, for this transaction alone; None where it is gone or no longer at `version`."""
    # In two statements: after waiting for the lock PostgreSQL reads the locked row anew, a joined one not.
    statement = select(Job).where(col(Job.id) == job_id).with_for_update()
    job = (await session.exec(statement.execution_options(populate_existing=True))).first()
    if not job or (version is not None and job.version != version):
        return None
    return Lineage(job, await attempts(session, job_id))


async def lock_attempt(
    session: AsyncSession, job_id: str, number: int, version: int | None = None
) -> tuple[Lineage, Attempt] | None:
    """The job as `lock` gives it with one of its attempts; None where that has ended or is not there."""
    lineage = await lock(session, job_id, version)
    attempt = lineage.find(number) if lineage else None
    if lineage is None or attempt is None or attempt.ended_at is not None:
        return None
    return lineage, attempt


def drain_deadline(job: Job) -> datetime | None:
    """When the drain that was asked for is overdue: counted from the moment the deadline was given."""
    begun, seconds = job.drain_deadline_from or job.drain_requested_at, job.drain_deadline_seconds
    return None if begun is None or seconds is None else begun + timedelta(seconds=seconds)


def standing(job: Job, now: datetime, *, is_batch: bool) -> Standing:
    """What decides about the actions on a job at the moment `now`."""
    asked_at = job.cancel_requested_at
    return Standing(
        job.state,
        job.requested_state,
        is_updating=job.pending_attempt is not None,
        cancel_age=now - asked_at if asked_at else None,
        is_forced=job.force_cancel_requested_at is not None,
        is_batch=is_batch,
    )


async def is_noted(session: AsyncSession, job: Job, kind: str, cause: str) -> bool:
    """Whether the history tells this reason already, and since then only of others like it."""
    statement = select(JobEvent).where(col(JobEvent.job_id) == job.id)
    newest = statement.order_by(col(JobEvent.sequence).desc()).limit(_NEWEST_NOTES)
    for event in (await session.exec(newest)).all():
        if event.kind not in job_log.NOTES:
            return False
        if (event.kind, event.detail.get("cause")) == (kind, cause):
            return True
    return False


def record(
    session: AsyncSession,
    job: Job,
    at: datetime,
    kind: str,
    detail: dict[str, Any],
    actor: str = SERVICE_ACTOR,
) -> None:
    """Notes a change in the job's history; every change passes here, so that the version tells of it."""
    job.version += 1
    job_log.tell(session, job, kind, detail, actor)
    asked_by = current_request_id.get() if actor != SERVICE_ACTOR else None
    session.add(
        JobEvent(
            job_id=job.id,
            sequence=job.version,
            at=at,
            kind=kind,
            detail=detail,
            actor=actor,
            request_id=asked_by or None,
        )
    )


async def touch(session: AsyncSession, job_ids: Sequence[str], at: datetime) -> None:
    """Notes that these jobs were seen unchanged; not a change, so the version stays."""
    for start in range(0, len(job_ids), 500):
        chunk = job_ids[start : start + 500]
        newer = or_(col(Job.observed_at).is_(None), col(Job.observed_at) < at)
        await session.exec(
            update(Job)
            .where(col(Job.id).in_(chunk), col(Job.ended_at).is_(None), newer)
            .values(observed_at=at)
        )


async def active(session: AsyncSession) -> list[Lineage]:
    """Every active job, oldest first, with its current attempt and the open ones.

    Dataflow's own limit of running jobs bounds them.
    """
    statement = select(Job).where(col(Job.ended_at).is_(None)).order_by(col(Job.created_at), col(Job.id))
    lineages = {job.id: Lineage(job, []) for job in (await session.exec(statement)).all()}
    of_active = (
        select(Attempt).join(Job, col(Attempt.job_id) == col(Job.id)).where(col(Job.ended_at).is_(None))
    )
    wanted = or_(col(Attempt.ended_at).is_(None), col(Attempt.number) == col(Job.attempt))
    for attempt in (await session.exec(of_active.where(wanted).order_by(col(Attempt.number)))).all():
        if attempt.job_id in lineages:  # not one that was added between the two statements
            lineages[attempt.job_id].attempts.append(attempt)
    # Nor one whose pointer was moved between them: the next look has it whole.
    return [lineage for lineage in lineages.values() if lineage.is_whole]


async def last_states(session: AsyncSession, job_ids: Collection[str]) -> list[str]:
    """The states of jobs that have ended, of those among `job_ids` that have."""
    statement = select(Job.state).where(col(Job.id).in_(job_ids), col(Job.ended_at).is_not(None))
    return list((await session.exec(statement)).all())


async def ended_since(session: AsyncSession, since: datetime) -> list[str]:
    """The states of the jobs that have ended since the moment, of the last thousand that were launched.

    No index has the moment of the end, and a whole history is too long to be read for it.
    """
    ended = select(Job.state, Job.ended_at).where(col(Job.ended_at).is_not(None))
    newest = ended.order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(1000)
    return [state for state, at in (await session.exec(newest)).all() if at and at >= since]


async def ended_since_launch(session: AsyncSession, since: datetime) -> dict[str, str]:
    """The states of the jobs launched since the moment that have ended, by id; a thousand at most."""
    ended = select(Job.id, Job.state).where(col(Job.created_at) >= since, col(Job.ended_at).is_not(None))
    newest = ended.order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(1000)
    return dict((await session.exec(newest)).all())


async def holder(session: AsyncSession, dataflow_job_id: str) -> str | None:
    """The id of the job that manages a Dataflow job."""
    return (await session.exec(_holds(dataflow_job_id))).first()


async def heir(session: AsyncSession, project: str, region: str, name: str, replaces: str) -> str | None:
    """The id of the job that may be about to manage an active Dataflow job, so that nobody else takes it.

    A launch of its own under that name, which no other active job can have, is without an answer yet; or
    Dataflow has put it in the place of `replaces`, and the next look has yet to find that out.
    """
    unanswered = col(Attempt.dataflow_job_id).is_(None) & col(Attempt.ended_at).is_(None)
    in_place = (col(Job.project) == project) & (col(Job.region) == region)
    named = func.coalesce(col(Attempt.job_name), col(Job.name)) == name
    own = select(Attempt.job_id).join(Job, col(Attempt.job_id) == col(Job.id))
    if job_id := (await session.exec(own.where(unanswered, in_place, named))).first():
        return job_id
    if not replaces:
        return None
    return (await session.exec(_holds(replaces).where(col(Attempt.ended_at).is_(None)))).first()


def _holds(dataflow_job_id: str) -> SelectOfScalar[str]:
    return select(Attempt.job_id).where(col(Attempt.dataflow_job_id) == dataflow_job_id)


async def active_on(session: AsyncSession, subscription: str) -> Job | None:
    """An active job that reads the subscription."""
    statement = select(Job).where(col(Job.ended_at).is_(None), col(Job.subscription) == subscription)
    return (await session.exec(statement.limit(1))).first()


async def attempts(session: AsyncSession, job_id: str) -> list[Attempt]:
    """All attempts of a job by number, read anew."""
    statement = select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))
    return list((await session.exec(statement.execution_options(populate_existing=True))).all())


async def events(session: AsyncSession, job_id: str, after: int, limit: int) -> list[JobEvent]:
    """The history after the entry of sequence `after`, oldest first."""
    statement = select(JobEvent).where(col(JobEvent.job_id) == job_id, col(JobEvent.sequence) > after)
    return list((await session.exec(statement.order_by(col(JobEvent.sequence)).limit(limit))).all())
