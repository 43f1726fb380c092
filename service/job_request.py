"""From what a caller asks for to the row of a job that is to be launched."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from service.config import Settings
from service.errors import InvalidRequestError
from service.job_state import LAUNCHING
from service.job_view import NewJob
from service.models import SHORT_ID_LENGTH, Job, new_id

BACKFILL = "backfill-signin"
LONGEST_SUBSCRIPTION = 512


def new_job(asked: NewJob, settings: Settings, now: datetime) -> Job:
    """The row of a job that is to be launched: defaults from the settings, then what was asked for.

    Raises InvalidRequestError.
    """
    job_id = new_id(now)
    parameters = {
        "output_table": settings.table,
        "dead_letter_table": settings.dead_letter_table,
        **asked.parameters,
    }
    if {"input_topic", "input_subscription"} <= asked.parameters.keys():
        raise InvalidRequestError("body.parameters names both an input_topic and an input_subscription.")
    is_backfill = asked.pipeline == BACKFILL
    if "input_topic" not in parameters and not is_backfill:
        parameters.setdefault("input_subscription", settings.subscription_path)
    subscription = parameters.get("input_subscription")
    if subscription and len(subscription) > LONGEST_SUBSCRIPTION:
        raise InvalidRequestError("body.parameters.input_subscription is too long.")
    return Job(
        id=job_id,
        name=f"{asked.name}-{job_id[-SHORT_ID_LENGTH:]}",
        base_name=asked.name,
        pipeline=asked.pipeline,
        project=settings.project,
        region=settings.region,
        subscription=subscription,
        exclusive_subscription=None if asked.shared_subscription else subscription,
        template_path=settings.backfill_template_path if is_backfill else settings.template_path,
        state=LAUNCHING,
        launch_token=secrets.token_hex(16),
        parameters=parameters,
        environment=launch_environment(settings),
        labels={"signin-job": job_id, "signin-pipeline": asked.pipeline},
        created_at=now,
    )


def launch_environment(settings: Settings) -> dict[str, Any]:
    """The fields of a FlexTemplateRuntimeEnvironment that the settings give."""
    given = {
        "service_account_email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
        "staging_location": settings.staging_location,
        "temp_location": settings.temp_location,
    }
    return {"max_workers": settings.max_workers, **{name: value for name, value in given.items() if value}}
