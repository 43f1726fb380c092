"""From what a caller asks for to the row of a job that is to be launched."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from service.config import Pipeline, Settings
from service.errors import InvalidParametersError, InvalidRequestError
from service.job_bodies import NewJob
from service.job_environment import Violation, environment_of, violations
from service.job_state import LAUNCHING
from service.launch_environment import LaunchEnvironment
from service.models import SHORT_ID_LENGTH, Job, new_id
from service.pipelines import pipeline_of
from service.template_specs import TemplateSpec

LONGEST_SUBSCRIPTION = 512


def new_job(asked: NewJob, settings: Settings, now: datetime) -> Job:
    """The row of a job that is to be launched: defaults from the settings, then what was asked for.

    Raises InvalidRequestError, UnknownPipelineError and TemplateNotSetError.
    """
    pipeline = pipeline_of(settings, asked.pipeline)
    job_id = new_id(now)
    parameters = parameters_of(asked.parameters, pipeline, settings)
    subscription = subscription_of(parameters)
    return Job(
        id=job_id,
        name=f"{asked.name}-{job_id[-SHORT_ID_LENGTH:]}",
        base_name=asked.name,
        pipeline=asked.pipeline,
        project=settings.project,
        region=settings.region,
        subscription=subscription,
        exclusive_subscription=None if asked.shared_subscription else subscription,
        template_path=pipeline.template_path,
        state=LAUNCHING,
        launch_token=secrets.token_hex(16),
        parameters=parameters,
        environment=checked_environment(asked.environment, pipeline.environment.given(), settings),
        labels={
            **pipeline.environment.labels,
            **asked.environment.labels,
            "signin-job": job_id,
            "signin-pipeline": asked.pipeline,
        },
        drain_deadline_seconds=asked.drain_deadline_seconds,
        on_drain_deadline=asked.on_drain_deadline,
        restart_policy=asked.restart_policy,
        restart_limit=asked.restart_limit if asked.restart_policy == "on-failure" else 0,
        created_at=now,
    )


def parameters_of(asked: Mapping[str, str], pipeline: Pipeline, settings: Settings) -> dict[str, str]:
    """The template parameters, the pipeline's own and the source among them. Raises InvalidRequestError."""
    if {"input_topic", "input_subscription"} <= asked.keys():
        raise InvalidRequestError("body.parameters names both an input_topic and an input_subscription.")
    parameters = {**pipeline.parameters, **asked}
    if "input_topic" in asked:
        parameters.pop("input_subscription", None)
    elif "input_topic" not in parameters and pipeline.reads_subscription:
        parameters.setdefault("input_subscription", settings.subscription_path)
    require_no_loop(parameters, settings)
    return parameters


def require_no_loop(parameters: Mapping[str, str], settings: Settings) -> None:
    """Raises InvalidRequestError where dead letters would come back to a job as messages."""
    topic = parameters.get("dead_letter_topic")
    if topic and topic in (parameters.get("input_topic"), settings.topic_path):
        raise InvalidRequestError(
            "body.parameters.dead_letter_topic is the topic of the sign-ins: "
            "each dead letter would come back as a message."
        )


def subscription_of(parameters: Mapping[str, str]) -> str | None:
    """The subscription that a job with these parameters reads. Raises InvalidRequestError."""
    subscription = parameters.get("input_subscription")
    if subscription and len(subscription) > LONGEST_SUBSCRIPTION:
        raise InvalidRequestError("body.parameters.input_subscription is too long.")
    return subscription


def checked_environment(
    asked: LaunchEnvironment, before: Mapping[str, Any], settings: Settings
) -> dict[str, Any]:
    """The environment: of the settings, then `before`, then what is asked for. Raises InvalidRequestError."""
    merged = environment_of(settings, before, asked.given())
    if asked.worker_zone and "worker_region" not in asked.given():
        merged.pop("worker_region", None)
    if asked.worker_region and "worker_zone" not in asked.given():
        merged.pop("worker_zone", None)
    if found := list(violations(asked, merged, settings)):
        raise InvalidRequestError(_sentence(found), members={"errors": _listed(found)})
    return merged


def require_parameters(spec: TemplateSpec | None, parameters: Mapping[str, str]) -> None:
    """Raises InvalidParametersError where the template would not take them; without a spec all pass."""
    found = spec.violations(parameters) if spec else []
    if found:
        raise InvalidParametersError(_sentence(found), members={"errors": _listed(found)})


def _sentence(found: Iterable[Violation]) -> str:
    return " ".join(f"{each.field}: {each.detail}" for each in found)


def _listed(found: Iterable[Violation]) -> list[dict[str, str]]:
    return [each._asdict() for each in found]
