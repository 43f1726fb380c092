"""Jobs in the database: the queries, and the one way in which a job changes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import and_, or_, tuple_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from service.errors import InvalidPageTokenError
from service.job_state import Transition
from service.models import Attempt, Job, JobEvent

SERVICE_ACTOR = "service"


class Entry(NamedTuple):
    """A job with its current attempt; read outside of a transaction they are values of that moment."""

    job: Job
    attempt: Attempt


class Filters(NamedTuple):
    """What a list of jobs is narrowed to; None is no limit. `name` is the full name or its base."""

    state: str | None = None
    active: bool | None = None
    name: str | None = None


def _entries() -> Any:
    current = and_(col(Attempt.job_id) == col(Job.id), col(Attempt.number) == col(Job.attempt))
    return select(Job, Attempt).join(Attempt, current)


async def insert(session: AsyncSession, job: Job, actor: str) -> None:
    """Adds a new job with its first attempt and the first entry of its history."""
    session.add(job)
    await session.flush()
    session.add(Attempt(job_id=job.id, number=job.attempt, state=job.state, created_at=job.created_at))
    record(session, job, job.created_at, "created", {"name": job.name, "pipeline": job.pipeline}, actor)


async def find(session: AsyncSession, job_id: str) -> Entry | None:
    row = (await session.exec(_entries().where(col(Job.id) == job_id))).first()
    return Entry(*row) if row else None


async def lock(session: AsyncSession, job_id: str, version: int | None = None) -> Entry | None:
    """The job, for this transaction alone; None where it is gone or no longer at `version`."""
    # In two statements: after waiting for the lock PostgreSQL reads the locked row anew, a joined one not.
    statement = select(Job).where(col(Job.id) == job_id).with_for_update()
    job = (await session.exec(statement.execution_options(populate_existing=True))).first()
    if not job or (version is not None and job.version != version):
        return None
    current = select(Attempt).where(col(Attempt.job_id) == job_id, col(Attempt.number) == job.attempt)
    attempt = (await session.exec(current.execution_options(populate_existing=True))).one()
    return Entry(job, attempt)


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
    session.add(JobEvent(job_id=job.id, sequence=job.version, at=at, kind=kind, detail=detail, actor=actor))


def apply(
    session: AsyncSession, entry: Entry, transition: Transition, at: datetime, cause: str | None
) -> None:
    """Carries out what an observation means for the rows; `cause` says why the job failed, if it did."""
    job, attempt = entry
    job.observed_at = at
    job.missing_since, job.missing_looks = None, 0
    if not transition.changed:
        return
    before, job.state, attempt.state = job.state, transition.state, transition.state
    job.cause = cause  # an older one told why the job was not where it is now
    if transition.ended:
        job.ended_at = attempt.ended_at = at
        attempt.error = cause
    record(session, job, at, "state", {"from": before, "to": job.state} | ({"cause": cause} if cause else {}))


def end(session: AsyncSession, entry: Entry, state: str, at: datetime, cause: str) -> None:
    """Ends a job by our own judgement: REJECTED, LOST, or cancelled before it was launched."""
    job, attempt = entry
    before, job.state, attempt.state = job.state, state, state
    job.ended_at = attempt.ended_at = at
    job.cause = attempt.error = cause
    record(session, job, at, "state", {"from": before, "to": state, "cause": cause})


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


async def active(session: AsyncSession) -> list[Entry]:
    """Every active job, oldest first; Dataflow's own limit of running jobs bounds them."""
    statement = _entries().where(col(Job.ended_at).is_(None)).order_by(col(Job.created_at), col(Job.id))
    return [Entry(*row) for row in (await session.exec(statement)).all()]


async def active_on(session: AsyncSession, subscription: str) -> Job | None:
    """An active job that reads the subscription."""
    statement = select(Job).where(col(Job.ended_at).is_(None), col(Job.subscription) == subscription)
    return (await session.exec(statement.limit(1))).first()


async def attempts(session: AsyncSession, job_id: str) -> list[Attempt]:
    statement = select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))
    return list((await session.exec(statement)).all())


async def events(session: AsyncSession, job_id: str, after: int, limit: int) -> list[JobEvent]:
    """The history after the entry of sequence `after`, oldest first."""
    statement = select(JobEvent).where(col(JobEvent.job_id) == job_id, col(JobEvent.sequence) > after)
    return list((await session.exec(statement.order_by(col(JobEvent.sequence)).limit(limit))).all())


async def page(
    session: AsyncSession, filters: Filters, page_token: str | None, page_size: int
) -> tuple[list[Entry], str | None]:
    """Jobs, newest first, and the token of the next page. Raises InvalidPageTokenError."""
    statement = _entries()
    if filters.state is not None:
        statement = statement.where(col(Job.state) == filters.state)
    if filters.active is not None:
        ended = col(Job.ended_at)
        statement = statement.where(ended.is_(None) if filters.active else ended.is_not(None))
    if filters.name is not None:
        names = or_(col(Job.name) == filters.name, col(Job.base_name) == filters.name)
        statement = statement.where(names)
    key = tuple_(col(Job.created_at), col(Job.id))
    if page_token is not None:
        statement = statement.where(key < read_page_token(page_token))
    statement = statement.order_by(col(Job.created_at).desc(), col(Job.id).desc()).limit(page_size + 1)
    found = [Entry(*row) for row in (await session.exec(statement)).all()]
    shown = found[:page_size]
    return shown, write_page_token(shown[-1].job) if len(found) > page_size else None


def write_page_token(last: Job) -> str:
    """The opaque token of the page that follows `last`."""
    return base64.urlsafe_b64encode(msgspec.json.encode((last.created_at, last.id))).decode().rstrip("=")


def read_page_token(token: str) -> tuple[datetime, str]:
    try:
        text = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        created_at, job_id = msgspec.json.decode(text, type=tuple[datetime, str])
        created_at = created_at.astimezone(UTC)
    except (binascii.Error, ValueError, OverflowError) as error:
        raise InvalidPageTokenError("The page token is not one that this service gave.") from error
    if "\0" in job_id:
        raise InvalidPageTokenError("The page token is not one that this service gave.")
    return created_at, job_id
