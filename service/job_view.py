"""A job as the HTTP interface shows it, and the body that asks for one."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.config import Settings
from service.job_state import Verdict, allowed_actions
from service.job_store import Entry
from service.models import Attempt, JobEvent

DEFAULT_BASE_NAME = "signin-user-tobigquery"
_LEAST_STALE_SECONDS = 15.0

ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
ParameterValue = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewJob(BaseModel):
    """What may be asked for when a job is launched; everything has a default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    pipeline: str = Field("user-signin", max_length=64, description="Which pipeline")
    name: str = Field(
        DEFAULT_BASE_NAME,
        pattern=r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$",
        description="Base of the job's name; the name itself gets a suffix and is never used again",
    )
    parameters: dict[ParameterName, ParameterValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Template parameters, over the defaults from the settings",
    )
    shared_subscription: bool = Field(
        False, description="Launch although another active job reads the same subscription"
    )


class ActionView(BaseModel):
    allowed: bool
    reason: str | None = Field(description="Why it is not allowed, or that it is so already")


class AttemptView(BaseModel):
    number: int
    dataflow_job_id: str | None
    state: str
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
    actor: str


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
        **_members(entry, settings, now),
        parameters=job.parameters,
        environment=job.environment,
        labels=job.labels,
        attempts=[AttemptView(**attempt.model_dump(exclude={"job_id"})) for attempt in attempts],
        counters=counters,
    )


def show_event(event: JobEvent) -> EventView:
    return EventView(**event.model_dump(exclude={"job_id"}))


def _members(entry: Entry, settings: Settings, now: datetime) -> dict[str, Any]:
    job, dataflow_job_id = entry.job, entry.attempt.dataflow_job_id
    actions = {
        name: ActionView(allowed=given.verdict is Verdict.ALLOWED, reason=given.reason or None)
        for name, given in allowed_actions(job.state, job.requested_state).items()
    }
    return {
        **job.model_dump(include=set(JobSummary.model_fields)),
        "active": job.ended_at is None,
        "dataflow_job_id": dataflow_job_id,
        "stale": _is_stale(entry, settings, now),
        "console_url": _console_url(entry, settings),
        "actions": actions,
    }


def _is_stale(entry: Entry, settings: Settings, now: datetime) -> bool:
    job = entry.job
    longest = max(3 * settings.reconcile_interval_seconds, _LEAST_STALE_SECONDS)
    heard_at = job.observed_at or job.launch_started_at or job.created_at
    return job.ended_at is None and now - heard_at > timedelta(seconds=longest)


def _console_url(entry: Entry, settings: Settings) -> str | None:
    job, dataflow_job_id = entry.job, entry.attempt.dataflow_job_id
    if settings.dataflow_emulator_host or not dataflow_job_id:
        return None
    jobs = "https://console.cloud.google.com/dataflow/jobs"
    return f"{jobs}/{job.region}/{dataflow_job_id}?project={job.project}"
