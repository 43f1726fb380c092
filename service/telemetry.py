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
        try:
            page = await self._pages.fetch(key, lambda: self._page(job, own_id, query))
        except DataflowError as error:
            older = self._pages.stale(key)
            if older is None:
                raise _told(error, has_token=bool(query.page_token)) from error
            return _messages_view(own_id, older, stale=True)
        return _messages_view(own_id, page, stale=False)

    async def metrics(self, job: Job, attempt: Attempt, now: datetime) -> MetricsView:
        """What the job does now; what cannot be had is null."""
        own_id = attempt.dataflow_job_id
        backlog = await self._monitoring.backlog(job.subscription, now)
        looked, stale = None, False
        if own_id is not None:
            try:
                looked = await self._looks.fetch(own_id, lambda: self._look(job, own_id, now))
            except DataflowError:
                looked, stale = self._looks.stale(own_id), True
        seen, sample = looked or (None, None)
        return metrics_view(job, own_id, seen, sample, backlog, stale=stale)

    async def _page(self, job: Job, own_id: str, query: MessageQuery) -> MessagePage:
        try:
            return await self._dataflow.messages(
                job.project,
                job.region,
                own_id,
                minimum_importance=query.importance,
                since=query.since,
                page_token=query.page_token,
                page_size=query.page_size,
            )
        except MissingError:  # Dataflow forgets a job a month after its end, its messages with it
            return MessagePage((), (), "")

    async def _look(self, job: Job, own_id: str, now: datetime) -> _Looked:
        before = self._looks.stale(own_id)
        seen = await self._dataflow.metrics(
            job.project, job.region, own_id, deadline_seconds=DEADLINE_SECONDS
        )
        count = handled(seen.metrics)
        return _Looked(seen, next_sample(before.sample if before else None, seen.at or now, count))


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
