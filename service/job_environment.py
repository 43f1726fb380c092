"""The environment of a launch: which of its fields a caller may set, and to what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from service.config import Settings

MOST_LABELS = 48  # of the 64 that a resource may have; Dataflow and this service set some themselves
RESERVED_LABEL_PREFIXES = ("signin-", "goog-", "force_cancel_job")

_Machine = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=63)]
_Bucket = Annotated[
    str, Field(pattern=r"^gs://[a-z0-9][-_.a-z0-9]{1,220}(/[^\s?#*\[\]]*)?$", max_length=1024)
]
_Experiment = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:/=-]*$", max_length=256)]
# https://cloud.google.com/resource-manager/docs/labels-overview; of the letters, the ASCII ones.
_LabelKey = Annotated[str, Field(pattern=r"^[a-z][-_a-z0-9]{0,62}$")]
_LabelValue = Annotated[str, Field(pattern=r"^[-_a-z0-9]{0,63}$")]


class Violation(NamedTuple):
    """A field of a request that cannot be as it is."""

    field: str
    detail: str


class LaunchEnvironment(BaseModel):
    """The fields of a FlexTemplateRuntimeEnvironment that a request may set.

    https://cloud.google.com/dataflow/docs/reference/rest/v1b3/FlexTemplateRuntimeEnvironment
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    num_workers: int | None = Field(None, ge=1, le=1000, description="Workers at the start")
    max_workers: int | None = Field(None, ge=1, le=1000, description="Most workers")
    machine_type: _Machine | None = Field(None, description="Compute Engine machine type of the workers")
    launcher_machine_type: _Machine | None = Field(None, description="The same of the launcher")
    disk_size_gb: int | None = Field(None, ge=10, le=65_536)
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


def environment_of(settings: Settings, *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What the settings give, with the overrides in their order over it."""
    given = {
        "service_account_email": settings.service_account,
        "network": settings.network,
        "subnetwork": settings.subnetwork,
        "staging_location": settings.staging_location,
        "temp_location": settings.temp_location,
    }
    merged = {"max_workers": settings.max_workers, **{name: value for name, value in given.items() if value}}
    for each in overrides:
        merged |= each
    return merged


def violations(
    asked: LaunchEnvironment, merged: Mapping[str, Any], settings: Settings
) -> Iterator[Violation]:
    """What is wrong with `asked`, alone and where it meets what else `merged` holds."""
    place = "body.environment"
    if merged.get("worker_region") and merged.get("worker_zone"):
        yield Violation(f"{place}.worker_zone", "A worker_region and a worker_zone exclude each other.")
    for name in ("num_workers", "max_workers"):
        if merged.get(name, 0) > settings.max_workers:
            yield Violation(f"{place}.{name}", f"At most {settings.max_workers} workers are allowed here.")
    if merged.get("num_workers", 0) > merged["max_workers"]:
        yield Violation(f"{place}.num_workers", f"There are at most {merged['max_workers']} (max_workers).")
    for key in asked.labels:
        if key.startswith(RESERVED_LABEL_PREFIXES):
            yield Violation(f"{place}.additional_user_labels.{key}", "This label is reserved.")
    for name, patterns in settings.allowed_environment.items():
        value = getattr(asked, name, None)
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(_matches(str(each), patterns) for each in values):
            yield Violation(f"{place}.{name}", "SIGNIN_ALLOWED_ENVIRONMENT does not allow this value.")


def _matches(value: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(value, pattern) for pattern in patterns)
