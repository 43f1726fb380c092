"""The verbs of Dataflow that this service uses, each one call with a deadline and without client retries."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any

from service.clients import Clients
from service.config import Settings
from service.dataflow.causes import cause_of
from service.dataflow.failures import (
    DataflowError,
    MissingError,
    OutcomeUnknownError,
    RefusedError,
    UnavailableError,
    dataflow_error,
)
from service.dataflow.launches import Launch, launch_request
from service.dataflow.sightings import (
    STATE_PREFIX,
    Importance,
    MessagePage,
    SeenJob,
    SeenMessage,
    SeenMetrics,
    committed_metrics,
    message_page,
    seen_job,
    user_counters,
)
from service.errors import ConfigError
from service.metrics import Metrics
from service.models import Job

if TYPE_CHECKING:
    from service.spans import Traces

FORCE_CANCEL_LABEL = "force_cancel_job"
CONNECT_SECONDS = 1.0
_PAGES = 100
_PAGE_SIZE = 1000
_CAUSE_PAGES = 5
_DETAILS_AT_ONCE = 8
_COUNTERS_DEADLINE_SECONDS = 2.0
_COUNTERS_KEPT = 256


class Dataflow:
    """Dataflow through the stock clients. Every verb raises DataflowError. `calls` counts what was sent."""

    def __init__(
        self,
        clients: Clients,
        settings: Settings,
        metrics: Metrics | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.calls = 0
        self._traces = traces
        self._metrics = metrics or Metrics()
        self._clients = clients
        self._settings = settings
        self._counters: OrderedDict[tuple[str, str], tuple[float, dict[str, int] | None]] = OrderedDict()

    async def launch(
        self,
        wanted: Job | Launch,
        *,
        update: bool = False,
        transform_name_mappings: Mapping[str, str] | None = None,
    ) -> SeenJob:
        """Launches the job once, its token as a label; the answer seldom carries a state.

        With `update` it is to replace the RUNNING job of its name, and RefusedError says that there is
        none such; the mappings are old names of transforms to new ones, an empty new one for a
        transform that is gone.
        """
        request = launch_request(wanted, update, transform_name_mappings or {})
        seen = seen_job((await self._launch(request)).job)
        if not seen.id:
            raise OutcomeUnknownError("Dataflow's answer to the launch names no job")
        return seen

    async def validate(self, wanted: Job | Launch) -> None:
        """Lets Dataflow check a launch without making it. Raises RefusedError where it would refuse."""
        await self._launch({**launch_request(wanted, False, {}), "validate_only": True})

    async def request_state(
        self, project: str, region: str, job_id: str, state: str, *, force: bool = False
    ) -> SeenJob:
        """Asks for `DRAINED` or `CANCELLED`; `force` cancels without waiting for the workers.

        Dataflow promises nothing for a force-cancel sooner than 30 minutes after the cancel.
        """
        job: dict[str, Any] = {"requested_state": STATE_PREFIX + state}
        if force:
            job["labels"] = {FORCE_CANCEL_LABEL: "true"}
        return await self._update_job(project, region, job_id, {"job": job})

    async def set_workers(
        self,
        project: str,
        region: str,
        job_id: str,
        *,
        min_workers: int | None = None,
        max_workers: int | None = None,
        utilization_hint: float | None = None,
    ) -> SeenJob:
        """Sets bounds of the autoscaling of a running job; what is None stays as it is."""
        given = {
            "min_num_workers": min_workers,
            "max_num_workers": max_workers,
            "worker_utilization_hint": utilization_hint,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        mask = {"paths": [f"runtime_updatable_params.{name}" for name in changed]}
        members = {"job": {"runtime_updatable_params": changed}, "update_mask": mask}
        return await self._update_job(project, region, job_id, members)

    async def get(self, project: str, region: str, job_id: str) -> SeenJob:
        """The job with its labels. Raises MissingError where Dataflow denies it."""
        request = {**_place(project, region, job_id), "view": "JOB_VIEW_DESCRIPTION"}
        return seen_job(await self._call(self._clients.dataflow_jobs, "get_job", request))

    async def list_active(self, project: str, region: str) -> dict[str, SeenJob]:
        """The active jobs of a region by id; when there are tens of thousands, the first of them."""
        return {job.id: job for job in await self._list(project, region, filter="ACTIVE")}

    async def find_by_name(self, project: str, region: str, name: str) -> list[SeenJob]:
        """Every job of exactly this name, ended ones too; newest first, without labels."""
        found = await self._list(project, region, filter="ALL", name=name)
        return [job for job in found if job.name == name]

    async def with_labels(self, project: str, region: str, job_ids: Iterable[str]) -> list[SeenJob]:
        """The jobs in the full view, one call for each, a few at once; those that are gone are left out."""
        few = asyncio.Semaphore(_DETAILS_AT_ONCE)

        async def one(job_id: str) -> SeenJob | None:
            async with few:
                try:
                    return await self.get(project, region, job_id)
                except MissingError:
                    return None

        seen = await asyncio.gather(*(one(job_id) for job_id in job_ids), return_exceptions=True)
        for outcome in seen:
            if isinstance(outcome, BaseException):
                raise outcome
        return [job for job in seen if isinstance(job, SeenJob)]

    async def messages(
        self,
        project: str,
        region: str,
        job_id: str,
        *,
        minimum_importance: Importance = "BASIC",
        since: datetime | None = None,
        page_token: str = "",
        page_size: int = 100,
    ) -> MessagePage:
        """One page of a job's messages and autoscaling events, from the oldest on or from `since`."""
        request: dict[str, Any] = {
            **_place(project, region, job_id),
            "minimum_importance": f"JOB_MESSAGE_{minimum_importance}",
            "page_token": page_token,
            "page_size": page_size,
        }
        if since is not None:
            request["start_time"] = since
        pager = await self._call(self._clients.dataflow_messages, "list_job_messages", request)
        return message_page(await anext(aiter(pager.pages)))  # the one asked for, no further call

    async def failure_cause(self, project: str, region: str, job_id: str) -> str | None:
        """The error message that best says why a job failed; None where there is none to be had."""
        found: list[SeenMessage] = []
        token = ""
        try:
            for _ in range(_CAUSE_PAGES):
                page = await self.messages(
                    project, region, job_id, minimum_importance="ERROR", page_token=token
                )
                found += page.messages
                token = page.next_page_token
                if not token:
                    break
        except DataflowError:
            pass  # what was read until then is better than nothing
        return cause_of(found)

    async def metrics(
        self, project: str, region: str, job_id: str, *, deadline_seconds: float | None = None
    ) -> SeenMetrics:
        """The committed metrics of a job, Dataflow's own and those of its code."""
        answer = await self._call(
            self._clients.dataflow_metrics,
            "get_job_metrics",
            _place(project, region, job_id),
            deadline_seconds=deadline_seconds,
        )
        return committed_metrics(answer)

    async def counters(self, project: str, region: str, job_id: str, state: str) -> dict[str, int] | None:
        """The job's own Beam counters by name, summed over steps; None where they are not known.

        Asked for at most once in a reconcile interval and `state`: an end brings the last numbers along.
        """
        now = time.monotonic()
        kept = self._counters.get((job_id, state))
        if kept and now - kept[0] < min(self._settings.reconcile_interval_seconds, 5.0):
            return kept[1]
        counters: dict[str, int] | None = None
        try:
            seen = await self.metrics(project, region, job_id, deadline_seconds=_COUNTERS_DEADLINE_SECONDS)
            counters = user_counters(seen.metrics)
        except DataflowError:
            pass
        self._counters[job_id, state] = (now, counters)
        self._counters.move_to_end((job_id, state))
        if len(self._counters) > _COUNTERS_KEPT:
            self._counters.popitem(last=False)
        return counters

    async def _launch(self, request: dict[str, Any]) -> Any:
        # Every launch goes this way, also that of a job which was committed under other settings.
        if reason := self._settings.template_not_set(request["launch_parameter"]["container_spec_gcs_path"]):
            raise RefusedError(reason, "FAILED_PRECONDITION")
        try:
            return await self._call(self._clients.dataflow_flex_templates, "launch_flex_template", request)
        except MissingError as error:  # here it is the template that is missing
            told = RefusedError(error.detail, error.status)
            raise told from error

    async def _update_job(self, project: str, region: str, job_id: str, members: dict[str, Any]) -> SeenJob:
        request = {**_place(project, region, job_id), **members}
        return seen_job(await self._call(self._clients.dataflow_jobs, "update_job", request))

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
        span = self._traces.dataflow_call(method) if self._traces else nullcontext()
        with self._metrics.dataflow_call(method), span:
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
                self.calls += 1
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


def _place(project: str, region: str, job_id: str) -> dict[str, Any]:
    return {"project_id": project, "location": region, "job_id": job_id}
