"""How jobs, messages and metrics look on the wire."""

from __future__ import annotations

from typing import Any

from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow.job import Importance, LocalJob, Message, Scaling

_DETAILED_VIEWS = (df.JobView.JOB_VIEW_ALL, df.JobView.JOB_VIEW_DESCRIPTION)
_SEVERITY = (
    Importance.JOB_MESSAGE_IMPORTANCE_UNKNOWN,
    Importance.JOB_MESSAGE_DEBUG,
    Importance.JOB_MESSAGE_DETAILED,
    Importance.JOB_MESSAGE_BASIC,
    Importance.JOB_MESSAGE_WARNING,
    Importance.JOB_MESSAGE_ERROR,
)  # the enum's numbers are not in this order


def severity(importance: int) -> int:
    """The rank of a JobMessageImportance; 0 where it is not known."""
    return _SEVERITY.index(importance) if importance in _SEVERITY else 0


def view(job: LocalJob, wanted: int) -> Any:
    """The job as a view shows it; without a view, what Dataflow promises at least: the summary."""
    shown = type(job.proto).FromString(job.proto.SerializeToString())
    if wanted not in _DETAILED_VIEWS:
        for field in ("environment", "labels", "transform_name_mapping", "runtime_updatable_params"):
            shown.ClearField(field)
    if wanted != df.JobView.JOB_VIEW_ALL:
        shown.ClearField("steps")
    return shown


def fill_launch(job: LocalJob, shown: Any) -> None:
    """Fills in the little that a launch answers: no state, and a state's time of 1970."""
    for field in ("id", "project_id", "name", "location"):
        setattr(shown, field, getattr(job.proto, field))
    shown.create_time.CopyFrom(job.proto.create_time)
    shown.start_time.CopyFrom(job.proto.start_time)
    shown.current_state_time.FromSeconds(0)


def message(told: Message) -> Any:
    """The message as a JobMessage."""
    shown = df.JobMessage.pb()(
        id=f"{told.number:08d}", message_text=told.text, message_importance=told.importance
    )
    shown.time.FromDatetime(told.time)
    return shown


def scaling(told: Scaling) -> Any:
    """The event as an AutoscalingEvent."""
    shown = df.AutoscalingEvent.pb()(
        current_num_workers=told.workers, target_num_workers=told.workers, event_type=told.kind
    )
    shown.description.message_text = told.text
    shown.worker_pool = "Regular"
    shown.time.FromDatetime(told.time)
    return shown
