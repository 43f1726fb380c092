"""The bodies that the /jobs routes take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.json_values import whole
from service.launch_environment import LaunchEnvironment, Workers
from service.pipelines import BUILT_IN

DEFAULT_BASE_NAME = "signin-user-tobigquery"
LONGEST_DRAIN_DEADLINE_SECONDS = 30 * 24 * 3600

ParameterName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
ParameterValue = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
TransformName = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
TemplatePath = Annotated[str, Field(pattern=r"^gs://[^/\s]+/\S+$", max_length=1024)]
DataflowId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,128}$")]
Region = Annotated[str, Field(pattern=r"^[a-z]+(-[a-z]+)+[0-9]+$", max_length=63)]
OnDeadline = Literal["wait", "cancel"]
_DrainSeconds = Annotated[int, Field(ge=1, le=LONGEST_DRAIN_DEADLINE_SECONDS), whole]
DrainDeadline = Annotated[_DrainSeconds | None, Field(description="Seconds after which the drain is overdue")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewJob(_Body):
    """What may be asked for when a job is launched; everything has a default."""

    pipeline: str = Field(BUILT_IN, max_length=64, description="Which pipeline")
    name: str = Field(
        DEFAULT_BASE_NAME,
        pattern=r"^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$",
        description="Base of the job's name; the name itself gets a suffix and is never used again",
    )
    parameters: dict[ParameterName, ParameterValue] = Field(
        default_factory=dict,
        max_length=64,
        description="Template parameters, over the defaults from the settings",
    )
    environment: LaunchEnvironment = Field(
        LaunchEnvironment.model_construct(), description="Where and how it runs, over the settings"
    )
    shared_subscription: bool = Field(
        False, description="Launch although another active job reads the same subscription"
    )
    drain_deadline_seconds: DrainDeadline = None
    on_drain_deadline: OnDeadline = Field("wait", description="What happens when a drain is overdue")
    restart_policy: Literal["never", "on-failure"] = Field(
        "never", description="Whether a job that FAILED is launched again, after a pause that grows"
    )
    restart_limit: Annotated[int, Field(ge=1, le=100), whole] = Field(
        3, description="How often, with `on-failure`"
    )


class Drain(_Body):
    """How a drain may end; what is left out is as the launch said."""

    deadline_seconds: DrainDeadline = None
    on_deadline: OnDeadline | None = None


class ForceCancel(_Body):
    """The consent without which nobody loses data."""

    confirm: Literal["FORCE-CANCEL"] = Field(
        description="Exactly this word: workers are left as they are, and what is in flight is lost"
    )


class JobUpdate(_Body):
    """What the replacement differs in; everything else is as the running job has it."""

    parameters: dict[ParameterName, ParameterValue | None] = Field(
        default_factory=dict,
        max_length=64,
        description="Template parameters over those of the running job; null removes one",
    )
    environment: LaunchEnvironment = LaunchEnvironment.model_construct()
    template_path: TemplatePath | None = Field(
        None, description="Another version of the template; by default the one that the settings name now"
    )
    transform_name_mappings: dict[TransformName, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict,
        max_length=200,
        description="Old names of transforms to new ones; an empty one for a transform that is gone",
    )


class Scaling(_Body):
    """Bounds of the workers of a running job, at least one; null leaves the other as it is."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "integer"}}}
                for name in ("min_workers", "max_workers")
            ]
        }
    )

    min_workers: Workers | None = None
    max_workers: Workers | None = None


class Adoption(_Body):
    """A Dataflow job that this service has not launched and is to manage from now on."""

    dataflow_job_id: DataflowId
    region: Region | None = Field(None, description="By default the region of the settings")
