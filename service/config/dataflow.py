"""Settings: Dataflow and the jobs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from service.launch_environment import LaunchEnvironment


def _decoded(value: Any) -> Any:
    """What the text of a variable says; other values as they are. Raises ValueError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"must be JSON, and it is not: {error}") from None


_JSON = BeforeValidator(_decoded)
# What the local Dataflow takes. Names of buckets are global: on Google Cloud this one is whoever's it is.
LOCAL_TEMPLATES = "gs://signin-local/"


class Pipeline(BaseModel):
    """A pipeline that jobs may be launched of: its template, and what its jobs get unless asked otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template_path: str = Field(pattern=r"^gs://[^/\s]+/\S+$", max_length=1024)
    template_metadata: Path | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    environment: LaunchEnvironment = LaunchEnvironment.model_construct()
    streaming: bool = True  # false: its jobs are batch jobs, which end by themselves
    reads_subscription: bool = True  # the one of the settings, unless a job names another source


class Dataflow(BaseModel):
    """Dataflow and the jobs on it."""

    template_path: str = Field(
        f"{LOCAL_TEMPLATES}templates/user-signin.json",
        description="Flex Template spec of user-signin; the default is the local stack's alone",
    )
    template_metadata: Path | None = Field(
        None,
        description="File with the parameters of user-signin; without it, they are read from its template",
    )
    pipelines: Annotated[dict[str, Pipeline], _JSON] = Field(
        {},
        description="More pipelines, as JSON: name to `template_path` and, where wanted, "
        "`template_metadata`, `parameters`, `environment`, and `streaming`, false for batch jobs",
    )
    allowed_templates: Annotated[list[str], _JSON] = Field(
        [], description="Patterns (`*`) of template paths that an update may name besides the pipeline's own"
    )
    allowed_environment: Annotated[dict[str, list[str]], _JSON] = Field(
        {"sdk_container_image": [], "service_account_email": []},
        description="Patterns (`*`) of values that a request may name, by field of the environment, as JSON; "
        "an empty list allows none, a field that is not listed takes any",
    )
    backfill_template_path: str = Field(
        f"{LOCAL_TEMPLATES}templates/backfill-signin.json",
        description="Flex Template spec of backfill-signin; the default is the local stack's alone",
    )
    backfill_template_metadata: Path | None = Field(
        None,
        description="As above, of backfill-signin",
    )
    dataflow_deadline_seconds: float = Field(30.0, gt=0, description="Deadline of one Dataflow call")
    reconcile_interval_seconds: float = Field(
        5.0, gt=0, description="Time between two looks at Dataflow; the local stack uses 0.5"
    )
    reconcile_max_calls: int = Field(
        200, ge=1, description="Calls of Dataflow in one look at all jobs after which the rest waits its turn"
    )
    reconcile_lease_seconds: float = Field(
        15.0, gt=0, description="How long a replica that died keeps the others from looking at Dataflow"
    )
    launch_grace_seconds: float = Field(
        120.0, ge=0, description="How long a launch without an answer is looked for before the next try"
    )
    max_workers: int = Field(
        5, ge=1, le=1000, description="Most workers of a job, and as many where it asks for no other number"
    )
    staging_location: str = Field("", description="gs:// path for Dataflow's staging files")
    temp_location: str = Field("", description="gs:// path for Dataflow's temporary files")
    service_account: str = Field("", description="Service account of the workers")
    network: str = Field("", description="VPC network of the workers")
    subnetwork: str = Field("", description="Subnetwork of the workers")

    @field_validator("allowed_environment")
    @classmethod
    def _require_fields(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        """A misspelt name would allow everything."""
        if unknown := sorted(value.keys() - LaunchEnvironment.model_fields.keys()):
            raise ValueError(f"the environment of a launch has no {', '.join(unknown)}")
        return value
