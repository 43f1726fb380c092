"""Comparing a job with what Dataflow says of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from enum import Enum

from service import job_store
from service.dataflow import LAUNCH_TOKEN_LABEL, MissingError, SeenJob
from service.job_control import settling
from service.job_control.launching import CLEAN_LOOKS, Launching
from service.job_control.means import Means, job_name
from service.job_control.stopping import Stopping
from service.job_control.updating import Updating
from service.job_state import LAUNCHING, LOST, is_in_transition, observe
from service.job_store import Lineage
from service.models import Attempt, Job

LOST_AFTER = timedelta(minutes=10)


class Sight(Enum):
    """What came of the look at one attempt."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    UNSEEN = "unseen"


class Looking:
    """One look at a job leads to at most a few calls, and to nothing where all is as it was."""

    def __init__(self, means: Means, launching: Launching, stopping: Stopping, updating: Updating) -> None:
        self._means = means
        self._launching = launching
        self._stopping = stopping
        self._updating = updating

    async def look(self, lineage: Lineage, listed: Mapping[str, SeenJob]) -> bool:
        """True where the attempt that stands for the job was seen as it was. Raises DataflowError.

        `listed` are the active jobs of the region; a job of its own is asked for only where it is in
        transition or not among them.
        """
        job_id, unchanged = lineage.job.id, False
        for number in [attempt.number for attempt in lineage.open]:
            attempt = lineage.find(number)
            if attempt is None or attempt.ended_at is not None:
                continue
            sight = await self._look_at(lineage, attempt, listed)
            if sight is not Sight.UNCHANGED:
                lineage = await self._means.read(job_id)
                if lineage.job.ended_at is not None:
                    return False
            elif number == lineage.job.attempt:
                unchanged = True
        if await self._stopping.keep_deadline(lineage):
            lineage = await self._means.read(job_id)
        await self._stopping.send(lineage)
        if lineage.job.scaling_pending:
            await self._updating.send_bounds(lineage)
        return unchanged

    async def _look_at(self, lineage: Lineage, attempt: Attempt, listed: Mapping[str, SeenJob]) -> Sight:
        job = lineage.job
        if attempt.dataflow_job_id is None:
            await self._launching.recover(lineage, attempt)
            return Sight.UNSEEN
        seen = listed.get(attempt.dataflow_job_id)
        if seen is None or _is_on_its_way(job, attempt):
            try:
                seen = await self._means.dataflow.get(job.project, job.region, attempt.dataflow_job_id)
            except MissingError:
                await self._deny(job, attempt)
                return Sight.UNSEEN
        transition = observe(attempt.state, job.requested_state, seen.state)
        if transition.state == "UPDATED":
            await self._follow(lineage, attempt, seen)
            return Sight.UNSEEN
        if not transition.changed and not attempt.missing_looks:
            return Sight.UNCHANGED
        await self._means.see(lineage, attempt, seen)
        return Sight.CHANGED

    async def _deny(self, job: Job, attempt: Attempt) -> None:
        """Notes that Dataflow denies a job it once named; LOST only when it does so for long."""
        found = await self._means.dataflow.find_by_name(job.project, job.region, job_name(job, attempt))
        still = any(seen.id == attempt.dataflow_job_id for seen in found)
        async with self._means.database.transaction() as session:
            held = await job_store.lock_attempt(session, job.id, attempt.number, job.version)
            if held is None:
                return
            lineage, own = held
            now = self._means.clock()
            if still:
                own.missing_since, own.missing_looks = None, 0
                return
            if own.missing_since is None:
                own.missing_since = now
                detail = {"dataflow_job_id": own.dataflow_job_id} | settling.about(own)
                job_store.record(session, lineage.job, now, "denied", detail)
            own.missing_looks += 1
            if own.missing_looks >= CLEAN_LOOKS and now - own.missing_since >= LOST_AFTER:
                cause = "Dataflow has denied this job for ten minutes."
                settling.end(session, lineage, own, LOST, now, cause)

    async def _follow(self, lineage: Lineage, attempt: Attempt, seen: SeenJob) -> None:
        """Goes over to the job that replaced this one, whoever asked for that; ends without it after long."""
        whole = await self._means.read(lineage.job.id)
        if _is_followed(whole, attempt, seen):
            await self._means.see(lineage, attempt, seen)
            return
        successor = await self._successor(whole, attempt, seen)
        async with self._means.database.transaction() as session:
            job = lineage.job
            held = await job_store.lock_attempt(session, job.id, attempt.number, job.version)
            if held is None:
                return
            current, own = held
            now = self._means.clock()
            transition = observe(own.state, current.job.requested_state, "UPDATED")
            other = await job_store.holder(session, successor.id) if successor else None
            if successor and other:
                cause = settling.held_by(other, successor.id)
                settling.see(session, current, own, transition, now, cause)
                return
            if successor:
                heir = _heir(current, own, successor)
                session.add(heir)
                settling.tie(session, current, heir, successor.id, now, "adopted")
                of_heir = observe(heir.state, current.job.requested_state, successor.state)
                if not of_heir.ended:  # an end is for the next look, which asks for its cause
                    settling.see(session, current, heir, of_heir, now, None)
                settling.see(session, current, own, transition, now, None)
                return
            if own.missing_since is None:
                own.missing_since = now
                current.job.cause = "Dataflow has replaced the job by one that is not found yet."
                job_store.record(session, current.job, now, "replacement_unseen", {})
            own.missing_looks += 1
            if own.missing_looks >= CLEAN_LOOKS and now - own.missing_since >= LOST_AFTER:
                settling.see(session, current, own, transition, now, None)

    async def _successor(self, lineage: Lineage, attempt: Attempt, seen: SeenJob) -> SeenJob | None:
        """The job by which Dataflow replaced an attempt's."""
        job, dataflow = lineage.job, self._means.dataflow
        ids = [seen.replaced_by] if seen.replaced_by else []
        if not ids:
            found = await dataflow.find_by_name(job.project, job.region, job_name(job, attempt))
            ids = [other.id for other in found if other.id not in lineage.dataflow_job_ids]
        for other_id in ids:
            try:
                other = await dataflow.get(job.project, job.region, other_id)
            except MissingError:
                continue
            if seen.replaced_by == other.id or other.replaces == attempt.dataflow_job_id:
                return other
        return None


def costs_calls(lineage: Lineage, listed: Mapping[str, SeenJob]) -> bool:
    """Whether a look at the job needs calls of its own."""
    job = lineage.job
    return (
        job.scaling_pending
        or job.requested_state != "RUNNING"
        or any(
            attempt.dataflow_job_id not in listed or _is_on_its_way(job, attempt) for attempt in lineage.open
        )
    )


def _is_on_its_way(job: Job, attempt: Attempt) -> bool:
    if job.pending_attempt is not None or attempt.number != job.attempt:
        return True
    return is_in_transition(attempt.state, job.requested_state)


def _is_followed(lineage: Lineage, attempt: Attempt, seen: SeenJob) -> bool:
    """Whether the job that took the place of the attempt's is known already."""
    if seen.replaced_by:
        return seen.replaced_by in lineage.dataflow_job_ids
    return any(other.dataflow_job_id and other.number > attempt.number for other in lineage.open)


def _heir(lineage: Lineage, replaced: Attempt, successor: SeenJob) -> Attempt:
    """The attempt whose launch led to the successor, or a new one where that was none of ours."""
    token = successor.labels.get(LAUNCH_TOKEN_LABEL)
    for attempt in lineage.open:
        if token and attempt.dataflow_job_id is None and attempt.launch_token == token:
            return attempt
    heir = Attempt(
        job_id=lineage.job.id,
        number=max(attempt.number for attempt in lineage.attempts) + 1,
        kind="adopt",
        replaces=replaced.number,
        state=LAUNCHING,
        created_at=replaced.created_at,
        job_name=successor.name,
        launch_token=token,
    )
    lineage.attempts.append(heir)
    return heir
