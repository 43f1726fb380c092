"""What a refusal of Google's means, whether it came by gRPC or REST, and what is to be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import msgspec

from service.checkup.findings import NotAsked, Trouble
from service.clients import MissingCredentialsError
from service.google_rest import RestError

LOGIN = "gcloud auth application-default login"
_DISABLED = frozenset({"SERVICE_DISABLED", "accessNotConfigured"})
_STATUSES: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "INVALID_ARGUMENT",
    HTTPStatus.UNAUTHORIZED: "UNAUTHENTICATED",
    HTTPStatus.FORBIDDEN: "PERMISSION_DENIED",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.TOO_MANY_REQUESTS: "RESOURCE_EXHAUSTED",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """`status` is the name of the gRPC status, `disabled_api` a service that the project has not enabled."""

    status: str
    message: str
    disabled_api: str = ""


class _Detail(msgspec.Struct):
    reason: str = ""
    metadata: dict[str, str] = {}


class _Error(msgspec.Struct):
    message: str = ""
    errors: list[_Detail] = []
    details: list[_Detail] = []


class _Answer(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


def explained(
    error: Exception, project: str, endpoint: str, known: Mapping[str, Trouble], *, api: str
) -> Exception:
    """What to raise for an error of a call: of `known` by its status, or what any call may meet.

    `api` is the service's name, such as `pubsub.googleapis.com`.
    """
    if isinstance(error, MissingCredentialsError) or isinstance(error.__cause__, MissingCredentialsError):
        return NotAsked("There are no credentials to ask with.")
    refusal = refusal_of(error)
    if refusal is None:
        return error
    if refusal.status == "DEADLINE_EXCEEDED":
        return TimeoutError()
    if refusal.status in known and not refusal.disabled_api:
        return known[refusal.status]
    return _met_by_any(refusal, project, endpoint, api)


def refusal_of(error: Exception) -> Refusal | None:
    """None for what is neither an answer of Google's nor the lack of one."""
    import grpc
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    if isinstance(error, RestError):
        return _of_rest(error)
    if isinstance(error, GoogleAuthError):
        return Refusal("UNAUTHENTICATED", str(error))
    if isinstance(error, grpc.RpcError):
        error = exceptions.from_grpc_error(error)
    if not isinstance(error, exceptions.GoogleAPICallError):
        return None
    status = error.grpc_status_code.name if error.grpc_status_code else "UNKNOWN"
    api = str((error.metadata or {}).get("service", "the API")) if error.reason in _DISABLED else ""
    return Refusal(status, str(error.message), api)


def _met_by_any(refusal: Refusal, project: str, endpoint: str, api: str) -> Trouble:
    if refusal.disabled_api:
        command = f"gcloud services enable {refusal.disabled_api} --project={project}"
        return Trouble(f"The project has not enabled {refusal.disabled_api}.", command)
    if refusal.status == "UNAUTHENTICATED":
        return Trouble("The credentials are not accepted.", LOGIN)
    if refusal.status == "UNAVAILABLE":
        hint = f"Is the address right, and may this machine reach it? Google's own is {api}."
        return Trouble(f"{endpoint} cannot be reached ({refusal.message}).", hint)
    return Trouble(f"{endpoint} answers {refusal.status}: {refusal.message}")


def _of_rest(error: RestError) -> Refusal:
    try:
        told = msgspec.json.decode(error.body, type=_Answer).error
    except msgspec.MsgspecError:
        told = _Error()
    api = ""
    for detail in (*told.details, *told.errors):
        if detail.reason in _DISABLED:
            api = detail.metadata.get("service", "") or api or "the API"
    away = not error.status or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    status = "UNAVAILABLE" if away else _STATUSES.get(error.status, f"HTTP {error.status}")
    return Refusal(status, told.message or str(error), api)
