"""The four services of google.dataflow.v1beta3 that this server speaks, over the fleet."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import msgspec
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow import answers, requests
from service.local.dataflow.faults import DataflowFaultSwitch
from service.local.dataflow.fleet import Fleet
from service.local.dataflow.job import LocalJob, State, new_job
from service.local.dataflow.lags import Lags
from service.local.dataflow.reading import Reading, shown
from service.local.dataflow.replacement import to_be_replaced
from service.local.dataflow.requests import error_number, invalid, not_allowed, refusal
from service.local.grpc_server import Context, Method, unary_handlers
from service.local.templates import TemplateNotFoundError, Templates

Verb = Callable[[Any], Any]

_PACKAGE = "google.dataflow.v1beta3"


class DataflowApi:
    """The methods; each takes and gives raw protobuf and raises StatusError."""

    def __init__(self, fleet: Fleet, templates: Templates, faults: DataflowFaultSwitch, lags: Lags) -> None:
        self._reading = Reading(fleet, faults, lags)
        self._faults = faults
        self._fleet = fleet
        self._templates = templates

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """What a gRPC server is given; a method that is not listed is UNIMPLEMENTED."""
        reading = self._reading
        services: dict[str, list[tuple[Verb, Any, Any]]] = {
            "FlexTemplatesService": [
                (self.launch_flex_template, df.LaunchFlexTemplateRequest, df.LaunchFlexTemplateResponse)
            ],
            "JobsV1Beta3": [
                (reading.get_job, df.GetJobRequest, df.Job),
                (self.update_job, df.UpdateJobRequest, df.Job),
                (reading.list_jobs, df.ListJobsRequest, df.ListJobsResponse),
                (reading.aggregated_list_jobs, df.ListJobsRequest, df.ListJobsResponse),
                (reading.check_active_jobs, df.CheckActiveJobsRequest, df.CheckActiveJobsResponse),
            ],
            "MetricsV1Beta3": [(reading.get_job_metrics, df.GetJobMetricsRequest, df.JobMetrics)],
            "MessagesV1Beta3": [
                (reading.list_job_messages, df.ListJobMessagesRequest, df.ListJobMessagesResponse)
            ],
        }
        return [
            unary_handlers(
                f"{_PACKAGE}.{service}",
                {
                    _rpc_name(verb): Method(_without_context(verb), request.pb(), response.pb())
                    for verb, request, response in verbs
                },
                self._faults,
            )
            for service, verbs in services.items()
        ]

    def launch_flex_template(self, request: Any) -> Any:
        launch = request.launch_parameter
        region = requests.region_of(request)
        requests.check_job_name(launch.job_name)
        requests.check_labels(launch.environment.additional_user_labels)
        is_batch = self._check_template(launch)
        replaced = self._check_name(request.project_id, region, launch)
        response = df.LaunchFlexTemplateResponse.pb()()
        if request.validate_only:
            return response
        active = len(self._fleet.active())
        if active >= self._fleet.limits.active_jobs:
            raise refusal(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "The workflow could not be created. Causes: Too many running jobs. "
                f"Project {request.project_id} is running {active} jobs and project limit for active jobs is "
                f"{self._fleet.limits.active_jobs}. To fix this, cancel an existing workflow or wait for a "
                "workflow to finish.",
            )
        job = new_job(self._fleet.next_number(), request.project_id, region, launch, is_batch=is_batch)
        if replaced:
            job.proto.replace_job_id = replaced.id
        try:
            self._fleet.launch(job)
        except OSError as error:
            raise refusal(grpc.StatusCode.INTERNAL, f"The job cannot be stored: {error}") from error
        answers.fill_launch(job, response.job)
        return response

    def _check_template(self, launch: Any) -> bool:
        """Whether the template's jobs are batch jobs. Raises StatusError where it cannot be launched so."""
        if launch.WhichOneof("template") == "container_spec":
            raise refusal(
                grpc.StatusCode.UNIMPLEMENTED, "A container spec cannot be run here; name its gs:// path."
            )
        path = launch.container_spec_gcs_path
        if not path.startswith("gs://"):
            raise invalid(f"Template file path must begin with gs://: {path!r}")
        try:
            template = self._templates.find(path)
        except TemplateNotFoundError as error:
            raise refusal(grpc.StatusCode.NOT_FOUND, f"Unable to open template file: {path}.") from error
        try:
            violations, is_batch = template.violations(launch.parameters), template.is_batch()
        except (OSError, re.error, msgspec.MsgspecError) as error:
            raise invalid(f"Invalid template file {path}: {error}") from error
        if violations:
            raise requests.invalid_parameters(violations)
        return is_batch

    def _check_name(self, project: str, region: str, launch: Any) -> LocalJob | None:
        """The job that the launch replaces, or none. Raises StatusError where the name forbids it."""
        place = (project, region, launch.job_name)
        holders = [job for job in self._fleet.active() if _place(job) == place]
        if not launch.update:
            if holders:
                raise refusal(
                    grpc.StatusCode.ALREADY_EXISTS,
                    f"The workflow could not be created. Causes: ({error_number()}): There is already an "
                    f"active job named {launch.job_name}. If you want to submit a second job, try again by "
                    "setting a different name.",
                )
            return None
        if not holders:
            raise refusal(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"The workflow could not be created. Causes: ({error_number()}): There is no active job "
                f"named {launch.job_name} to update.",
            )
        _check_streaming(holders[-1], "update")
        for job in holders:
            if old := to_be_replaced(job, self._fleet.jobs):
                raise not_allowed(old, "update", f"Job is being updated by {job.id} already.")
        if holders[-1].state != State.JOB_STATE_RUNNING:
            raise not_allowed(holders[-1], "update", f"Job is in state {holders[-1].state.name}.")
        return holders[-1]

    def update_job(self, request: Any) -> Any:
        job, faults = self._reading.find(request, "UpdateJob")
        wanted = request.job.requested_state
        if wanted and request.update_mask.paths:
            raise invalid("Requested state and update mask cannot be set both.")
        if not wanted:
            self._update_runtime(job, request)
        elif wanted == State.JOB_STATE_DRAINED:
            _check_drain(job)
            if job.state != State.JOB_STATE_DRAINING:
                self._fleet.drain(job)
        elif wanted == State.JOB_STATE_CANCELLED:
            _check_changeable(job, "cancel")
            self._fleet.cancel(job, force=request.job.labels.get("force_cancel_job") == "true")
        else:
            raise invalid(f"Requested state {wanted} is not one that a job can be brought to.")
        return shown(job, df.JobView.JOB_VIEW_ALL, faults)

    def _update_runtime(self, job: LocalJob, request: Any) -> None:
        fields = requests.check_runtime_mask(request.update_mask.paths)
        if not fields:
            raise invalid("Neither a requested state nor an update mask is set.")
        _check_changeable(job, "update")
        _check_streaming(job, "update")
        if job.state != State.JOB_STATE_RUNNING:
            raise not_allowed(job, "update", f"Job is in state {job.state.name}.")
        given, kept = request.job.runtime_updatable_params, job.proto.runtime_updatable_params
        changed = type(kept).FromString(kept.SerializeToString())
        for field in fields:
            changed.ClearField(field)
            if given.HasField(field):
                part = type(given)(**{field: getattr(given, field)})
                changed.MergeFrom(part)
        requests.check_runtime_params(changed)
        kept.CopyFrom(changed)
        bounds = ", ".join(f"{field} {getattr(changed, field):g}" for field in fields)
        job.tell(f"The job's runtime parameters are changed: {bounds}.")
        # Here a job has one worker, whatever the bounds say: they are kept, shown and told.
        job.scaled(job.workers, f"Changed: {bounds}. A job on this machine has one worker.")


def _rpc_name(verb: Verb) -> str:
    return "".join(word.capitalize() for word in verb.__name__.split("_"))


def _without_context(verb: Verb) -> Callable[[Any, Context], Awaitable[Any]]:
    async def call(request: Any, _: Context) -> Any:
        answer = verb(request)
        return await answer if inspect.isawaitable(answer) else answer

    return call


def _place(job: LocalJob) -> tuple[str, str, str]:
    return job.proto.project_id, job.proto.location, job.proto.name


def _check_changeable(job: LocalJob, operation: str) -> None:
    if job.is_active and job.proto.replaced_by_job_id:
        raise not_allowed(job, operation, f"Job is being replaced by {job.proto.replaced_by_job_id}.")
    if not job.is_active:
        raise not_allowed(job, operation, f"Job is already in terminal state {job.state.name}.")


def _check_streaming(job: LocalJob, operation: str) -> None:
    """Raises StatusError for a batch job, which Dataflow lets nobody drain, update or scale.

    That it refuses is documented; its words are not.
    https://cloud.google.com/dataflow/docs/guides/stopping-a-pipeline
    https://cloud.google.com/dataflow/docs/guides/updating-a-pipeline
    """
    if job.is_batch:
        raise not_allowed(job, operation, "Only streaming jobs support it, and this is a batch job.")


def _check_drain(job: LocalJob) -> None:
    _check_changeable(job, "drain")
    _check_streaming(job, "drain")
    if job.state in (State.JOB_STATE_QUEUED, State.JOB_STATE_PENDING):
        raise not_allowed(job, "drain", "Job is not yet ready for draining. Please retry in a few minutes.")
    if job.state == State.JOB_STATE_CANCELLING:
        raise not_allowed(job, "drain", "Job is being cancelled.")
