"""The /jobs routes: launch, list, look at, drain and cancel jobs."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, NamedTuple

import sqlalchemy.exc
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from service import job_store
from service.auth import actor
from service.config import Settings
from service.dataflow import Dataflow, RefusedError
from service.db import Database
from service.errors import (
    ActionNotAllowedError,
    BodyTimeoutError,
    DatabaseUnavailableError,
    InvalidPageTokenError,
    InvalidParametersError,
    InvalidRequestError,
    JobNotFoundError,
    SubscriptionInUseError,
    UnknownPipelineError,
    UnsupportedMediaTypeError,
)
from service.job_control import JobControl
from service.job_request import new_job
from service.job_state import Action
from service.job_store import Filters
from service.job_view import EventPage, JobPage, JobView, NewJob, show, show_event, summarize
from service.models import ID_LENGTH, Job, utc_now
from service.problems import responses
from service.reconciler import Reconciler

router = APIRouter(prefix="/jobs", tags=["jobs"])

PIPELINES = ("user-signin",)
COMMIT_TRIES = 3
_JOB_ID = re.compile(f"[0-9a-z]{{{ID_LENGTH}}}")


class Desk(NamedTuple):
    """What the routes work with, as the application was made with it."""

    settings: Settings
    database: Database
    dataflow: Dataflow
    reconciler: Reconciler
    actor: str

    @property
    def control(self) -> JobControl:
        return self.reconciler.control


def desk(request: Request) -> Desk:
    state = request.app.state
    return Desk(state.settings, state.database, state.dataflow, state.reconciler, actor(request))


AtDesk = Annotated[Desk, Depends(desk)]


def require_json(request: Request) -> None:
    """Raises UnsupportedMediaTypeError; a page of another site cannot send JSON without being asked."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaTypeError("Send the job as application/json.")


@router.post(
    "",
    status_code=202,
    summary="Launch a job",
    dependencies=[Depends(require_json)],
    responses={
        202: {"headers": {"Location": {"description": "The job", "schema": {"type": "string"}}}},
        **responses(
            BodyTimeoutError,
            SubscriptionInUseError,
            UnsupportedMediaTypeError,
            InvalidRequestError,
            InvalidParametersError,
            UnknownPipelineError,
            DatabaseUnavailableError,
        ),
    },
)
async def launch_job(asked: NewJob, desk: AtDesk, response: Response) -> JobView:
    """Commits the job, then launches it once. Look at `state` for what became of it.

    LAUNCHING says that Dataflow's answer is not known yet; the service finds out by itself. REJECTED
    says that Dataflow refused.
    """
    if asked.pipeline not in PIPELINES:
        raise UnknownPipelineError(f"Pipelines: {', '.join(PIPELINES)}.")
    job = await commit_job(asked, desk)
    refusal = await desk.control.launch(job)
    desk.reconciler.wake()
    if refusal and refusal.status == "INVALID_ARGUMENT":
        raise invalid_parameters(job, refusal)
    response.headers["Location"] = f"/jobs/{job.id}"
    return await whole_job(desk, job.id, with_counters=False)


@router.get(
    "",
    summary="List jobs",
    responses=responses(InvalidPageTokenError, InvalidRequestError, DatabaseUnavailableError),
)
async def list_jobs(
    desk: AtDesk,
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
    page_token: Annotated[str | None, Query(max_length=256)] = None,
    state: Annotated[str | None, Query(pattern="^[A-Z_]{1,32}$")] = None,
    active: bool | None = None,
    name: Annotated[
        str | None, Query(pattern="^[-a-z0-9]{1,128}$", description="The full name, or its base")
    ] = None,
) -> JobPage:
    """Jobs, newest first, in pages that stay right while jobs are added."""
    async with desk.database.session() as session:
        entries, token = await job_store.page(session, Filters(state, active, name), page_token, page_size)
    now = utc_now()
    return JobPage(jobs=[summarize(entry, desk.settings, now) for entry in entries], next_page_token=token)


@router.get(
    "/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    responses={
        200: {"headers": {"ETag": {"schema": {"type": "string"}}}},
        304: {"description": "The job is as `If-None-Match` knows it."},
        **responses(JobNotFoundError, DatabaseUnavailableError),
    },
)
async def get_job(
    job_id: str, desk: AtDesk, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The job as it was last observed, with what it has counted and what may be asked of it."""
    view = await whole_job(desk, job_id, with_counters=True)
    body = view.model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, headers={"ETag": etag}, media_type="application/json")


@router.get(
    "/{job_id}/events",
    summary="Read a job's history",
    responses=responses(JobNotFoundError, InvalidRequestError, DatabaseUnavailableError),
)
async def list_job_events(
    job_id: str,
    desk: AtDesk,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Entries after this sequence")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> EventPage:
    """What happened to the job, and who asked for it."""
    require_job_id(job_id)
    async with desk.database.session() as session:
        if await job_store.find(session, job_id) is None:
            raise not_found(job_id)
        events = await job_store.events(session, job_id, after, limit)
    return EventPage(events=[show_event(event) for event in events])


_STOP: dict[str, Any] = {
    "status_code": 202,
    "response_model": JobView,
    "responses": {
        200: {"model": JobView, "description": "It was so already."},
        **responses(JobNotFoundError, ActionNotAllowedError, DatabaseUnavailableError),
    },
}


@router.post("/{job_id}/drain", summary="Drain a job", **_STOP)
async def drain_job(job_id: str, desk: AtDesk, response: Response) -> JobView:
    """Lets the job finish what it has read, and end. Asked for before it runs, it is kept until then."""
    return await stop_job(job_id, "drain", desk, response)


@router.post("/{job_id}/cancel", summary="Cancel a job", **_STOP)
async def cancel_job(job_id: str, desk: AtDesk, response: Response) -> JobView:
    """Ends the job at once. What it had not acknowledged is delivered again to the next job."""
    return await stop_job(job_id, "cancel", desk, response)


async def stop_job(job_id: str, action: Action, desk: Desk, response: Response) -> JobView:
    require_job_id(job_id)
    if not await desk.control.stop(job_id, action, desk.actor):
        response.status_code = 200
    desk.reconciler.wake()
    return await whole_job(desk, job_id, with_counters=False)


async def whole_job(desk: Desk, job_id: str, *, with_counters: bool) -> JobView:
    """The job with its attempts; raises JobNotFoundError."""
    require_job_id(job_id)
    async with desk.database.session() as session:
        entry = await job_store.find(session, job_id)
        if entry is None:
            raise not_found(job_id)
        attempts = await job_store.attempts(session, job_id)
    counters, dataflow_job_id = None, entry.attempt.dataflow_job_id
    if with_counters and dataflow_job_id:
        job = entry.job
        counters = await desk.dataflow.counters(job.project, job.region, dataflow_job_id, job.state)
    return show(entry, attempts, counters, desk.settings, utc_now())


async def commit_job(asked: NewJob, desk: Desk) -> Job:
    """Writes the new job down and returns it. Raises SubscriptionInUseError and InvalidRequestError."""
    for _ in range(COMMIT_TRIES):
        job = new_job(asked, desk.settings, utc_now())
        try:
            async with desk.database.transaction() as session:
                if job.subscription and not asked.shared_subscription:
                    refuse_if_in_use(await job_store.active_on(session, job.subscription))
                await job_store.insert(session, job, desk.actor)
        except sqlalchemy.exc.IntegrityError:
            # Another request was faster: the unique index is the judge, the query above only the speaker.
            # Its job may have ended since, so look again.
            continue
        return job
    raise DatabaseUnavailableError("Other requests took the subscription at the same time. Try again.")


def refuse_if_in_use(holder: Job | None) -> None:
    if holder:
        raise SubscriptionInUseError(
            f"The active job {holder.id} reads {holder.subscription}. Two jobs on one subscription share "
            "its messages; set shared_subscription where that is wanted.",
            members={"job_id": holder.id},
        )


def invalid_parameters(job: Job, refusal: RefusedError) -> InvalidParametersError:
    errors = [
        {"field": f"body.parameters.{name}", "detail": description}
        for name, description in refusal.violations
    ]
    return InvalidParametersError(refusal.detail, members={"job_id": job.id, "errors": errors})


def require_job_id(job_id: str) -> None:
    if not _JOB_ID.fullmatch(job_id):
        raise not_found(job_id)


def not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"There is no job {job_id[:64]!r}.")
