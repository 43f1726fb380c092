"""The environment that a job is launched in, and what a request may not make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from service.config import Settings
from service.launch_environment import LaunchEnvironment

RESERVED_LABEL_PREFIXES = ("signin-", "goog-", "force_cancel_job")


class Violation(NamedTuple):
    """A field of a request that cannot be as it is."""

    field: str
    detail: str


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
