"""What a launch asks Dataflow for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.models import Job

LAUNCH_TOKEN_LABEL = "signin-launch-token"  # noqa: S105 -- the name of a label


@dataclass(frozen=True, slots=True)
class Launch:
    """What is launched, where a `Job` as it stands is not: an attempt with values of its own."""

    project: str
    region: str
    name: str
    template_path: str
    launch_token: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


def launch_request(wanted: Job | Launch, update: bool, mappings: Mapping[str, str]) -> dict[str, Any]:
    """The body of LaunchFlexTemplate, the launch token among the labels."""
    labels = {**wanted.labels, LAUNCH_TOKEN_LABEL: wanted.launch_token}
    parameter = {
        "job_name": wanted.name,
        "container_spec_gcs_path": wanted.template_path,
        "parameters": dict(wanted.parameters),
        "environment": {**wanted.environment, "additional_user_labels": labels},
        "update": update,
        "transform_name_mappings": dict(mappings),
    }
    return {"project_id": wanted.project, "location": wanted.region, "launch_parameter": parameter}
