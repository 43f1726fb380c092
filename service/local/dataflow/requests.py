"""What Dataflow accepts: names, labels, pages, and the words it refuses the rest with."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import grpc
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow.job import DEFAULT_REGION, LocalJob
from service.local.grpc_server import StatusError
from service.local.templates import Violation

Item = TypeVar("Item")

PAGE_SIZE = 100
LARGEST_PAGE = 1000
LABELS = 64
WORKERS = 4_000  # that one job may have
_LABEL_BYTES = 128
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,1022}[a-z0-9])?")
_RUNTIME_FIELDS = df.RuntimeUpdatableParams.pb().DESCRIPTOR.fields_by_name


def refusal(code: grpc.StatusCode, message: str, details: tuple[Any, ...] = ()) -> StatusError:
    """A status with the error number in front that Dataflow puts there."""
    return StatusError(code, f"({error_number()}): {message}", details)


def error_number() -> str:
    """A number as Dataflow gives to each error, the cause's own one included."""
    return secrets.token_hex(8)


def invalid(message: str) -> StatusError:
    """INVALID_ARGUMENT."""
    return refusal(grpc.StatusCode.INVALID_ARGUMENT, message)


def not_allowed(job: LocalJob, operation: str, reason: str) -> StatusError:
    """FAILED_PRECONDITION of an operation on a job."""
    return refusal(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"Workflow modification failed. Causes: Operation {operation} not allowed for job {job.id}. {reason}",
    )


def invalid_parameters(violations: Iterable[Violation]) -> StatusError:
    """INVALID_ARGUMENT with InvalidTemplateParameters in the details."""
    detail = df.InvalidTemplateParameters.pb()()
    lines = []
    for violation in violations:
        detail.parameter_violations.add(parameter=violation.parameter, description=violation.description)
        lines.append(f"{violation.parameter}: {violation.description}")
    message = "The template parameters are invalid. Details: \n" + "\n".join(lines)
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message, (detail,))


def region_of(request: Any) -> str:
    """The location that a request means. Raises StatusError where it names no project."""
    if not request.project_id:
        raise invalid("Project id is empty.")
    return str(request.location) or DEFAULT_REGION


def check_job_name(name: str) -> None:
    """Raises StatusError for a name that Dataflow refuses."""
    if not _JOB_NAME.fullmatch(name):
        raise invalid(
            "The workflow could not be created. Causes: JobName invalid; the name must consist of only the "
            "characters [-a-z0-9], starting with a letter and ending with a letter or number, "
            f"1 to 1024 characters: {name[:1100]!r}"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises StatusError for labels that Dataflow refuses."""
    if len(labels) > LABELS:
        raise invalid(f"A job has at most {LABELS} labels, not {len(labels)}.")
    for key, value in labels.items():
        if not (key and _is_label(key) and unicodedata.category(key[0]) in ("Ll", "Lo")):
            raise invalid(f"Invalid label key: {key!r}")
        if not _is_label(value):
            raise invalid(f"Invalid label value for {key}: {value!r}")


def check_runtime_mask(paths: Iterable[str]) -> list[str]:
    """The fields of RuntimeUpdatableParams that an update mask names. Raises StatusError for others."""
    fields = []
    for path in paths:
        parent, _, field = path.partition(".")
        if parent != "runtime_updatable_params" or field not in _RUNTIME_FIELDS:
            raise invalid(f"The update mask names a field that cannot be updated: {path}")
        fields.append(field)
    return fields


def check_runtime_params(params: Any) -> None:
    """Raises StatusError for bounds of the workers that Dataflow refuses."""
    least, most = params.min_num_workers, params.max_num_workers
    for name in ("min_num_workers", "max_num_workers"):
        if params.HasField(name) and not 1 <= getattr(params, name) <= WORKERS:
            raise invalid(f"Worker numbers are not valid: {name} must be between 1 and {WORKERS}.")
    if params.HasField("min_num_workers") and params.HasField("max_num_workers") and least > most:
        raise invalid(f"Worker numbers are not valid: minimum {least}, maximum {most}.")
    hint = params.worker_utilization_hint
    if params.HasField("worker_utilization_hint") and not 0.1 <= hint <= 0.9:
        raise invalid(f"The worker utilization hint must be between 0.1 and 0.9, not {hint:g}.")


def page(
    items: list[Item], size: int, token: str, kind: str, number: Callable[[Item], int]
) -> tuple[list[Item], str]:
    """The items up to `size`, beginning at the one whose number the token holds, and the next token.

    The items are in an order in which the token's item and what follows it stay in place.
    """
    if size < 0:
        raise invalid(f"Page size is negative: {size}")
    start = 0
    if token:
        wanted = _read_token(token, kind)
        start = next((i for i, item in enumerate(items) if number(item) == wanted), len(items))
    end = start + min(size or PAGE_SIZE, LARGEST_PAGE)
    rest = f"{kind}:{number(items[end])}" if end < len(items) else ""
    return items[start:end], base64.urlsafe_b64encode(rest.encode()).decode()


def _read_token(token: str, kind: str) -> int:
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode()
        found, _, number = text.partition(":")
        if found != kind:
            raise invalid("The page token belongs to another list.")
        return int(number)
    except (binascii.Error, ValueError) as error:
        raise invalid("The page token is not valid.") from error


def _is_label(text: str) -> bool:
    """At most 63 small letters (or letters without case), digits, underscores and dashes."""
    return (
        len(text) <= 63
        and len(text.encode()) <= _LABEL_BYTES
        and all(c in "_-" or unicodedata.category(c) in ("Ll", "Lo", "Nd", "Nl", "No") for c in text)
    )
