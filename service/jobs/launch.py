"""`POST /jobs`: a request becomes a job, once."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import sqlalchemy.exc
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from service import idempotency, job_store, problems
from service.auth import actor
from service.bodies import json_only
from service.dataflow import CONNECT_SECONDS, RefusedError
from service.errors import (
    BodyTimeoutError,
    DatabaseUnavailableError,
    IdempotencyInFlightError,
    IdempotencyMismatchError,
    InvalidIdempotencyKeyError,
    InvalidParametersError,
    InvalidRequestError,
    SubscriptionInUseError,
    TemplateNotSetError,
    UnknownPipelineError,
    UnsupportedMediaTypeError,
)
from service.idempotency import KeyedRequest, Unfinished
from service.job_bodies import NewJob
from service.job_request import new_job, require_parameters
from service.job_view import JobView
from service.jobs.desk import AtDesk, Desk, Key, answered
from service.models import Job
from service.pipelines import pipeline_of
from service.problems import responses

log = logging.getLogger(__name__)

router = APIRouter(prefix="/jobs")

COMMIT_TRIES = 3
_SPARE_SECONDS = 10.0


class Validated(BaseModel):
    """What would be launched."""

    valid: bool = True
    template_checked: bool = Field(
        description="Whether the template's own rules were at hand; if not, Dataflow alone judges"
    )
    pipeline: str
    project: str
    region: str
    template_path: str
    subscription: str | None
    parameters: dict[str, str]
    environment: dict[str, Any]
    labels: dict[str, str]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    summary="Launch a job",
    dependencies=[Depends(json_only)],
    responses={
        200: {"model": Validated, "description": "With `validate_only`: nothing is launched."},
        202: {"headers": {"Location": {"description": "The job", "schema": {"type": "string"}}}},
        **responses(
            BodyTimeoutError,
            SubscriptionInUseError,
            UnsupportedMediaTypeError,
            InvalidRequestError,
            InvalidParametersError,
            UnknownPipelineError,
            TemplateNotSetError,
            InvalidIdempotencyKeyError,
            IdempotencyInFlightError,
            IdempotencyMismatchError,
            DatabaseUnavailableError,
        ),
    },
)
async def launch_job(
    asked: NewJob,
    desk: AtDesk,
    key: Key,
    request: Request,
    validate_only: Annotated[bool, Query(description="Check the request, launch nothing")] = False,
) -> Response:
    """Commits the job, then launches it once. Look at `state` for what became of it.

    LAUNCHING says that Dataflow's answer is not known yet; the service finds out by itself. REJECTED
    says that Dataflow refused.
    """
    if validate_only:
        return await validated(asked, desk)
    keyed = idempotency.keyed(key, "POST /jobs", asked, actor(request))
    if keyed:
        # Before anything is checked: what was right then may be refused by the settings of today.
        async with desk.database.session() as session:
            if answer := await idempotency.stored(session, keyed, desk.clock()):
                return answer
    committed = await commit_job(asked, desk, keyed, actor(request))
    if isinstance(committed, Response):
        return committed
    if isinstance(committed, Unfinished):
        assert committed.job_id
        answer = await answered(desk, committed.job_id, 202)
        answer.headers["Idempotency-Replayed"] = "true"
    else:
        answer = await launched(committed, desk, request)
    await desk.answers.keep(keyed, answer, desk.clock())
    return answer


async def launched(job: Job, desk: Desk, request: Request) -> Response:
    """Launches the committed job; a refusal of its parameters is told as such."""
    refusal = await desk.control.launch(job)
    desk.reconciler.wake()
    if refusal and refusal.status == "INVALID_ARGUMENT":
        return problems.answer_to(request.scope, invalid_parameters(refusal, job.id))
    return await answered(desk, job.id, 202)


async def validated(asked: NewJob, desk: Desk) -> Response:
    """What would be launched. Raises as the launch would, as far as that can be known without it."""
    job = await checked_job(asked, desk)
    spec = await desk.templates.find(pipeline_of(desk.settings, asked.pipeline))
    if job.subscription and not asked.shared_subscription:
        async with desk.database.session() as session:
            refuse_if_in_use(await job_store.active_on(session, job.subscription))
    members = job.model_dump(include=set(Validated.model_fields))
    members["labels"].pop("signin-job")  # nobody has this id
    return Response(
        Validated(template_checked=spec is not None, **members).model_dump_json(),
        media_type="application/json",
    )


async def checked_job(asked: NewJob, desk: Desk) -> Job:
    """The row of the new job.

    Raises InvalidRequestError, UnknownPipelineError, TemplateNotSetError and InvalidParametersError.
    """
    job = new_job(asked, desk.settings, desk.clock())
    spec = await desk.templates.find(pipeline_of(desk.settings, asked.pipeline))
    require_parameters(spec, job.parameters)
    return job


async def commit_job(
    asked: NewJob, desk: Desk, keyed: KeyedRequest | None, by: str
) -> Job | Response | Unfinished:
    """Writes the new job and its key down; or what an earlier request under the key has come to.

    Raises SubscriptionInUseError, and as `checked_job` does.
    """
    for _ in range(COMMIT_TRIES):
        now = desk.clock()
        job = await checked_job(asked, desk)
        try:
            async with desk.database.transaction() as session:
                if keyed:
                    earlier = await idempotency.take(
                        session, keyed, now, busy_seconds=busy_seconds(desk), job_id=job.id
                    )
                    if earlier is not None:
                        return earlier
                if job.subscription and not asked.shared_subscription:
                    refuse_if_in_use(await job_store.active_on(session, job.subscription))
                await job_store.insert(session, job, by)
        except sqlalchemy.exc.IntegrityError:
            # Another request was faster: the unique index is the judge, the query above only the speaker.
            # Its job may have ended since, so look again.
            continue
        return job
    raise DatabaseUnavailableError("Other requests took the subscription at the same time. Try again.")


def busy_seconds(desk: Desk) -> float:
    """How long a request may work on its answer: one call of Dataflow and what is around it."""
    return desk.settings.dataflow_deadline_seconds + CONNECT_SECONDS + _SPARE_SECONDS


def refuse_if_in_use(holder: Job | None) -> None:
    if holder:
        raise SubscriptionInUseError(
            f"The active job {holder.id} reads {holder.subscription}. Two jobs on one subscription share "
            "its messages; set shared_subscription where that is wanted.",
            members={"job_id": holder.id},
        )


def invalid_parameters(refusal: RefusedError, job_id: str) -> InvalidParametersError:
    """Dataflow's refusal, by fields of the request."""
    errors = [
        {"field": f"body.parameters.{name}", "detail": description}
        for name, description in refusal.violations
    ]
    return InvalidParametersError(refusal.detail, members={"job_id": job_id, "errors": errors})
