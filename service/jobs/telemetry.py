"""`GET /jobs/{id}/messages` and `/metrics`: what Dataflow says of a job."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from service import job_store
from service.dataflow import Importance
from service.errors import (
    DatabaseUnavailableError,
    DataflowRefusedError,
    DataflowUnavailableError,
    InvalidPageTokenError,
    InvalidRequestError,
    JobNotFoundError,
)
from service.job_metrics import MetricsView
from service.jobs.desk import AtDesk, Desk, known
from service.json_values import Moment
from service.models import Attempt, Job
from service.problems import responses
from service.telemetry import MessageQuery, MessagesView

router = APIRouter(prefix="/jobs")

AttemptNumber = Annotated[
    int | None, Query(ge=1, le=1_000_000, description="An attempt of the job; by default the current one")
]


@router.get(
    "/{job_id}/messages",
    summary="Read what Dataflow says of a job",
    responses=responses(
        JobNotFoundError,
        InvalidRequestError,
        InvalidPageTokenError,
        DataflowRefusedError,
        DataflowUnavailableError,
        DatabaseUnavailableError,
    ),
)
async def list_job_messages(
    job_id: str,
    desk: AtDesk,
    importance: Annotated[Importance, Query(description="Only messages of this gravity or more")] = "BASIC",
    since: Annotated[Moment | None, Query(description="RFC 3339; without an offset it means UTC")] = None,
    attempt: AttemptNumber = None,
    page_size: Annotated[int, Query(ge=1, le=1000)] = 100,
    page_token: Annotated[str, Query(max_length=2048)] = "",
) -> MessagesView:
    """Messages and autoscaling events of the job, oldest first."""
    job, shown = await _attempt(desk, job_id, attempt)
    if since is not None and not 1970 <= since.year <= 9998:
        raise InvalidRequestError("query.since lies outside of the years 1970 to 9998.")
    return await desk.telemetry.messages(job, shown, MessageQuery(importance, since, page_token, page_size))


@router.get(
    "/{job_id}/metrics",
    summary="Measure a job",
    responses=responses(JobNotFoundError, InvalidRequestError, DatabaseUnavailableError),
)
async def measure_job(job_id: str, desk: AtDesk, attempt: AttemptNumber = None) -> MetricsView:
    """What the job does now, and what waits for it; null is not known."""
    job, shown = await _attempt(desk, job_id, attempt)
    return await desk.telemetry.metrics(job, shown, desk.clock())


async def _attempt(desk: Desk, job_id: str, number: int | None) -> tuple[Job, Attempt]:
    """The job with the attempt that is asked for. Raises JobNotFoundError and InvalidRequestError."""
    entry = await known(desk, job_id)
    if number is None or number == entry.job.attempt:
        return entry.job, entry.attempt
    async with desk.database.session() as session:
        attempts = await job_store.attempts(session, job_id)
    for attempt in attempts:
        if attempt.number == number:
            return entry.job, attempt
    raise InvalidRequestError(f"query.attempt: the job has no attempt {number}.")
