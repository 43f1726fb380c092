"""What the /jobs routes work with, and the answers that several of them give."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request, Response

from service import job_store
from service.bodies import json_only
from service.config import Settings
from service.dataflow import Dataflow
from service.db import Database
from service.errors import JobNotFoundError
from service.google_rest import GoogleRest
from service.idempotency import Answers, idempotency_key
from service.job_control import JobControl
from service.job_store import Entry
from service.job_streams import Streams
from service.job_view import JobView, show
from service.models import ID_LENGTH, utc_now
from service.reconciler import Reconciler
from service.telemetry import Telemetry
from service.template_specs import TemplateSpecs

_JOB_ID = re.compile(f"[0-9a-z]{{{ID_LENGTH}}}")


@dataclass
class Desk:
    """Made once with the application; `close` ends what it has opened."""

    settings: Settings
    database: Database
    dataflow: Dataflow
    reconciler: Reconciler
    rest: GoogleRest
    clock: Callable[[], datetime] = utc_now
    answers: Answers = field(init=False)
    streams: Streams = field(init=False)
    telemetry: Telemetry = field(init=False)
    templates: TemplateSpecs = field(init=False)

    def __post_init__(self) -> None:
        self.answers = Answers(self.database)
        self.streams = Streams(self.database, self.settings)
        self.telemetry = Telemetry(self.dataflow, self.rest, self.settings)
        self.templates = TemplateSpecs(self.rest, self.settings)

    @property
    def control(self) -> JobControl:
        return self.reconciler.control

    async def close(self) -> None:
        self.streams.close()
        await self.rest.close()


def desk(request: Request) -> Desk:
    made: Desk = request.app.state.desk
    return made


AtDesk = Annotated[Desk, Depends(desk)]
Key = Annotated[str | None, Depends(idempotency_key)]


def json_only_if_any(request: Request) -> None:
    """`json_only` where the body may be left out."""
    headers = request.headers
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        json_only(request)


async def known(desk: Desk, job_id: str) -> Entry:
    """Raises JobNotFoundError."""
    require_job_id(job_id)
    async with desk.database.session() as session:
        entry = await job_store.find(session, job_id)
    if entry is None:
        raise not_found(job_id)
    return entry


async def whole_job(desk: Desk, job_id: str, *, with_counters: bool = False) -> JobView:
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
    return show(entry, attempts, counters, desk.settings, desk.clock())


async def answered(desk: Desk, job_id: str, status: int) -> Response:
    """The whole job as the answer to an act on it."""
    view = await whole_job(desk, job_id)
    headers = {"Location": f"/jobs/{job_id}"} if status in (201, 202) else {}
    return Response(view.model_dump_json(), status, headers, "application/json")


def require_job_id(job_id: str) -> None:
    """Raises JobNotFoundError for what cannot be an id."""
    if not _JOB_ID.fullmatch(job_id):
        raise not_found(job_id)


def not_found(job_id: str) -> JobNotFoundError:
    return JobNotFoundError(f"There is no job {job_id[:64]!r}.")
