"""From what an update asks for to the whole values of the replacement."""

from __future__ import annotations

from service.config import Pipeline, Settings
from service.errors import InvalidRequestError
from service.job_bodies import JobUpdate
from service.job_control import UpdateRequest
from service.job_request import checked_environment, require_no_loop
from service.launch_environment import LaunchEnvironment
from service.models import Job
from service.pipelines import at_version, described


def replacement(asked: JobUpdate, job: Job, settings: Settings) -> tuple[UpdateRequest, Pipeline]:
    """The replacement, and the pipeline whose template judges its parameters.

    Parameters and environment are those of the running job with what was asked for over them; the
    template is the one that the settings name by now. Raises InvalidRequestError, UnknownPipelineError
    and TemplateNotSetError.
    """
    pipeline = at_version(_pipeline(asked, job, settings), asked.template_path, settings)
    merged = {**job.parameters, **asked.parameters}
    parameters = {name: value for name, value in merged.items() if value is not None}
    require_no_loop(parameters, settings)
    wanted = UpdateRequest(
        template_path=pipeline.template_path,
        parameters=parameters,
        environment=checked_environment(asked.environment, job.environment, settings),
        transform_name_mappings=asked.transform_name_mappings,
        base_attempt=job.attempt,
    )
    return wanted, pipeline


def _pipeline(asked: JobUpdate, job: Job, settings: Settings) -> Pipeline:
    if not job.adopted:
        return described(settings, job.pipeline)
    if asked.template_path is None:
        raise InvalidRequestError("body.template_path: an adopted job's template is not known; name it.")
    return Pipeline.model_construct(
        template_path="",
        template_metadata=None,
        parameters={},
        environment=LaunchEnvironment.model_construct(),
    )
