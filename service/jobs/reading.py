"""`GET /jobs` and `GET /jobs/{id}`: what the database says of jobs."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import Field

from service import job_reading
from service.errors import (
    DatabaseUnavailableError,
    InvalidPageTokenError,
    InvalidRequestError,
    JobNotFoundError,
    MethodNotAllowedError,
)
from service.job_reading import Filters
from service.job_state import STATES
from service.job_view import JobPage, JobView, summarize
from service.jobs.desk import AtDesk, whole_job
from service.problems import responses

router = APIRouter(prefix="/jobs")

State = Annotated[str, Field(json_schema_extra={"enum": sorted(STATES)})]  # judged below, in one sentence


@router.get(
    "",
    summary="List jobs",
    responses=responses(InvalidPageTokenError, InvalidRequestError, DatabaseUnavailableError),
)
async def list_jobs(
    desk: AtDesk,
    page_size: Annotated[int, Query(ge=1, le=200)] = 50,
    page_token: Annotated[str | None, Query(max_length=256)] = None,
    state: Annotated[list[State] | None, Query(max_length=32, description="May be repeated")] = None,
    active: bool | None = None,
    name: Annotated[
        str | None, Query(pattern="^[-a-z0-9]{1,128}$", description="The full name, or its base")
    ] = None,
    pipeline: Annotated[str | None, Query(pattern="^[A-Za-z0-9_.-]{1,64}$")] = None,
) -> JobPage:
    """Jobs, newest first, in pages that stay right while jobs are added."""
    require_states(state or [])
    async with desk.database.session() as session:
        filters = Filters(state, active, name, pipeline)
        entries, token = await job_reading.page(session, filters, page_token, page_size)
    now = desk.clock()
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
    if job_id == "adopt":  # an address of its own, which nobody can look at
        raise MethodNotAllowedError("This address takes POST alone.", headers={"Allow": "POST"})
    view = await whole_job(desk, job_id, with_counters=True)
    body = view.model_dump_json().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers={"ETag": etag})
    return Response(body, headers={"ETag": etag}, media_type="application/json")


def require_states(states: list[str]) -> None:
    """Raises InvalidRequestError for a state that no job can have."""
    unknown = [state for state in states if state not in STATES]
    if unknown:
        detail = f"No such state. States: {', '.join(sorted(STATES))}."
        raise InvalidRequestError(
            f"query.state: {detail}", members={"errors": [{"field": "query.state", "detail": detail}]}
        )
