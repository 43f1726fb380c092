"""The verbs of Dataflow that this service uses, each one call with a deadline and without client retries.

What went wrong is told by our own exceptions, made from the gRPC status and never from its text. The
question that they answer is whether the call may have taken effect.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from service.clients import Clients
from service.config import Settings
from service.errors import ConfigError
from service.metrics import Metrics
from service.models import Job

LAUNCH_TOKEN_LABEL = "signin-launch-token"  # noqa: S105 -- the name of a label
_STATE_PREFIX = "JOB_STATE_"
_PAGES = 100
_PAGE_SIZE = 500
_DETAIL_CHARACTERS = 4000
CONNECT_SECONDS = 1.0
_COUNTERS_DEADLINE_SECONDS = 2.0
_COUNTERS_KEPT = 256


class DataflowError(Exception):
    """A call that did not succeed; `status` is the gRPC status name, empty where there was none."""

    def __init__(self, detail: str, status: str = "") -> None:
        super().__init__(detail)
        self.detail = detail[:_DETAIL_CHARACTERS]
        self.status = status


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


@dataclass(frozen=True, slots=True)
class SeenJob:
    """A job as Dataflow shows it; `state` has no prefix, `labels` are there in the full view only."""

    id: str
    name: str
    state: str
    labels: dict[str, str] = field(default_factory=dict)


class Dataflow:
    """Dataflow through the stock clients. Every verb raises DataflowError."""

    def __init__(self, clients: Clients, settings: Settings, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._clients = clients
        self._settings = settings
        self._counters: OrderedDict[tuple[str, str], tuple[float, dict[str, int] | None]] = OrderedDict()

    async def launch(self, job: Job) -> SeenJob:
        """Launches the job once, its token as a label; the answer seldom carries a state."""
        parameter = {
            "job_name": job.name,
            "container_spec_gcs_path": job.template_path,
            "parameters": job.parameters,
            "environment": {
                **job.environment,
                "additional_user_labels": {**job.labels, LAUNCH_TOKEN_LABEL: job.launch_token},
            },
        }
        request = {"project_id": job.project, "location": job.region, "launch_parameter": parameter}
        try:
            answer = await self._call(self._clients.dataflow_flex_templates, "launch_flex_template", request)
        except MissingError as error:  # here it is the template that is missing
            raise RefusedError(error.detail, error.status) from error
        seen = seen_job(answer.job)
        if not seen.id:
            raise OutcomeUnknownError("Dataflow's answer to the launch names no job")
        return seen

    async def request_state(self, project: str, region: str, job_id: str, state: str) -> SeenJob:
        """Asks for `DRAINED` or `CANCELLED`."""
        request = {
            "project_id": project,
            "location": region,
            "job_id": job_id,
            "job": {"requested_state": _STATE_PREFIX + state},
        }
        return seen_job(await self._call(self._clients.dataflow_jobs, "update_job", request))

    async def get(self, project: str, region: str, job_id: str) -> SeenJob:
        """The job with its labels. Raises MissingError where Dataflow denies it."""
        request = {
            "project_id": project,
            "location": region,
            "job_id": job_id,
            "view": "JOB_VIEW_DESCRIPTION",
        }
        return seen_job(await self._call(self._clients.dataflow_jobs, "get_job", request))

    async def list_active(self, project: str, region: str) -> dict[str, SeenJob]:
        """The active jobs of a region by id; when there are tens of thousands, the first of them."""
        return {job.id: job for job in await self._list(project, region, filter="ACTIVE")}

    async def find_by_name(self, project: str, region: str, name: str) -> list[SeenJob]:
        """Every job of exactly this name, ended ones too."""
        found = await self._list(project, region, filter="ALL", name=name)
        return [job for job in found if job.name == name]

    async def failure_cause(self, project: str, region: str, job_id: str) -> str | None:
        """The last error message of a job; None where it says nothing or cannot be asked."""
        request = {
            "project_id": project,
            "location": region,
            "job_id": job_id,
            "minimum_importance": "JOB_MESSAGE_ERROR",
        }
        try:
            pager = await self._call(self._clients.dataflow_messages, "list_job_messages", request)
        except DataflowError:
            return None
        texts = [message.message_text for message in pager.job_messages]
        return texts[-1][-_DETAIL_CHARACTERS:] if texts else None

    async def counters(self, project: str, region: str, job_id: str, state: str) -> dict[str, int] | None:
        """The job's own Beam counters by name, summed over steps; None where they are not known.

        Asked for at most once in a reconcile interval and `state`: an end brings the last numbers along.
        """
        now = time.monotonic()
        kept = self._counters.get((job_id, state))
        if kept and now - kept[0] < min(self._settings.reconcile_interval_seconds, 5.0):
            return kept[1]
        request = {"project_id": project, "location": region, "job_id": job_id}
        counters: dict[str, int] | None = None
        try:
            answer = await self._call(
                self._clients.dataflow_metrics,
                "get_job_metrics",
                request,
                deadline_seconds=_COUNTERS_DEADLINE_SECONDS,
            )
            counters = committed_counters(answer)
        except DataflowError:
            pass
        self._counters[job_id, state] = (now, counters)
        self._counters.move_to_end((job_id, state))
        if len(self._counters) > _COUNTERS_KEPT:
            self._counters.popitem(last=False)
        return counters

    async def _list(self, project: str, region: str, **arguments: str) -> list[SeenJob]:
        request = {"project_id": project, "location": region, "page_size": _PAGE_SIZE, **arguments}
        found: list[SeenJob] = []
        for _ in range(_PAGES):
            page = await self._call(self._clients.dataflow_jobs, "list_jobs", request)
            if page.failed_location:
                raise UnavailableError("Dataflow could not list every location")
            found += [seen_job(job) for job in page.jobs]
            if not page.next_page_token:
                break
            request = {**request, "page_token": page.next_page_token}
        return found

    async def _call(self, client: Callable[[], Awaitable[Any]], method: str, *args: Any, **more: Any) -> Any:
        with self._metrics.dataflow_call(method):
            return await self._answer(client, method, *args, **more)

    async def _answer(
        self,
        client: Callable[[], Awaitable[Any]],
        method: str,
        request: dict[str, Any],
        *,
        deadline_seconds: float | None = None,
    ) -> Any:
        deadline = deadline_seconds or self._settings.dataflow_deadline_seconds
        try:
            # The outer limit covers what the deadline of the call does not: imports and credentials.
            async with asyncio.timeout(deadline + CONNECT_SECONDS):
                stub = await client()
                return await getattr(stub, method)(request=request, timeout=deadline, retry=None)
        except TimeoutError as error:
            raise OutcomeUnknownError(f"Dataflow did not answer within {deadline:g} s") from error
        except ConfigError as error:
            raise UnavailableError(str(error)) from error
        except Exception as error:
            told = dataflow_error(error)
            if told is None:
                raise
            raise told from error


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


def seen_job(job: Any) -> SeenJob:
    """The parts of a proto-plus Job that matter here; a state without a name is its number."""
    from google.cloud import dataflow_v1beta3 as df

    raw = df.Job.pb(job)
    states = {state.value: state.name.removeprefix(_STATE_PREFIX) for state in df.JobState}
    state = states.get(raw.current_state, str(raw.current_state))
    return SeenJob(raw.id, raw.name, state, dict(raw.labels))


def committed_counters(metrics: Any) -> dict[str, int]:
    """Sums of the user counters by name, without their tentative twins."""
    from google.cloud import dataflow_v1beta3 as df

    sums: dict[str, int] = {}
    for metric in df.JobMetrics.pb(metrics).metrics:
        name = metric.name
        if name.origin != "user" or "tentative" in name.context:
            continue
        if metric.HasField("scalar") and metric.scalar.HasField("number_value"):
            sums[name.name] = sums.get(name.name, 0) + int(metric.scalar.number_value)
    return sums
