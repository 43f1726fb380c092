"""What a job does now, made from its committed metrics; what is not known is null and never zero."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, Field

from service import job_store
from service.dataflow import SeenMetric, SeenMetrics, user_counters, user_distributions
from service.models import Job
from service.monitoring import Backlog

FRESHNESS = "DataWatermarkAge"
LATENCY = "SystemLag"
VCPUS = "CurrentVcpuCount"
ELEMENTS = "ElementCount"
# Between samples that lie nearer together the rate is noise; between those farther apart, history.
LEAST_SAMPLE_SECONDS = 1.0
MOST_SAMPLE_SECONDS = 300.0


class BacklogView(BaseModel):
    """What waits in the subscription."""

    messages: int | None
    oldest_age_seconds: int | None
    observed_at: datetime | None


class DrainView(BaseModel):
    """A drain under way; `backlog` of the job tells what it leaves behind."""

    requested_at: datetime | None
    deadline_at: datetime | None
    on_deadline: str = Field(description="What happens at the deadline: wait or cancel")


class DistributionView(BaseModel):
    """What is known of the values that the job's code gave a distribution."""

    count: int
    sum: float
    min: float
    max: float
    mean: float


class MetricsView(BaseModel):
    """Committed values; null where a value is not known."""

    dataflow_job_id: str | None
    observed_at: datetime | None = Field(description="The moment that Dataflow says these are of")
    stale: bool = Field(description="Whether Dataflow could not be asked since")
    throughput_per_second: float | None = Field(
        description="Messages handled each second between the last two looks"
    )
    freshness_seconds: float | None = Field(description="Age of the oldest event that is not processed")
    latency_seconds: float | None = Field(description="Longest time that an element has been in the job")
    vcpus: float | None
    rows: int | None = Field(description="Rows that BigQuery acknowledged")
    dead_letters: int | None = Field(description="Messages that became a dead letter")
    backlog: BacklogView
    drain: DrainView | None = Field(description="Where the job is asked to drain and has not ended")
    counters: dict[str, int] | None = Field(description="The counters of the job's code, summed over steps")
    distributions: dict[str, DistributionView] | None = Field(
        description="The distributions of the job's code, over all steps"
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """How much a job had handled at a moment; `rate` is from the sample before it."""

    at: datetime
    handled: int | None
    rate: float | None


def handled(metrics: Iterable[SeenMetric]) -> int | None:
    """Messages that the job has handled: by its own counters, or what its busiest collection has held."""
    metrics = tuple(metrics)
    counters = user_counters(metrics)
    own = [counters[name] for name in ("signins_parsed", "dead_letters") if name in counters]
    if own:
        return sum(own)
    most = highest(metrics, ELEMENTS)
    return None if most is None else int(most)


def next_sample(before: Sample | None, at: datetime, count: int | None) -> Sample:
    """The sample at a later moment. A gap, or a count that fell, gives no rate."""
    if before is None or before.handled is None or count is None:
        return Sample(at, count, None)
    seconds = (at - before.at).total_seconds()
    if seconds < LEAST_SAMPLE_SECONDS:
        return before
    if seconds > MOST_SAMPLE_SECONDS or count < before.handled:
        return Sample(at, count, None)
    return Sample(at, count, (count - before.handled) / seconds)


def highest(metrics: Iterable[SeenMetric], name: str) -> float | None:
    """The highest value of a system metric over all steps."""
    found = (metric for metric in metrics if metric.origin != "user" and metric.name == name)
    return max((metric.value for metric in found if metric.value is not None), default=None)


def metrics_view(
    job: Job,
    dataflow_job_id: str | None,
    seen: SeenMetrics | None,
    sample: Sample | None,
    backlog: Backlog,
    *,
    stale: bool,
) -> MetricsView:
    """All of it; `seen` and `sample` are None where Dataflow has not told anything yet."""
    counters = user_counters(seen.metrics) if seen else None
    metrics = seen.metrics if seen else ()
    return MetricsView(
        dataflow_job_id=dataflow_job_id,
        observed_at=sample.at if sample else None,
        stale=stale,
        throughput_per_second=0.0 if job.ended_at else sample.rate if sample else None,
        freshness_seconds=highest(metrics, FRESHNESS),
        latency_seconds=highest(metrics, LATENCY),
        vcpus=highest(metrics, VCPUS),
        rows=counters.get("rows_written") if counters else None,
        dead_letters=counters.get("dead_letters") if counters else None,
        backlog=BacklogView(
            messages=backlog.messages, oldest_age_seconds=backlog.oldest_age_seconds, observed_at=backlog.at
        ),
        drain=_drain(job),
        counters=counters,
        distributions=_distributions(seen.metrics) if seen else None,
    )


def _distributions(metrics: Iterable[SeenMetric]) -> dict[str, DistributionView]:
    return {
        name: DistributionView(count=one.count, sum=one.sum, min=one.min, max=one.max, mean=one.mean)
        for name, one in user_distributions(metrics).items()
    }


def _drain(job: Job) -> DrainView | None:
    if job.requested_state != "DRAINED" or job.ended_at:
        return None
    return DrainView(
        requested_at=job.drain_requested_at,
        deadline_at=job_store.drain_deadline(job),
        on_deadline=job.on_drain_deadline,
    )
