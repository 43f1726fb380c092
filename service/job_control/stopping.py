"""The stop ladder: drain, a drain's deadline, cancel, cancel by force."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Literal

from sqlmodel.ext.asyncio.session import AsyncSession

from service import job_store
from service.dataflow import DataflowError
from service.job_control import settling
from service.job_control.launching import NEVER_LAUNCHED
from service.job_control.means import Means
from service.job_state import GOALS, StopAction, observe, raised, state_to_send
from service.job_store import SERVICE_ACTOR, Lineage
from service.models import Attempt, Job

log = logging.getLogger(__name__)

DrainPolicy = Literal["wait", "cancel"]


class Stopping:
    """What is asked for is committed first; then Dataflow is asked, as often as it takes."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def stop(
        self,
        job_id: str,
        action: StopAction,
        actor: str,
        deadline_seconds: int | None,
        on_deadline: DrainPolicy | None,
    ) -> bool:
        """Asks for a drain or a cancel; False where it was so already.

        A drain's deadline and policy may be given anew while it lasts; another deadline counts from
        then. A stop that somebody else began is taken over, so that its deadline is kept as well.
        """
        async with self._means.database.transaction() as session:
            found = await job_store.lock(session, job_id)
            now = self._means.clock()
            lineage, is_new = self._means.permit(found, job_id, action, now)
            job = lineage.job
            if job.ended_at is not None:
                return False
            begun = is_new or raised(job.requested_state, GOALS[action]) != job.requested_state
            deadline = _deadline(job, action, deadline_seconds, on_deadline, None if begun else now)
            if begun:
                self._ask(session, lineage, action, now, deadline, actor)
            elif deadline:
                job_store.record(session, job, now, "drain_deadline_set", deadline, actor)
            if not is_new:
                return False
        await self.send(lineage)
        return True

    async def force_cancel(self, job_id: str, actor: str) -> bool:
        """Asks for an end that does not wait for the workers; False where it was so already."""
        async with self._means.database.transaction() as session:
            found = await job_store.lock(session, job_id)
            now = self._means.clock()
            lineage, is_new = self._means.permit(found, job_id, "force_cancel", now)
            if not is_new:
                return False
            job = lineage.job
            job.requested_state = raised(job.requested_state, "CANCELLED")
            job.force_cancel_requested_at = now
            job_store.record(session, job, now, "force_cancel_requested", {}, actor)
        await self.send(lineage)
        return True

    async def keep_deadline(self, lineage: Lineage) -> bool:
        """Carries out what a drain's deadline leads to; True where that changed the job."""
        job, now = lineage.job, self._means.clock()
        if not _is_overdue(job, now) or self._means.is_batch(job):
            return False  # an earlier release took the drain of a batch job, which can only go on
        cause = f"The drain is not done after the {job.drain_deadline_seconds} s that it was given."
        if job.on_drain_deadline != "cancel":
            if job.cause == cause:
                return False
            return await self._means.note_cause(job.id, "drain_deadline_passed", cause)
        async with self._means.database.transaction() as session:
            current = await job_store.lock(session, job.id, job.version)
            if current is not None:
                detail = {"cause": cause, "then": "cancel"}
                job_store.record(session, current.job, now, "drain_deadline_passed", detail)
                self._ask(session, current, "cancel", now, {}, SERVICE_ACTOR)
        return True

    async def send(self, lineage: Lineage) -> None:
        """Asks Dataflow for the states that are wanted of its jobs."""
        for attempt in lineage.open:
            wanted = state_to_send(attempt.state, lineage.job.requested_state)
            if wanted == "DRAINED" and lineage.job.pending_attempt is not None:
                continue  # which of the two is to drain shows when the update is done
            if wanted == "DRAINED" and self._means.is_batch(lineage.job):
                continue  # asked for under an earlier release: Dataflow would refuse it at each look
            force = lineage.job.force_cancel_requested_at is not None
            if attempt.dataflow_job_id and (wanted or force):
                after = await self._send(lineage, attempt, wanted or "CANCELLED", force=force)
                if after is None:
                    break
                lineage = after

    def _ask(
        self,
        session: AsyncSession,
        lineage: Lineage,
        action: StopAction,
        now: datetime,
        detail: dict[str, Any],
        actor: str,
    ) -> None:
        job = lineage.job
        job.requested_state = raised(job.requested_state, GOALS[action])
        if action == "drain":
            job.drain_requested_at = now
        elif job.cancel_requested_at is None:
            job.cancel_requested_at = now
        job_store.record(session, job, now, f"{action}_requested", detail, actor)
        for attempt in lineage.open:
            begun = attempt.launch_started_at or (attempt.number == job.attempt and job.launch_started_at)
            if attempt.dataflow_job_id is None and not begun:
                settling.end(session, lineage, attempt, "CANCELLED", now, NEVER_LAUNCHED)

    async def _send(self, lineage: Lineage, attempt: Attempt, wanted: str, *, force: bool) -> Lineage | None:
        """Asks once; whatever Dataflow answers, what is read decides. None where nothing was learned."""
        job, means, own_id = lineage.job, self._means, attempt.dataflow_job_id or ""
        try:
            try:
                seen = await means.dataflow.request_state(
                    job.project, job.region, own_id, wanted, force=force
                )
            except DataflowError as error:
                log.info("job %s: %s is not taken: %s", job.id, wanted, error.status or error.detail)
                seen = await means.dataflow.get(job.project, job.region, own_id)
                if observe(attempt.state, job.requested_state, seen.state).send:
                    await means.note_cause(job.id, "stop_unanswered", error.cause)
                    return None
        except DataflowError as error:
            await means.note_cause(job.id, "stop_unanswered", error.cause)
            return None
        if seen.state == "UPDATED":
            return None  # the next look finds out what took its place
        return await means.see(lineage, attempt, seen)


def _deadline(
    job: Job, action: StopAction, seconds: int | None, policy: DrainPolicy | None, given_at: datetime | None
) -> dict[str, Any]:
    """Notes a drain's deadline in the row, where one is given that it does not have yet, and tells of it.

    `given_at` is the moment it counts from where the drain lasts already.
    """
    if action != "drain" or (seconds is None and policy is None):
        return {}
    passed = given_at is not None and _is_overdue(job, given_at)
    is_other = seconds is not None and (seconds != job.drain_deadline_seconds or passed)
    if not is_other and policy in (None, job.on_drain_deadline):
        return {}  # a request that was sent twice does not put the deadline off
    if is_other:
        job.drain_deadline_seconds, job.drain_deadline_from = seconds, given_at
    job.on_drain_deadline = policy or job.on_drain_deadline
    return {"deadline_seconds": job.drain_deadline_seconds, "on_deadline": job.on_drain_deadline}


def _is_overdue(job: Job, now: datetime) -> bool:
    if job.ended_at is not None or job.requested_state != "DRAINED":
        return False
    deadline = job_store.drain_deadline(job)
    return deadline is not None and now >= deadline
