"""Launching an attempt: intend, act, record; and finding out what became of a launch without an answer."""

from __future__ import annotations

import logging

from service import job_store
from service.dataflow import (
    LAUNCH_TOKEN_LABEL,
    DataflowError,
    Launch,
    MissingError,
    RefusedError,
    SeenJob,
)
from service.job_control import settling
from service.job_control.means import Means, job_name
from service.job_state import REJECTED, observe
from service.job_store import Lineage
from service.models import Attempt, Job

log = logging.getLogger(__name__)

CLEAN_LOOKS = 2
NEVER_LAUNCHED = "The job was asked to stop before Dataflow had it."


class Launching:
    """Acts on attempts that have no Dataflow job yet; keeps nothing in memory."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def launch(self, job_id: str, number: int, version: int) -> RefusedError | None:
        """Launches an attempt whose row is committed; returns Dataflow's refusal, if that came of it.

        Does nothing where somebody else has changed the job since `version`.
        """
        means = self._means
        try:
            refusal = await self._disproof(job_id, number, version)
        except DataflowError as error:  # whether there is a job to replace is not known: later
            await means.note_cause(job_id, "launch_unanswered", error.cause)
            return None
        if refusal:
            await self._end(job_id, number, REJECTED, refusal.detail, version)
            return refusal
        async with means.database.transaction() as session:
            held = await job_store.lock_attempt(session, job_id, number, version)
            if held is None or held[1].dataflow_job_id:
                return None
            lineage, attempt = held
            job, now = lineage.job, means.clock()
            again = attempt.launch_started_at is not None
            attempt.launch_started_at = now
            attempt.missing_since, attempt.missing_looks = None, 0
            if number == job.attempt:
                job.launch_started_at, job.restart_at = now, None
            job_store.record(session, job, now, "launch_started", {"again": again} | settling.about(attempt))
        return await self._call(job, attempt)

    async def recover(self, lineage: Lineage, attempt: Attempt) -> None:
        """Finds out what became of a launch without an answer: takes it in, or launches again.

        Raises DataflowError where Dataflow cannot be asked.
        """
        job, now = lineage.job, self._means.clock()
        is_current = attempt.number == job.attempt
        begun_at = attempt.launch_started_at or (job.launch_started_at if is_current else None)
        if begun_at is None:
            if job.restart_at is None or now >= job.restart_at or not is_current:
                await self.launch(job.id, attempt.number, job.version)
            return
        known = (await self._means.read(job.id)).dataflow_job_ids
        listed = await self._means.dataflow.find_by_name(job.project, job.region, job_name(job, attempt))
        others = [seen for seen in listed if seen.id not in known]
        # A list shows no labels, and the token is one.
        for summary in others:
            try:
                seen = await self._means.dataflow.get(job.project, job.region, summary.id)
            except MissingError:
                return  # not visible to both calls yet
            if seen.labels.get(LAUNCH_TOKEN_LABEL) == (attempt.launch_token or job.launch_token):
                await self.take_in(job.id, attempt.number, seen, "adopted")
                return
        if now < begun_at + self._means.grace:
            return  # not visible yet, or its labels are not
        if others and attempt.kind != "update":
            cause = f"Another job has the name {job_name(job, attempt)} ({others[0].id})."
            await self._end(job.id, attempt.number, REJECTED, cause, job.version)
        else:
            await self._after_clean_look(job, attempt)

    async def take_in(self, job_id: str, number: int, seen: SeenJob, kind: str) -> None:
        """Ties an attempt to the Dataflow job that its launch made."""
        async with self._means.database.transaction() as session:
            held = await job_store.lock_attempt(session, job_id, number)
            if held is None or held[1].dataflow_job_id:
                if held is None or held[1].dataflow_job_id != seen.id:
                    log.error("attempt %d of job %s does not take in %s", number, job_id, seen.id)
                return
            lineage, attempt = held
            now = self._means.clock()
            if other := await job_store.holder(session, seen.id):
                # Adopted by a release that did not look for the launch it came of.
                settling.end(session, lineage, attempt, REJECTED, now, settling.held_by(other, seen.id))
                return
            settling.tie(session, lineage, attempt, seen.id, now, kind)
            transition = observe(attempt.state, lineage.job.requested_state, seen.state)
            if (
                not transition.ended
            ):  # an end is for the next look, which asks for its cause and its successor
                settling.see(session, lineage, attempt, transition, now, None)

    async def _disproof(self, job_id: str, number: int, version: int) -> RefusedError | None:
        """Why an update cannot be launched: there is no RUNNING job to replace, by Dataflow's own word.

        Without that proof the launcher of Beam 2.77 waits for such a job for ever.
        """
        lineage = await self._means.read(job_id)
        attempt = lineage.find(number)
        if attempt is None or attempt.kind != "update" or lineage.job.version != version:
            return None
        job, replaced = lineage.job, lineage.find(attempt.replaces)
        if replaced is None or replaced.dataflow_job_id is None:
            return RefusedError("There is no Dataflow job to replace.", "FAILED_PRECONDITION")
        try:
            seen = await self._means.dataflow.get(job.project, job.region, replaced.dataflow_job_id)
        except MissingError as error:
            return error
        if seen.state != "RUNNING" or seen.name != job_name(job, attempt):
            return RefusedError(f"The job to replace is {seen.state}, not RUNNING.", "FAILED_PRECONDITION")
        return None

    async def _call(self, job: Job, attempt: Attempt) -> RefusedError | None:
        means, number = self._means, attempt.number
        wanted = Launch(
            project=job.project,
            region=job.region,
            name=job_name(job, attempt),
            template_path=attempt.template_path or job.template_path,
            launch_token=attempt.launch_token or job.launch_token,
            parameters=job.parameters if attempt.parameters is None else attempt.parameters,
            environment=job.environment if attempt.environment is None else attempt.environment,
            labels=job.labels,
        )
        try:
            seen = await means.dataflow.launch(
                wanted,
                update=attempt.kind == "update",
                transform_name_mappings=attempt.transform_name_mappings,
            )
        except RefusedError as error:
            await self._end(job.id, number, REJECTED, error.cause)
            return error
        except DataflowError as error:
            until = (attempt.launch_started_at or means.clock()) + means.grace
            cause = f"{error.cause} (the job may still appear until {until:%H:%M:%S} UTC)"
            await means.note_cause(job.id, "launch_unanswered", cause)
        else:
            await self.take_in(job.id, number, seen, "launched")
        return None

    async def _after_clean_look(self, job: Job, attempt: Attempt) -> None:
        """Counts a look after the grace period that found nothing; enough of them prove it."""
        async with self._means.database.transaction() as session:
            held = await job_store.lock_attempt(session, job.id, attempt.number, job.version)
            if held is None:
                return
            lineage, own = held
            now = self._means.clock()
            own.missing_since = own.missing_since or now
            own.missing_looks += 1
            if own.missing_looks < CLEAN_LOOKS:
                return
            if lineage.job.requested_state != "RUNNING":
                settling.end(session, lineage, own, "CANCELLED", now, NEVER_LAUNCHED)
                return
        await self.launch(job.id, attempt.number, job.version)

    async def _end(
        self, job_id: str, number: int, state: str, cause: str, version: int | None = None
    ) -> None:
        async with self._means.database.transaction() as session:
            held = await job_store.lock_attempt(session, job_id, number, version)
            if held and not held[1].dataflow_job_id:
                settling.end(session, *held, state, self._means.clock(), cause)
