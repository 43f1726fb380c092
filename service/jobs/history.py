"""`GET /jobs/{id}/events`: what happened to a job, as a page or as a stream."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from service import job_store
from service.auth import Guard
from service.errors import (
    DatabaseUnavailableError,
    InvalidRequestError,
    JobNotFoundError,
    TooManyStreamsError,
)
from service.job_streams import MEDIA_TYPE
from service.job_view import EventPage, show_event
from service.jobs.desk import AtDesk, not_found, require_job_id
from service.problems import responses

router = APIRouter(prefix="/jobs")

_LARGEST = 2**31 - 1


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    summary="Read or follow a job's history",
    responses={
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "As a stream: the job has ended and nothing follows that entry."},
        **responses(JobNotFoundError, InvalidRequestError, TooManyStreamsError, DatabaseUnavailableError),
    },
)
async def list_job_events(
    job_id: str,
    desk: AtDesk,
    request: Request,
    after: Annotated[int, Query(ge=0, le=_LARGEST, description="Entries after this sequence")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most entries of a page")] = 200,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=_LARGEST, description="The same as `after`, for a stream")
    ] = None,
) -> EventPage | Response:
    """What happened to the job, and who asked for it.

    With `Accept: text/event-stream` each entry is a Server-Sent Event, its id the sequence; the stream
    ends when the job has ended, or the key or token is good no more.
    """
    require_job_id(job_id)
    is_stream = MEDIA_TYPE in request.headers.get("accept", "")
    if is_stream:
        after = max(after, last_event_id or 0)
    async with desk.database.session() as session:
        entry = await job_store.find(session, job_id)
        if entry is None:
            raise not_found(job_id)
        events = await job_store.events(session, job_id, after, 1 if is_stream else limit)
    if not is_stream:
        return EventPage(events=[show_event(event) for event in events])
    if entry.job.ended_at and not events:
        return Response(status_code=204)  # this keeps an EventSource from coming back
    guard: Guard = request.app.state.guard
    return desk.streams.follow(job_id, after, partial(guard.still_admits, request.scope))
