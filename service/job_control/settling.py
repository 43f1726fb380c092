"""What an observation of one attempt means for its job: who stands for it, its state, its end, its restart.

All of it happens to locked rows within one transaction, and leaves an entry in the history.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlmodel.ext.asyncio.session import AsyncSession

from service import job_store
from service.job_state import LAUNCHING, Transition
from service.job_store import Lineage
from service.lineage import (
    FORGIVEN_AFTER,
    Link,
    pending_attempt,
    restart_pause,
    standing_attempt,
)
from service.models import Attempt, Job

ON_FAILURE = "on-failure"


def new_token() -> str:
    """By which a Dataflow job is known as the one that an attempt launched."""
    return secrets.token_hex(16)


def see(
    session: AsyncSession,
    lineage: Lineage,
    attempt: Attempt,
    transition: Transition,
    now: datetime,
    cause: str | None,
) -> None:
    """Carries out what an observation means; `cause` says why the attempt failed, if it did."""
    if attempt.ended_at is not None:
        return
    if attempt.number == lineage.job.attempt:
        lineage.job.observed_at = now
    attempt.missing_since, attempt.missing_looks = None, 0
    if transition.ended:
        end(session, lineage, attempt, transition.state, now, cause)
    elif transition.changed:
        before, attempt.state = attempt.state, transition.state
        if attempt.number != lineage.job.attempt:
            note_state(session, lineage.job, attempt, before, now)
        settle(session, lineage, now)


def tie(
    session: AsyncSession, lineage: Lineage, attempt: Attempt, dataflow_job_id: str, now: datetime, kind: str
) -> None:
    """Ties an attempt to its Dataflow job."""
    attempt.dataflow_job_id, attempt.started_at = dataflow_job_id, now
    if attempt.number == lineage.job.attempt:
        lineage.job.cause = None
    detail = {"dataflow_job_id": dataflow_job_id}
    job_store.record(session, lineage.job, now, kind, detail | about(attempt))


def held_by(other: str, dataflow_job_id: str) -> str:
    """Why an attempt cannot have a Dataflow job."""
    return f"The job {other} manages the Dataflow job {dataflow_job_id}."


def about(attempt: Attempt) -> dict[str, Any]:
    """Which attempt an entry of the history is about; nothing where there is but one."""
    return {"attempt": attempt.number, "attempt_kind": attempt.kind} if attempt.number > 1 else {}


def end(
    session: AsyncSession, lineage: Lineage, attempt: Attempt, state: str, now: datetime, cause: str | None
) -> None:
    """Ends an attempt, by Dataflow's word or by our own judgement: REJECTED, LOST, never launched."""
    before, attempt.state = attempt.state, state
    attempt.ended_at, attempt.error = now, cause
    if attempt.number != lineage.job.attempt:
        note_state(session, lineage.job, attempt, before, now)
    settle(session, lineage, now)


def note_state(session: AsyncSession, job: Job, attempt: Attempt, before: str, now: datetime) -> None:
    """Notes the state of an attempt that does not stand for its job."""
    detail = {"attempt": attempt.number, "from": before, "to": attempt.state}
    cause = {"cause": attempt.error} if attempt.error else {}
    job_store.record(session, job, now, "attempt_state", detail | cause)


def settle(session: AsyncSession, lineage: Lineage, now: datetime) -> None:
    """Brings the job in line with its attempts."""
    job = lineage.job
    links = [_link(attempt) for attempt in lineage.attempts]
    before, number = job.attempt, standing_attempt(links, job.attempt)
    if number != before:
        _stand(session, lineage, number, now)
    waited_for, job.pending_attempt = lineage.find(job.pending_attempt), pending_attempt(links, number)
    failed = waited_for is not None and waited_for.ended_at is not None and waited_for.number != number
    if waited_for and failed:
        cause = f"The update failed: {waited_for.error or waited_for.state}"
        job_store.record(
            session, job, now, "update_failed", {"attempt": waited_for.number, "cause": waited_for.error}
        )
    current = lineage.attempt
    if current.ended_at is not None and _restarts(job, current):
        _restart(session, lineage, now)
    _take_state(session, lineage, now)
    if waited_for and failed and job.ended_at is None:
        job.cause = cause


def _link(attempt: Attempt) -> Link:
    return Link(
        attempt.number,
        attempt.state,
        is_open=attempt.ended_at is None,
        is_update=attempt.kind in ("update", "adopt"),
        is_known=attempt.dataflow_job_id is not None,
        replaces=attempt.replaces,
    )


def _stand(session: AsyncSession, lineage: Lineage, number: int, now: datetime) -> None:
    """Lets another attempt stand for the job, which shows that one's values from now on."""
    job, before = lineage.job, lineage.job.attempt
    job.attempt = number
    attempt = lineage.attempt
    repeat(job, attempt)
    # The bounds of its workers belong to the job: the new one does not know them yet.
    job.scaling_pending = attempt.ended_at is None and (job.min_workers or job.max_workers) is not None
    kind = "replaced" if number > before else "rolled_back"
    detail = {"from": before, "to": number, "dataflow_job_id": attempt.dataflow_job_id}
    job_store.record(session, job, now, kind, detail)


def repeat(job: Job, attempt: Attempt) -> None:
    """Shows the values of an attempt as those of its job."""
    job.template_path = attempt.template_path or job.template_path
    job.parameters = job.parameters if attempt.parameters is None else attempt.parameters
    job.environment = job.environment if attempt.environment is None else attempt.environment
    job.launch_token = attempt.launch_token or job.launch_token
    job.launch_started_at = attempt.launch_started_at


def _take_state(session: AsyncSession, lineage: Lineage, now: datetime) -> None:
    job, attempt = lineage.job, lineage.attempt
    if job.state == attempt.state:
        return
    before, job.state = job.state, attempt.state
    if attempt.ended_at is not None:
        job.ended_at, job.scaling_pending = now, False
        job.cause = attempt.error
    elif attempt.kind != "restart" or attempt.dataflow_job_id:
        job.cause = None  # an older one told why the job was not where it is now
    if job.state == "CANCELLING" and job.cancel_requested_at is None:
        job.cancel_requested_at = now  # somebody else asked Dataflow for it
    cause = {"cause": job.cause} if job.cause else {}
    job_store.record(session, job, now, "state", {"from": before, "to": job.state} | cause)


def _restarts(job: Job, failed: Attempt) -> bool:
    """Whether a failed attempt is followed by another launch, by the job's own policy."""
    if failed.state != "FAILED" or job.restart_policy != ON_FAILURE or job.requested_state != "RUNNING":
        return False
    if failed.started_at and failed.ended_at and failed.ended_at - failed.started_at >= FORGIVEN_AFTER:
        job.restarts = 0
    return job.restarts < job.restart_limit


def _restart(session: AsyncSession, lineage: Lineage, now: datetime) -> None:
    """Adds the attempt that is to be launched after a pause, under a name that was never used."""
    job, failed = lineage.job, lineage.attempt
    number = max(attempt.number for attempt in lineage.attempts) + 1
    attempt = Attempt(
        job_id=job.id,
        number=number,
        kind="restart",
        replaces=failed.number,
        state=LAUNCHING,
        created_at=now,
        job_name=f"{job.name}-{number}",
        launch_token=new_token(),
        template_path=job.template_path,
        parameters=job.parameters,
        environment=job.environment,
    )
    session.add(attempt)
    lineage.attempts.append(attempt)
    job.restart_at = now + restart_pause(job.restarts)
    job.restarts += 1
    job.attempt, job.scaling_pending = number, (job.min_workers or job.max_workers) is not None
    repeat(job, attempt)
    job.cause = failed.error or "Dataflow says no cause."
    detail: dict[str, Any] = {"attempt": number, "after": failed.number, "restart": job.restarts}
    detail |= {"limit": job.restart_limit, "at": job.restart_at.isoformat(), "cause": job.cause}
    job_store.record(session, job, now, "restart_scheduled", detail)
