"""What went wrong with a call to Dataflow, told from the gRPC status and never from its text.

The question that the kinds answer is whether the call may have taken effect.
"""

from __future__ import annotations

from typing import Any

DETAIL_CHARACTERS = 4000


class DataflowError(Exception):
    """A call that did not succeed; `status` is the gRPC status name, empty where there was none."""

    def __init__(self, detail: str, status: str = "") -> None:
        super().__init__(detail)
        self.detail = detail[:DETAIL_CHARACTERS]
        self.status = status

    @property
    def cause(self) -> str:
        """The status and what was said with it: either alone may say little."""
        return f"{self.status}: {self.detail}" if self.status and self.detail else self.status or self.detail


class RefusedError(DataflowError):
    """Dataflow said no: nothing happened, and asking again is in vain.

    `violations` are the template parameters that it named, as (parameter, description).
    """

    violations: tuple[tuple[str, str], ...] = ()


class MissingError(RefusedError):
    """Dataflow does not know the job, or the template."""


class NameTakenError(DataflowError):
    """An active job has the name; it may be ours, from a call whose answer was lost."""


class UnavailableError(DataflowError):
    """Dataflow cannot be reached, or cannot now."""


class OutcomeUnknownError(DataflowError):
    """The call may or may not have taken effect."""


_KINDS: dict[str, type[DataflowError]] = {
    "INVALID_ARGUMENT": RefusedError,
    "PERMISSION_DENIED": RefusedError,
    "UNAUTHENTICATED": RefusedError,
    "FAILED_PRECONDITION": RefusedError,
    "OUT_OF_RANGE": RefusedError,
    "UNIMPLEMENTED": RefusedError,
    "NOT_FOUND": MissingError,
    "ALREADY_EXISTS": NameTakenError,
    "UNAVAILABLE": UnavailableError,
    "RESOURCE_EXHAUSTED": UnavailableError,
}


def dataflow_error(error: Exception) -> DataflowError | None:
    """Our exception for one of Google's libraries; None for what is none of theirs."""
    import grpc
    from google.api_core.exceptions import GoogleAPICallError, GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    if isinstance(error, GoogleAuthError):
        return UnavailableError(f"The credentials do not work: {error}")
    if not isinstance(error, GoogleAPICallError):
        if isinstance(error, GoogleAPIError | grpc.RpcError | grpc.aio.UsageError):
            return OutcomeUnknownError(f"The call to Dataflow broke off: {type(error).__name__}")
        return None
    status = error.grpc_status_code.name if error.grpc_status_code else ""
    kind = _KINDS.get(status, OutcomeUnknownError)
    told = kind(str(error.message or status), status)
    if isinstance(told, RefusedError):
        told.violations = violations(error.details)
    return told


def violations(details: list[Any]) -> tuple[tuple[str, str], ...]:
    """The template parameters that the details of a refusal name."""
    from google.cloud import dataflow_v1beta3 as df

    kind = df.InvalidTemplateParameters.pb()
    found: list[tuple[str, str]] = []
    for detail in details:
        if getattr(detail, "type_url", "").rpartition("/")[2] == kind.DESCRIPTOR.full_name:
            listed = kind.FromString(detail.value).parameter_violations
            found += [(violation.parameter, violation.description) for violation in listed]
    return tuple(found)
