"""The pipelines that jobs may be launched of: `user-signin`, `backfill-signin`, and those of the settings."""

from __future__ import annotations

from fnmatch import fnmatchcase

from service.config import Pipeline, Settings
from service.errors import InvalidRequestError, TemplateNotSetError, UnknownPipelineError
from service.launch_environment import LaunchEnvironment
from service.models import Job

BUILT_IN = "user-signin"
BACKFILL = "backfill-signin"


def pipeline_of(settings: Settings, name: str) -> Pipeline:
    """The pipeline, to launch of. Raises UnknownPipelineError and TemplateNotSetError."""
    return launchable(described(settings, name), settings)


def described(settings: Settings, name: str) -> Pipeline:
    """The pipeline as the settings have it, its template set or not. Raises UnknownPipelineError."""
    if name in settings.pipelines:
        return settings.pipelines[name]
    built_in = {
        BUILT_IN: (settings.template_path, settings.template_metadata),
        BACKFILL: (settings.backfill_template_path, settings.backfill_template_metadata),
    }
    if name in built_in:
        template_path, metadata = built_in[name]
        return Pipeline.model_construct(
            template_path=template_path,
            template_metadata=metadata,
            parameters={
                "output_table": settings.table,
                "dead_letter_table": settings.dead_letter_table,
            },
            environment=LaunchEnvironment.model_construct(),
            streaming=name != BACKFILL,
            reads_subscription=name == BUILT_IN,
        )
    known = sorted({*built_in, *settings.pipelines})
    raise UnknownPipelineError(f"Pipelines: {', '.join(known)}.")


def launchable(pipeline: Pipeline, settings: Settings) -> Pipeline:
    """The pipeline itself. Raises TemplateNotSetError where its template is the local stack's alone."""
    if reason := settings.template_not_set(pipeline.template_path):
        raise TemplateNotSetError(reason)
    return pipeline


def is_batch(settings: Settings, job: Job) -> bool:
    """Whether a job is a batch job, which Dataflow lets nobody drain, update or scale.

    By the name of its pipeline, which each job of each release has in its row. An adopted job is none.
    """
    given = settings.pipelines.get(job.pipeline)
    return not job.adopted and (job.pipeline == BACKFILL or (given is not None and not given.streaming))


def at_version(pipeline: Pipeline, template_path: str | None, settings: Settings) -> Pipeline:
    """The pipeline with another template, where the settings allow it.

    Raises InvalidRequestError and TemplateNotSetError.
    """
    if template_path is None or template_path == pipeline.template_path:
        return launchable(pipeline, settings)
    if not any(fnmatchcase(template_path, pattern) for pattern in settings.allowed_templates):
        detail = "SIGNIN_ALLOWED_TEMPLATES does not allow this template."
        raise InvalidRequestError(
            f"body.template_path: {detail}",
            members={"errors": [{"field": "body.template_path", "detail": detail}]},
        )
    other = pipeline.model_copy(update={"template_path": template_path, "template_metadata": None})
    return launchable(other, settings)
