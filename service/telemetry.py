"""What Dataflow and Cloud Monitoring say of a job, asked for at most every few seconds."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel, Field

from service.config import Settings
from service.dataflow import (
    Dataflow,
    DataflowError,
    Importance,
    MessagePage,
    MissingError,
    RefusedError,
    SeenMetrics,
)
from service.errors import DataflowRefusedError, DataflowUnavailableError, InvalidPageTokenError
from service.google_rest import GoogleRest
from service.job_metrics import MetricsView, Sample, handled, metrics_view, next_sample
from service.kept import Kept
from service.models import Attempt, Job
from service.monitoring import Monitoring

MOST_KEPT_SECONDS = 5.0
DEADLINE_SECONDS = 10.0
RETRY_AFTER_SECONDS = 5


class MessageView(BaseModel):
    id: str
    at: datetime
    importance: str = Field(description="DEBUG, DETAILED, BASIC, WARNING or ERROR, in this order of gravity")
    text: str


class ScalingView(BaseModel):
    at: datetime
    kind: str
    workers: int
    target_workers: int
    text: str


class MessagesView(BaseModel):
    """A page of what Dataflow says of a job, from the oldest to the newest."""

    dataflow_job_id: str | None
    stale: bool = Field(description="Whether Dataflow cannot be asked now and this is what it said before")
    messages: list[MessageView]
    scaling: list[ScalingView] = Field(description="Autoscaling events of the same page")
    next_page_token: str | None


class MessageQuery(NamedTuple):
    importance: Importance = "BASIC"
    since: datetime | None = None
    page_token: str = ""
    page_size: int = 100


class _Looked(NamedTuple):
    seen: SeenMetrics
    sample: Sample


class Telemetry:
    """Keeps answers for a moment; when Dataflow is away, what it said last, marked as stale."""

    def __init__(self, dataflow: Dataflow, rest: GoogleRest, settings: Settings) -> None:
        self._dataflow = dataflow
        self._monitoring = Monitoring(rest, settings)
        seconds = min(settings.reconcile_interval_seconds, MOST_KEPT_SECONDS)
        self._pages: Kept[MessagePage] = Kept(seconds)
        self._looks: Kept[_Looked] = Kept(seconds)

    async def messages(self, job: Job, attempt: Attempt, query: MessageQuery) -> MessagesView:
        """Raises DataflowUnavailableError, DataflowRefusedError and InvalidPageTokenError."""
        own_id = attempt.dataflow_job_id
        if own_id is None:
            return _messages_view(None, MessagePage((), (), ""), stale=False)
        key = (own_id, *query)
        page, stale = self._pages.get(key), False
        if page is None:
            try:
                page = await self._dataflow.messages(
                    job.project,
                    job.region,
                    own_id,
                    minimum_importance=query.importance,
                    since=query.since,
                    page_token=query.page_token,
                    page_size=query.page_size,
                )
                self._pages.put(key, page)
            except MissingError:  # Dataflow forgets a job a month after its end, its messages with it
                page = MessagePage((), (), "")
            except DataflowError as error:
                page, stale = self._pages.stale(key), True
                if page is None:
                    raise _told(error, has_token=bool(query.page_token)) from error
        return _messages_view(own_id, page, stale=stale)

    async def metrics(self, job: Job, attempt: Attempt, now: datetime) -> MetricsView:
        """What the job does now; what cannot be had is null."""
        own_id = attempt.dataflow_job_id
        backlog = await self._monitoring.backlog(job.subscription, now)
        looked, stale = self._looks.get(own_id), False
        if looked is None and own_id is not None:
            before = self._looks.stale(own_id)
            try:
                seen = await self._dataflow.metrics(
                    job.project, job.region, own_id, deadline_seconds=DEADLINE_SECONDS
                )
                count = handled(seen.metrics)
                looked = _Looked(seen, next_sample(before.sample if before else None, seen.at or now, count))
                self._looks.put(own_id, looked)
            except DataflowError:
                looked, stale = before, True
        seen_, sample = looked or (None, None)
        return metrics_view(job, own_id, seen_, sample, backlog, stale=stale)


def _messages_view(dataflow_job_id: str | None, page: MessagePage, *, stale: bool) -> MessagesView:
    return MessagesView(
        dataflow_job_id=dataflow_job_id,
        stale=stale,
        messages=[
            MessageView(id=each.id, at=each.at, importance=each.importance, text=each.text)
            for each in page.messages
        ],
        scaling=[
            ScalingView(
                at=each.at,
                kind=each.kind,
                workers=each.workers,
                target_workers=each.target_workers,
                text=each.text,
            )
            for each in page.scaling
        ],
        next_page_token=page.next_page_token or None,
    )


def _told(
    error: DataflowError, *, has_token: bool
) -> DataflowUnavailableError | DataflowRefusedError | InvalidPageTokenError:
    if isinstance(error, RefusedError):
        if has_token and error.status == "INVALID_ARGUMENT":
            return InvalidPageTokenError("The page token is not one that Dataflow gave.")
        return DataflowRefusedError(error.detail)
    return DataflowUnavailableError(
        "Dataflow cannot be asked about this job.", retry_after_seconds=RETRY_AFTER_SECONDS
    )
