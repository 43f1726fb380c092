"""Changing a job that runs: its replacement by another launch, and the bounds of its workers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service import job_store
from service.dataflow import DataflowError, RefusedError
from service.errors import ActionNotAllowedError, InvalidRequestError
from service.job_control import settling
from service.job_control.launching import Launching
from service.job_control.means import Means, job_name
from service.job_state import LAUNCHING
from service.job_store import Lineage
from service.models import Attempt, Job

log = logging.getLogger(__name__)

SOURCES = ("input_subscription", "input_topic")


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """The whole values of the replacement, and the attempt whose values they were made from.

    `transform_name_mappings` are old names of transforms to new ones.
    """

    template_path: str
    parameters: Mapping[str, str]
    environment: Mapping[str, Any]
    base_attempt: int
    transform_name_mappings: Mapping[str, str] = field(default_factory=dict)


class Updating:
    """The replacement is an attempt of the same job; the old one goes on until it works."""

    def __init__(self, means: Means, launching: Launching) -> None:
        self._means = means
        self._launching = launching

    async def update(self, job_id: str, asked: UpdateRequest, actor: str) -> RefusedError | None:
        """Commits the replacement, then launches it once; returns Dataflow's refusal, if that came of it."""
        async with self._means.database.transaction() as session:
            found = await job_store.lock(session, job_id)
            now = self._means.clock()
            lineage, _ = self._means.permit(found, job_id, "update", now)
            job = lineage.job
            require_base(job, asked)
            replaced = lineage.attempt
            keep_values(job, replaced)
            attempt = Attempt(
                job_id=job.id,
                number=max(attempt.number for attempt in lineage.attempts) + 1,
                kind="update",
                replaces=replaced.number,
                state=LAUNCHING,
                created_at=now,
                job_name=job_name(job, replaced),
                launch_token=settling.new_token(),
                template_path=asked.template_path,
                parameters=dict(asked.parameters),
                environment=dict(asked.environment),
                transform_name_mappings=dict(asked.transform_name_mappings),
            )
            session.add(attempt)
            job.pending_attempt = attempt.number
            detail = {"attempt": attempt.number, "replaces": replaced.number, "template": asked.template_path}
            job_store.record(session, job, now, "update_requested", detail, actor)
        return await self._launching.launch(job.id, attempt.number, job.version)

    async def scale(
        self, job_id: str, min_workers: int | None, max_workers: int | None, actor: str
    ) -> RefusedError | None:
        """Commits bounds of the workers, None for one that stays, then tells them to Dataflow.

        Kept until the job runs. Returns Dataflow's refusal, if that came of it.
        """
        async with self._means.database.transaction() as session:
            found = await job_store.lock(session, job_id)
            now = self._means.clock()
            lineage, _ = self._means.permit(found, job_id, "scale", now)
            job = lineage.job
            job.min_workers = job.min_workers if min_workers is None else min_workers
            job.max_workers = job.max_workers if max_workers is None else max_workers
            if job.min_workers is not None and job.max_workers is not None:
                require_order(job.min_workers, job.max_workers)
            job.scaling_pending = True
            detail = {"min_workers": job.min_workers, "max_workers": job.max_workers}
            job_store.record(session, job, now, "scale_requested", detail, actor)
        return await self.send_bounds(lineage)

    async def send_bounds(self, lineage: Lineage) -> RefusedError | None:
        """Tells Dataflow the bounds that it does not know yet, once the job runs."""
        job, attempt, means = lineage.job, lineage.attempt, self._means
        if not job.scaling_pending or attempt.state != "RUNNING" or not attempt.dataflow_job_id:
            return None
        refusal = None
        try:
            await means.dataflow.set_workers(
                job.project,
                job.region,
                attempt.dataflow_job_id,
                min_workers=job.min_workers,
                max_workers=job.max_workers,
            )
        except RefusedError as error:
            refusal = error
        except DataflowError as error:
            log.info("job %s: bounds of workers are not taken: %s", job.id, error.status or error.detail)
            await means.note_cause(job.id, "scale_unanswered", error.cause)
            return None
        await self._note_bounds(lineage, refusal)
        return refusal

    async def _note_bounds(self, lineage: Lineage, refusal: RefusedError | None) -> None:
        told = (lineage.job.min_workers, lineage.job.max_workers)
        async with self._means.database.transaction() as session:
            current = await job_store.lock(session, lineage.job.id)
            if current is None or current.job.ended_at or current.job.attempt != lineage.job.attempt:
                return
            job = current.job
            if not job.scaling_pending or (job.min_workers, job.max_workers) != told:
                return  # others are wanted by now, and will be told
            job.scaling_pending = False
            job.cause = refusal.detail if refusal else None
            detail: dict[str, Any] = {"min_workers": told[0], "max_workers": told[1]}
            kind = "scale_refused" if refusal else "scaled"
            detail |= {"cause": refusal.detail} if refusal else {}
            job_store.record(session, job, self._means.clock(), kind, detail)


def require_base(job: Job, asked: UpdateRequest) -> None:
    """Raises where the request was made over other values than the job's, or reads from elsewhere."""
    if asked.base_attempt != job.attempt:
        raise ActionNotAllowedError("Another update was done meanwhile.", members={"state": job.state})
    for name in SOURCES:
        if asked.parameters.get(name) != job.parameters.get(name) and not job.adopted:
            raise InvalidRequestError(f"An update cannot change {name}: launch another job.")


def require_order(min_workers: int, max_workers: int) -> None:
    """Raises InvalidRequestError where the least is more than the most."""
    if min_workers > max_workers:
        raise InvalidRequestError(f"min_workers {min_workers} is more than max_workers {max_workers}.")


def keep_values(job: Job, attempt: Attempt) -> None:
    """Writes the job's values into an attempt that does not repeat them, before others take their place."""
    attempt.job_name = attempt.job_name or job.name
    attempt.launch_token = attempt.launch_token or job.launch_token
    attempt.launch_started_at = attempt.launch_started_at or job.launch_started_at
    attempt.template_path = attempt.template_path or job.template_path
    attempt.parameters = job.parameters if attempt.parameters is None else attempt.parameters
    attempt.environment = job.environment if attempt.environment is None else attempt.environment
