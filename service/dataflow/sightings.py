"""What Dataflow shows of a job: the job itself, its messages, its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

STATE_PREFIX = "JOB_STATE_"
_PARTS_OF_A_DISTRIBUTION = ("_COUNT", "_MIN", "_MAX", "_MEAN")  # behind its name; so Beam too drops them
_IMPORTANCE_PREFIX = "JOB_MESSAGE_"
Importance = Literal["DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR"]
# From the least grave to the gravest; the numbers of Dataflow's enum are not in this order.
IMPORTANCES: tuple[Importance, ...] = ("DEBUG", "DETAILED", "BASIC", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A job as Dataflow shows it; `state` has no prefix.

    What follows `created_at` is there in the full view only, not in a list: labels, the bounds of
    the workers that were set while it ran (None: never set), the jobs before and after it, and the
    subscriptions that it reads, as `projects/P/subscriptions/S`.
    """

    id: str
    name: str
    state: str
    created_at: datetime | None = None
    labels: dict[str, str] = field(default_factory=dict)
    min_workers: int | None = None
    max_workers: int | None = None
    replaces: str = ""
    replaced_by: str = ""
    streaming: bool = True
    subscriptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SeenMessage:
    """A job message; `importance` is one of IMPORTANCES, or the number of one that is not known."""

    id: str
    at: datetime
    importance: str
    text: str


@dataclass(frozen=True, slots=True)
class SeenScaling:
    """An autoscaling event; `kind` is Dataflow's word, such as `CURRENT_NUM_WORKERS_CHANGED`."""

    at: datetime
    kind: str
    workers: int
    target_workers: int
    text: str


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Messages from the oldest to the newest; an empty token ends the list."""

    messages: tuple[SeenMessage, ...]
    scaling: tuple[SeenScaling, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class SeenMetric:
    """A committed metric.

    `origin` is `user` for the counters of the job's own code and `dataflow/v1b3` for the system's;
    `original_name` is the system's name where `name` is a copy made for one step. `value` is a number
    where the metric is one; of a distribution `parts` holds count, min, max and mean, and mostly the sum.
    """

    name: str
    origin: str
    value: float | None
    step: str = ""
    original_name: str = ""
    kind: str = ""
    at: datetime | None = None
    parts: dict[str, float] = field(default_factory=dict)
    context: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeenMetrics:
    """The committed metrics of a job at the moment that Dataflow names (None where it names none)."""

    at: datetime | None
    metrics: tuple[SeenMetric, ...]


def seen_job(job: Any) -> SeenJob:
    """The parts of a proto-plus Job that matter here; a state without a name is its number."""
    from google.cloud import dataflow_v1beta3 as df

    raw = df.Job.pb(job)
    states = {state.value: state.name.removeprefix(STATE_PREFIX) for state in df.JobState}
    bounds = raw.runtime_updatable_params
    of_project = f"projects/{raw.project_id}/subscriptions/"
    return SeenJob(
        id=raw.id,
        name=raw.name,
        state=states.get(raw.current_state, str(raw.current_state)),
        created_at=_time(raw, "create_time"),
        labels=dict(raw.labels),
        min_workers=bounds.min_num_workers if bounds.HasField("min_num_workers") else None,
        max_workers=bounds.max_num_workers if bounds.HasField("max_num_workers") else None,
        replaces=raw.replace_job_id,
        replaced_by=raw.replaced_by_job_id,
        streaming=raw.type_ != df.JobType.JOB_TYPE_BATCH,
        subscriptions=tuple(
            source.subscription if "/" in source.subscription else f"{of_project}{source.subscription}"
            for source in raw.job_metadata.pubsub_details
            if source.subscription
        ),
    )


def message_page(answer: Any) -> MessagePage:
    """One ListJobMessagesResponse."""
    from google.cloud import dataflow_v1beta3 as df

    raw = df.ListJobMessagesResponse.pb(answer)
    words = {item.value: item.name.removeprefix(_IMPORTANCE_PREFIX) for item in df.JobMessageImportance}
    kinds = {item.value: item.name for item in df.AutoscalingEvent.AutoscalingEventType}
    messages = (
        SeenMessage(
            message.id,
            message.time.ToDatetime(UTC),
            words.get(message.message_importance, str(message.message_importance)),
            message.message_text,
        )
        for message in raw.job_messages
    )
    scaling = (
        SeenScaling(
            event.time.ToDatetime(UTC),
            kinds.get(event.event_type, str(event.event_type)),
            event.current_num_workers,
            event.target_num_workers,
            event.description.message_text,
        )
        for event in raw.autoscaling_events
    )
    return MessagePage(tuple(messages), tuple(scaling), raw.next_page_token)


def committed_metrics(answer: Any) -> SeenMetrics:
    """The metrics of a JobMetrics without their tentative twins, which count work that may be undone."""
    from google.cloud import dataflow_v1beta3 as df

    raw = df.JobMetrics.pb(answer)
    kept = (_metric(metric) for metric in raw.metrics if "tentative" not in metric.name.context)
    return SeenMetrics(_time(raw, "metric_time"), tuple(kept))


def user_counters(metrics: Iterable[SeenMetric]) -> dict[str, int]:
    """Sums of the job's own counters by name, over all steps.

    Dataflow gives the parts of a distribution once more as numbers of their own, which are no counters.
    """
    sums: dict[str, int] = {}
    for metric in metrics:
        is_part = metric.name.endswith(_PARTS_OF_A_DISTRIBUTION)
        if metric.origin == "user" and metric.value is not None and not is_part:
            sums[metric.name] = sums.get(metric.name, 0) + int(metric.value)
    return sums


@dataclass(frozen=True, slots=True)
class Distribution:
    """What is known of the values of a distribution."""

    count: int
    sum: float
    min: float
    max: float

    @property
    def mean(self) -> float:
        return self.sum / self.count


def user_distributions(metrics: Iterable[SeenMetric]) -> dict[str, Distribution]:
    """The distributions of the job's own code by name, over all steps; those without values are left out."""
    found: dict[str, Distribution] = {}
    for metric in metrics:
        parts = metric.parts
        if metric.origin != "user" or not parts.keys() >= {"count", "min", "max"} or parts["count"] < 1:
            continue
        total = parts.get("sum", parts["count"] * parts.get("mean", math.nan))
        if math.isnan(total):
            continue
        one = Distribution(int(parts["count"]), total, parts["min"], parts["max"])
        before = found.get(metric.name)
        found[metric.name] = _together(before, one) if before else one
    return found


def _together(one: Distribution, other: Distribution) -> Distribution:
    least, most = min(one.min, other.min), max(one.max, other.max)
    return Distribution(one.count + other.count, one.sum + other.sum, least, most)


def _metric(metric: Any) -> SeenMetric:
    context = dict(metric.name.context)
    parts: dict[str, float] = {}
    if metric.HasField("distribution") and metric.distribution.HasField("struct_value"):
        fields = metric.distribution.struct_value.fields
        parts = {
            name: member.number_value for name, member in fields.items() if member.HasField("number_value")
        }
    is_number = metric.HasField("scalar") and metric.scalar.HasField("number_value")
    return SeenMetric(
        name=metric.name.name,
        origin=metric.name.origin,
        value=metric.scalar.number_value if is_number else None,
        step=context.get("step", ""),
        original_name=context.get("original_name", ""),
        kind=metric.kind,
        at=_time(metric, "update_time"),
        parts=parts,
        context=context,
    )


def _time(message: Any, name: str) -> datetime | None:
    moment: datetime | None = getattr(message, name).ToDatetime(UTC) if message.HasField(name) else None
    return moment
