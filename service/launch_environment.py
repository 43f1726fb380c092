"""The fields of the environment of a launch, each with its form and its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.json_values import whole

MOST_LABELS = 48  # of the 64 that a resource may have; Dataflow and this service set some themselves

Workers = Annotated[int, Field(ge=1, le=1000), whole]
_Machine = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=63)]
_Bucket = Annotated[
    str, Field(pattern=r"^gs://[a-z0-9][-_.a-z0-9]{1,220}(/[^\s?#*\[\]]*)?$", max_length=1024)
]
_Experiment = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/=-]*$", max_length=256)]
# https://cloud.google.com/resource-manager/docs/labels-overview; of the letters, the ASCII ones.
_LabelKey = Annotated[str, Field(pattern=r"^[a-z][-_a-z0-9]{0,62}$")]
_LabelValue = Annotated[str, Field(pattern=r"^[-_a-z0-9]{0,63}$")]


class LaunchEnvironment(BaseModel):
    """The fields of a FlexTemplateRuntimeEnvironment that a request may set.

    https://cloud.google.com/dataflow/docs/reference/rest/v1b3/FlexTemplateRuntimeEnvironment
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    num_workers: Workers | None = Field(None, description="Workers at the start")
    max_workers: Workers | None = Field(None, description="Most workers")
    machine_type: _Machine | None = Field(None, description="Compute Engine machine type of the workers")
    launcher_machine_type: _Machine | None = Field(None, description="The same of the launcher")
    disk_size_gb: Annotated[int, Field(ge=10, le=65_536), whole] | None = None
    worker_region: str | None = Field(None, pattern=r"^[a-z]+(-[a-z]+)+[0-9]+$", max_length=63)
    worker_zone: str | None = Field(None, pattern=r"^[a-z]+(-[a-z]+)+[0-9]+-[a-z]$", max_length=63)
    network: str | None = Field(None, pattern=r"^[-a-z0-9./:_]+$", max_length=512)
    subnetwork: str | None = Field(
        None,
        pattern=r"^(https://www\.googleapis\.com/compute/v1/projects/[-a-z0-9.:]+/)?"
        r"regions/[-a-z0-9]+/subnetworks/[-a-z0-9]+$",
        max_length=512,
        description="`regions/REGION/subnetworks/NAME`, or its full URL in a shared VPC",
    )
    ip_configuration: Literal["WORKER_IP_PUBLIC", "WORKER_IP_PRIVATE"] | None = None
    service_account_email: str | None = Field(None, pattern=r"^[-a-z0-9.]+@[-a-z0-9.:]+$", max_length=320)
    kms_key_name: str | None = Field(
        None,
        pattern=r"^projects/[^/\s]+/locations/[^/\s]+/keyRings/[^/\s]+/cryptoKeys/[^/\s]+$",
        max_length=512,
    )
    temp_location: _Bucket | None = None
    staging_location: _Bucket | None = None
    sdk_container_image: str | None = Field(
        None, pattern=r"^[a-z0-9][-a-z0-9._/:]*(@sha256:[0-9a-f]{64})?$", max_length=512
    )
    additional_experiments: list[_Experiment] | None = Field(None, max_length=50)
    additional_user_labels: dict[_LabelKey, _LabelValue] | None = Field(None, max_length=MOST_LABELS)
    enable_streaming_engine: bool | None = None
    streaming_mode: Literal["STREAMING_MODE_EXACTLY_ONCE", "STREAMING_MODE_AT_LEAST_ONCE"] | None = None
    autoscaling_algorithm: Literal["AUTOSCALING_ALGORITHM_NONE", "AUTOSCALING_ALGORITHM_BASIC"] | None = None
    enable_launcher_vm_serial_port_logging: bool | None = None
    dump_heap_on_oom: bool | None = None
    save_heap_dumps_to_gcs_path: _Bucket | None = None

    @property
    def labels(self) -> dict[str, str]:
        return self.additional_user_labels or {}

    def given(self) -> dict[str, Any]:
        """What was asked for, without the labels: those belong to the job."""
        return self.model_dump(exclude_none=True, exclude={"additional_user_labels"})
