"""Launching, stopping and looking at one job: intend, act, record.

What is meant is committed before Dataflow is called, and what came of it after; no transaction is open
during a call. Whoever writes names the version that it has read and writes nothing over a newer one, so
requests, ticks and replicas may meet on one job.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from service import job_store
from service.config import Settings
from service.dataflow import (
    CONNECT_SECONDS,
    LAUNCH_TOKEN_LABEL,
    Dataflow,
    DataflowError,
    MissingError,
    RefusedError,
    SeenJob,
)
from service.db import Database
from service.errors import ActionNotAllowedError, JobNotFoundError
from service.job_state import (
    GOALS,
    LAUNCHING,
    LOST,
    REJECTED,
    Action,
    Verdict,
    allowed_actions,
    is_in_transition,
    observe,
    raised,
    state_to_send,
)
from service.job_store import Entry
from service.models import Job, utc_now

log = logging.getLogger(__name__)

LOST_AFTER = timedelta(minutes=10)
CLEAN_LOOKS = 2
NEVER_LAUNCHED = "The job was asked to stop before Dataflow had it."


class JobControl:
    """The acts on one job; keeps nothing in memory, so any replica may go on with any job."""

    def __init__(
        self,
        database: Database,
        dataflow: Dataflow,
        settings: Settings,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._dataflow = dataflow
        # A launch under way may still take effect until it breaks off: no second one before.
        self._grace = timedelta(
            seconds=max(settings.launch_grace_seconds, settings.dataflow_deadline_seconds + CONNECT_SECONDS)
        )
        self._clock = clock

    async def launch(self, job: Job) -> RefusedError | None:
        """Launches a job whose row is committed; returns Dataflow's refusal, if that is what came of it.

        Does nothing where somebody else has changed the job since `job` was read.
        """
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job.id, job.version)
            if entry is None or entry.job.state != LAUNCHING or entry.attempt.dataflow_job_id:
                return None
            job = entry.job
            again = job.launch_started_at is not None
            job.launch_started_at = self._clock()
            job.missing_since, job.missing_looks = None, 0
            job_store.record(session, job, job.launch_started_at, "launch_started", {"again": again})
        try:
            seen = await self._dataflow.launch(job)
        except RefusedError as error:
            await self._end(job.id, REJECTED, error.detail)
            return error
        except DataflowError as error:
            log.warning("launch of job %s is without an answer: %s", job.id, error.status or error.detail)
            await self._note_cause(job.id, "launch_unanswered", error.detail)
        else:
            await self._adopt(job.id, seen, "launched")
        return None

    async def stop(self, job_id: str, action: Action, actor: str) -> bool:
        """Commits what is asked for, then asks Dataflow; False where it was so already.

        Raises JobNotFoundError and ActionNotAllowedError.
        """
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job_id)
            if entry is None:
                raise JobNotFoundError(f"There is no job {job_id}.")
            job = entry.job
            permissions = allowed_actions(job.state, job.requested_state)
            if permissions[action].verdict is Verdict.ALREADY:
                return False
            if permissions[action].verdict is Verdict.REFUSED:
                allowed = [name for name, given in permissions.items() if given.verdict is Verdict.ALLOWED]
                raise ActionNotAllowedError(
                    permissions[action].reason, members={"state": job.state, "allowed_actions": allowed}
                )
            now = self._clock()
            job.requested_state = raised(job.requested_state, GOALS[action])
            job_store.record(session, job, now, f"{action}_requested", {}, actor)
            if job.state == LAUNCHING and job.launch_started_at is None:
                job_store.end(session, entry, "CANCELLED", now, NEVER_LAUNCHED)
        await self._send_if_due(entry)
        return True

    async def look(self, entry: Entry, listed: Mapping[str, SeenJob]) -> bool:
        """Compares a job with what Dataflow says; True where all is as it was. Raises DataflowError.

        `listed` are the active jobs of the region; a job of its own is asked for only where it is in
        transition or not among them.
        """
        job, attempt = entry
        if attempt.dataflow_job_id is None:
            await self._recover(job)
            return False
        seen = listed.get(attempt.dataflow_job_id)
        if seen is None or is_in_transition(job.state, job.requested_state):
            try:
                seen = await self._dataflow.get(job.project, job.region, attempt.dataflow_job_id)
            except MissingError:
                await self._deny(job, attempt.dataflow_job_id)
                return False
        transition = observe(job.state, job.requested_state, seen.state)
        if not transition.changed and not transition.send and not job.missing_looks:
            return True
        after = await self._record_observation(entry, seen)
        if after is not None:
            await self._send_if_due(after)
        return False

    async def _record_observation(self, entry: Entry, seen: SeenJob) -> Entry | None:
        """Commits what was seen of the job that `entry` holds; None where it has changed meanwhile."""
        job = entry.job
        transition = observe(job.state, job.requested_state, seen.state)
        cause = None
        if transition.changed and transition.state == "FAILED":
            cause = await self._dataflow.failure_cause(job.project, job.region, seen.id)
        async with self._database.transaction() as session:
            current = await job_store.lock(session, job.id, job.version)
            if current is None:
                return None
            job_store.apply(session, current, transition, self._clock(), cause)
        return current

    async def _send_if_due(self, entry: Entry) -> None:
        """Asks Dataflow for the state that is wanted; whatever it answers, what is read decides."""
        job, attempt = entry
        wanted = state_to_send(job.state, job.requested_state)
        if wanted is None or attempt.dataflow_job_id is None:
            return
        try:
            try:
                seen = await self._dataflow.request_state(
                    job.project, job.region, attempt.dataflow_job_id, wanted
                )
            except DataflowError as error:
                log.info("job %s: %s is not taken: %s", job.id, wanted, error.status or error.detail)
                seen = await self._dataflow.get(job.project, job.region, attempt.dataflow_job_id)
                if observe(job.state, job.requested_state, seen.state).send:
                    await self._note_cause(job.id, "stop_unanswered", error.detail)
                    return
        except DataflowError as error:
            await self._note_cause(job.id, "stop_unanswered", error.detail)
            return
        await self._record_observation(entry, seen)

    async def _recover(self, job: Job) -> None:
        """Finds out what became of a launch without an answer, and adopts it or launches again."""
        if job.launch_started_at is None:
            await self.launch(job)
            return
        found = await self._dataflow.find_by_name(job.project, job.region, job.name)
        # A list shows no labels, and the token is one.
        for summary in found:
            seen = await self._dataflow.get(job.project, job.region, summary.id)
            if seen.labels.get(LAUNCH_TOKEN_LABEL) == job.launch_token:
                await self._adopt(job.id, seen, "adopted")
                return
        if self._clock() < job.launch_started_at + self._grace:
            return  # not visible yet, or its labels are not
        if found:
            cause = f"Another job has the name {job.name} ({found[0].id})."
            await self._end(job.id, REJECTED, cause, job.version)
        else:
            await self._after_clean_look(job)

    async def _after_clean_look(self, job: Job) -> None:
        """Counts a look after the grace period that found nothing; enough of them prove it."""
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job.id, job.version)
            if entry is None:
                return
            job, now = entry.job, self._clock()
            job.missing_since = job.missing_since or now
            job.missing_looks += 1
            if job.missing_looks < CLEAN_LOOKS:
                return
            if job.requested_state != "RUNNING":
                job_store.end(session, entry, "CANCELLED", now, NEVER_LAUNCHED)
                return
        await self.launch(job)

    async def _deny(self, job: Job, dataflow_job_id: str) -> None:
        """Notes that Dataflow denies a job it once named; LOST only when it does so for long."""
        found = await self._dataflow.find_by_name(job.project, job.region, job.name)
        still = any(seen.id == dataflow_job_id for seen in found)
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job.id, job.version)
            if entry is None:
                return
            now = self._clock()
            if still:
                entry.job.missing_since, entry.job.missing_looks = None, 0
                return
            if entry.job.missing_since is None:
                entry.job.missing_since = now
                job_store.record(session, entry.job, now, "denied", {"dataflow_job_id": dataflow_job_id})
            entry.job.missing_looks += 1
            if entry.job.missing_looks >= CLEAN_LOOKS and now - entry.job.missing_since >= LOST_AFTER:
                job_store.end(session, entry, LOST, now, "Dataflow has denied this job for ten minutes.")

    async def _adopt(self, job_id: str, seen: SeenJob, kind: str) -> None:
        """Ties the job to the Dataflow job that its launch made."""
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job_id)
            if entry is None or entry.job.ended_at or entry.attempt.dataflow_job_id:
                if entry is not None and entry.attempt.dataflow_job_id != seen.id:
                    log.error("job %s does not take in the Dataflow job %s", job_id, seen.id)
                return
            now = self._clock()
            entry.attempt.dataflow_job_id, entry.attempt.started_at = seen.id, now
            entry.job.cause = None
            job_store.record(session, entry.job, now, kind, {"dataflow_job_id": seen.id})
            transition = observe(entry.job.state, entry.job.requested_state, seen.state)
            if transition.changed and transition.state == "FAILED":
                transition = replace(transition, changed=False)  # the next look brings the cause along
            job_store.apply(session, entry, transition, now, None)
        await self._send_if_due(entry)

    async def _end(self, job_id: str, state: str, cause: str, version: int | None = None) -> None:
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job_id, version)
            if entry and entry.job.state == LAUNCHING and not entry.attempt.dataflow_job_id:
                job_store.end(session, entry, state, self._clock(), cause)

    async def _note_cause(self, job_id: str, kind: str, cause: str) -> None:
        """Keeps the newest reason why something is not done yet; the same one is noted once."""
        async with self._database.transaction() as session:
            entry = await job_store.lock(session, job_id)
            waits = entry and not entry.job.ended_at
            if entry and waits and entry.job.cause != cause:
                entry.job.cause = cause
                job_store.record(session, entry.job, self._clock(), kind, {"cause": cause})
