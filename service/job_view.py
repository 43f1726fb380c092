"""A job as the HTTP interface shows it."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel, Field

from service.config import Settings
from service.job_state import Verdict, allowed_actions
from service.job_store import Entry, standing
from service.models import Attempt, Job, JobEvent
from service.pipelines import is_batch

_LEAST_STALE_SECONDS = 15.0


class ActionView(BaseModel):
    allowed: bool
    reason: str | None = Field(description="Why it is not allowed, or that it is so already")


class AttemptView(BaseModel):
    """One Dataflow job behind a job; what is null of its launch is as the job has it."""

    number: int
    kind: str = Field(description="Why it was made: launch, update, restart or adopt")
    replaces: int | None = Field(description="The number of the attempt that it follows")
    dataflow_job_id: str | None
    state: str
    template_path: str | None
    parameters: dict[str, str] | None
    environment: dict[str, Any] | None
    transform_name_mappings: dict[str, str] | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: str | None


class JobSummary(BaseModel):
    """A job in a list."""

    id: str
    name: str = Field(description="The name in Dataflow, unique for ever")
    pipeline: str
    project: str
    region: str
    subscription: str | None = Field(description="The subscription that the job reads")
    state: str = Field(description="Dataflow's word, or LAUNCHING, REJECTED, LOST, UNRECOGNIZED")
    requested_state: str = Field(description="RUNNING, DRAINED or CANCELLED; it only rises, in this order")
    active: bool = Field(description="Whether the job has not ended")
    cause: str | None = Field(description="Why the job ended, or why it is not where it should be")
    dataflow_job_id: str | None
    created_at: datetime
    launch_started_at: datetime | None
    observed_at: datetime | None = Field(description="When Dataflow was last heard of this job")
    ended_at: datetime | None
    stale: bool = Field(description="Whether that is longer ago than it should be")
    console_url: str | None = Field(description="The job in the Google Cloud console")
    actions: dict[str, ActionView] = Field(description="What may be asked of the job now")


class JobView(JobSummary):
    """A whole job."""

    template_path: str
    attempt: int = Field(description="The number of the attempt that stands for the job now")
    pending_attempt: int | None = Field(description="The number of the one that is to replace it")
    adopted: bool = Field(description="Whether somebody else launched it")
    drain_requested_at: datetime | None
    drain_deadline_seconds: int | None
    on_drain_deadline: str
    cancel_requested_at: datetime | None
    force_cancel_requested_at: datetime | None
    restart_policy: str
    restart_limit: int
    restarts: int = Field(description="How often it was launched again after it had failed")
    restart_at: datetime | None = Field(description="When it will be launched again")
    min_workers: int | None = Field(description="What was asked for while it ran; so is `max_workers`")
    max_workers: int | None
    scaling_pending: bool = Field(description="Whether Dataflow has not taken these bounds yet")
    parameters: dict[str, str]
    environment: dict[str, Any]
    labels: dict[str, str]
    attempts: list[AttemptView] = Field(description="The Dataflow jobs behind this one, oldest first")
    counters: dict[str, int] | None = Field(
        None, description="The job's committed Beam counters, summed over steps; null where not known"
    )


class JobPage(BaseModel):
    jobs: list[JobSummary] = Field(description="Newest first")
    next_page_token: str | None = Field(description="The `page_token` of the next page; null on the last")


class EventView(BaseModel):
    sequence: int = Field(description="Rises with each entry of one job; numbers may be left out")
    at: datetime
    kind: str
    detail: dict[str, Any]
    actor: str = Field(description="Who did it: `key:NAME`, `token:SUBJECT`, `api` or `service`")
    request_id: str | None = Field(description="The `X-Request-ID` of the request that asked for it")


class EventPage(BaseModel):
    events: list[EventView] = Field(description="Oldest first")


def summarize(entry: Entry, settings: Settings, now: datetime) -> JobSummary:
    """The job at the moment `now`."""
    return JobSummary(**_members(entry, settings, now))


def show(
    entry: Entry,
    attempts: list[Attempt],
    counters: dict[str, int] | None,
    settings: Settings,
    now: datetime,
) -> JobView:
    """The whole job at the moment `now`."""
    job = entry.job
    return JobView(
        **{**job.model_dump(include=set(JobView.model_fields)), **_members(entry, settings, now)},
        attempts=[AttemptView(**attempt.model_dump()) for attempt in attempts],
        counters=counters,
    )


def show_event(event: JobEvent) -> EventView:
    return EventView(**event.model_dump(exclude={"job_id"}))


def _members(entry: Entry, settings: Settings, now: datetime) -> dict[str, Any]:
    job, dataflow_job_id = entry.job, entry.attempt.dataflow_job_id
    actions = {
        name: ActionView(allowed=given.verdict is Verdict.ALLOWED, reason=given.reason or None)
        for name, given in allowed_actions(standing(job, now, is_batch=is_batch(settings, job))).items()
    }
    return {
        **job.model_dump(include=set(JobSummary.model_fields)),
        "active": job.ended_at is None,
        "dataflow_job_id": dataflow_job_id,
        "stale": is_stale(job, settings, now),
        "console_url": _console_url(entry, settings),
        "actions": actions,
    }


def is_stale(job: Job, settings: Settings, now: datetime) -> bool:
    """Whether the job was last heard of longer ago than it should be."""
    longest = max(3 * settings.reconcile_interval_seconds, _LEAST_STALE_SECONDS)
    heard_at = job.observed_at or job.launch_started_at or job.created_at
    return job.ended_at is None and now - heard_at > timedelta(seconds=longest)


def _console_url(entry: Entry, settings: Settings) -> str | None:
    job, dataflow_job_id = entry.job, entry.attempt.dataflow_job_id
    if settings.dataflow_emulator_host or not dataflow_job_id:
        return None
    jobs = "https://console.cloud.google.com/dataflow/jobs"
    return f"{jobs}/{job.region}/{dataflow_job_id}?project={job.project}"
