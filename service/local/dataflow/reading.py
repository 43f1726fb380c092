"""The calls that look at jobs: one, lists, messages, metrics. What they show may be distorted by faults."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from typing import Any

import grpc
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow import answers, metrics, requests
from service.local.dataflow.faults import DataflowFaultSwitch, distort, is_hidden
from service.local.dataflow.fleet import Fleet
from service.local.dataflow.job import LocalJob
from service.local.dataflow.lags import Lags
from service.local.dataflow.requests import refusal
from service.local.faults import Fault


class Reading:
    """The reading methods; each takes and gives raw protobuf and raises StatusError."""

    def __init__(self, fleet: Fleet, faults: DataflowFaultSwitch, lags: Lags) -> None:
        self._fleet = fleet
        self._faults = faults
        self._lags = lags

    def find(self, request: Any, method: str) -> tuple[LocalJob, list[Fault]]:
        """The job that the request names and the faults of this look. Raises StatusError NOT_FOUND."""
        region = requests.region_of(request)
        job = self._fleet.jobs.get(request.job_id)
        if job and (job.proto.project_id, job.proto.location) == (request.project_id, region):
            faults = self._faults.distortions(method, job.id, job.proto.name)
            if not is_hidden(job, faults):
                return job, faults
        raise refusal(
            grpc.StatusCode.NOT_FOUND,
            f"Information about job {request.job_id} could not be found in our system. Please double "
            "check the id is correct. If it is please contact customer support.",
        )

    def get_job(self, request: Any) -> Any:
        job, faults = self.find(request, "GetJob")
        return shown(job, request.view, faults)

    def list_jobs(self, request: Any) -> Any:
        region = requests.region_of(request)
        jobs = [job for job in self._fleet.jobs.values() if job.proto.location == region]
        return self._list(request, jobs, "ListJobs")

    def aggregated_list_jobs(self, request: Any) -> Any:
        requests.region_of(request)
        return self._list(request, list(self._fleet.jobs.values()), "AggregatedListJobs")

    def check_active_jobs(self, request: Any) -> Any:
        exist = any(job.proto.project_id == request.project_id for job in self._fleet.active())
        return df.CheckActiveJobsResponse.pb()(active_jobs_exist=exist)

    def list_job_messages(self, request: Any) -> Any:
        job, _ = self.find(request, "ListJobMessages")
        least = answers.severity(request.minimum_importance)
        start = request.start_time.ToNanoseconds() if request.HasField("start_time") else 0
        end = request.end_time.ToNanoseconds() if request.HasField("end_time") else None

        def within(told: Any) -> bool:
            time = told.time.ToNanoseconds()
            return time >= start and (end is None or time < end)

        wanted = [
            (message, told)
            for message in job.messages
            if answers.severity(message.importance) >= least and within(told := answers.message(message))
        ]
        page, token = requests.page(
            wanted, request.page_size, request.page_token, "messages", lambda pair: pair[0].number
        )
        answer = df.ListJobMessagesResponse.pb()(
            job_messages=[told for _, told in page], next_page_token=token
        )
        if not request.page_token:  # Dataflow pages the messages only
            events = (answers.scaling(each) for each in job.scalings)
            answer.autoscaling_events.extend(event for event in events if within(event))
        return answer

    async def get_job_metrics(self, request: Any) -> Any:
        job, _ = self.find(request, "GetJobMetrics")
        since = request.start_time.ToDatetime(UTC) if request.HasField("start_time") else None
        lag = await self._lags.of(job)
        answer = df.JobMetrics.pb()()
        answer.metric_time.GetCurrentTime()
        metrics.fill(answer, job, lag, since)
        return answer

    def _list(self, request: Any, jobs: list[LocalJob], method: str) -> Any:
        faults = self._faults.distortions(method)
        answer = df.ListJobsResponse.pb()()
        if any(fault.hide == "location" for fault in faults):
            answer.failed_location.add(name=requests.region_of(request))
            return answer
        page, token = requests.page(
            [job for job in reversed(jobs) if _is_wanted(job, request) and not is_hidden(job, faults)],
            request.page_size,
            request.page_token,
            "jobs",
            lambda job: job.number,
        )
        summary = df.JobView.JOB_VIEW_SUMMARY  # a list holds nothing else, whatever view is asked for
        answer.jobs.extend(shown(job, summary, faults) for job in page)
        answer.next_page_token = token
        return answer


def _is_wanted(job: LocalJob, request: Any) -> bool:
    kinds = df.ListJobsRequest.Filter
    return bool(
        job.proto.project_id == request.project_id
        and (not request.name or job.proto.name == request.name)
        and (request.filter != kinds.ACTIVE or job.is_active)
        and (request.filter != kinds.TERMINATED or not job.is_active)
    )


def shown(job: LocalJob, view: int, faults: Iterable[Fault]) -> Any:
    """The job in a view, as the faults let it be seen."""
    seen = answers.view(job, view)
    distort(seen, job, faults)
    return seen
