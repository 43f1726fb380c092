"""Dataflow jobs that this service has not launched: look at them, and take one over."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from service import job_reading
from service.auth import actor
from service.bodies import json_only
from service.dataflow import DataflowError, MissingError, RefusedError, SeenJob
from service.errors import (
    ActionNotAllowedError,
    AlreadyManagedError,
    DatabaseUnavailableError,
    DataflowJobNotFoundError,
    DataflowRefusedError,
    DataflowUnavailableError,
    InvalidRequestError,
    UnsupportedMediaTypeError,
)
from service.job_bodies import Adoption, Region
from service.job_view import JobView
from service.jobs.desk import AtDesk, answered
from service.problems import responses

router = APIRouter(prefix="/jobs")

MOST_SHOWN = 200
RETRY_AFTER_SECONDS = 5


class UnmanagedJob(BaseModel):
    dataflow_job_id: str
    name: str
    region: str
    state: str
    created_at: datetime | None
    adoptable: bool = Field(description="Whether it is a streaming job; this service manages no others")


class UnmanagedPage(BaseModel):
    jobs: list[UnmanagedJob] = Field(description="Newest first")
    truncated: bool = Field(description=f"Whether there are more than these {MOST_SHOWN}")


@router.get(
    "/unmanaged",
    summary="List Dataflow jobs that this service does not manage",
    responses=responses(
        InvalidRequestError, DataflowRefusedError, DataflowUnavailableError, DatabaseUnavailableError
    ),
)
async def list_unmanaged_jobs(
    desk: AtDesk,
    region: Annotated[Region | None, Query(description="By default the region of the settings")] = None,
) -> UnmanagedPage:
    """The active jobs of the project in a region that are not behind a job of ours."""
    place = region or desk.settings.region
    try:
        seen = list((await desk.dataflow.list_active(desk.settings.project, place)).values())
    except DataflowError as error:
        raise told(error) from error
    async with desk.database.session() as session:
        ours = await job_reading.managed(session, seen)
    strangers = sorted((each for each in seen if each.id not in ours), key=_age, reverse=True)
    shown = [
        UnmanagedJob(
            dataflow_job_id=each.id,
            name=each.name,
            region=place,
            state=each.state,
            created_at=each.created_at,
            adoptable=each.streaming,
        )
        for each in strangers[:MOST_SHOWN]
    ]
    return UnmanagedPage(jobs=shown, truncated=len(strangers) > MOST_SHOWN)


@router.post(
    "/adopt",
    status_code=201,
    response_model=JobView,
    summary="Manage a Dataflow job from now on",
    dependencies=[Depends(json_only)],
    responses={
        201: {"headers": {"Location": {"description": "The job", "schema": {"type": "string"}}}},
        **responses(
            AlreadyManagedError,
            ActionNotAllowedError,
            DataflowJobNotFoundError,
            DataflowRefusedError,
            DataflowUnavailableError,
            InvalidRequestError,
            UnsupportedMediaTypeError,
            DatabaseUnavailableError,
        ),
    },
)
async def adopt_job(asked: Adoption, desk: AtDesk, request: Request) -> Response:
    """Makes a job of an active Dataflow job that somebody else has launched; the job itself goes on."""
    try:
        job_id = await desk.control.adopt(
            desk.settings.project, asked.region or desk.settings.region, asked.dataflow_job_id, actor(request)
        )
    except DataflowError as error:
        raise told(error) from error
    desk.reconciler.wake()
    return await answered(desk, job_id, 201)


def told(
    error: DataflowError,
) -> DataflowJobNotFoundError | DataflowRefusedError | DataflowUnavailableError:
    """What a caller is told of a call that did not succeed."""
    if isinstance(error, MissingError):
        return DataflowJobNotFoundError("Dataflow knows no such job in that region.")
    if isinstance(error, RefusedError):
        return DataflowRefusedError(error.detail)
    return DataflowUnavailableError("Dataflow cannot be asked.", retry_after_seconds=RETRY_AFTER_SECONDS)


def _age(seen: SeenJob) -> tuple[float, str]:
    return (seen.created_at.timestamp() if seen.created_at else 0.0, seen.id)
