"""A local Dataflow with the sample job, and Google's own asynchronous clients pointed at it."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import grpc.aio
from google.cloud import dataflow_v1beta3 as df
from google.cloud.dataflow_v1beta3.services.flex_templates_service.transports import (
    FlexTemplatesServiceGrpcAsyncIOTransport,
)
from google.cloud.dataflow_v1beta3.services.jobs_v1_beta3.transports import JobsV1Beta3GrpcAsyncIOTransport
from google.cloud.dataflow_v1beta3.services.messages_v1_beta3.transports import (
    MessagesV1Beta3GrpcAsyncIOTransport,
)
from google.cloud.dataflow_v1beta3.services.metrics_v1_beta3.transports import (
    MetricsV1Beta3GrpcAsyncIOTransport,
)

from service.local.dataflow import DataflowServer
from service.local.dataflow.fleet import Limits
from service.local.templates import Template

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = "gs://signin-local/templates/sample-job.json"
PLACE = {"project_id": "signin-local", "location": "us-central1"}
DEADLINE = 10.0
CHECKED = "gs://signin-local/templates/checked.json"
BATCH = "gs://signin-local/templates/batch.json"
MISSING_MODULE = "gs://signin-local/templates/missing-module.json"
SMALL = Limits(active_jobs=6, finished_jobs=3, cancel_grace_seconds=2.0, close_grace_seconds=1.0)
METADATA = {
    "name": "checked",
    "parameters": [
        {"name": "greeting", "label": "Greeting", "helpText": "A word", "regexes": ["^[a-z]+$"]},
        {"name": "finish", "label": "End", "helpText": "", "isOptional": True},
    ],
}


def local_dataflow(folder, **arguments):
    """A server, not yet entered, that knows the sample job; the same folder has the same jobs."""
    metadata = folder / "checked.json"
    metadata.write_text(json.dumps(METADATA), encoding="utf-8")
    batch = folder / "batch.json"
    parameters = [{"name": name, "isOptional": True} for name in ("finish", "graph", "gate")]
    batch.write_text(json.dumps({"name": "batch", "streaming": False, "parameters": parameters}))
    return DataflowServer(
        folder / "dataflow",
        environment={"PYTHONPATH": str(ROOT), "GOOGLE_APPLICATION_CREDENTIALS": "/nonexistent.json"},
        templates={
            SAMPLE: Template("tests.sample_job"),
            CHECKED: Template("tests.sample_job", metadata),
            BATCH: Template("tests.sample_job", batch),
            MISSING_MODULE: Template("tests.no_such_job"),
        },
        **({"limits": SMALL} | arguments),
    )


def is_gone(pid):
    """Whether the process has ended; one that nobody has waited for yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


async def until_gone(pid, seconds=5.0):
    """Returns when the process has ended; fails when it has not in time."""
    deadline = time.monotonic() + seconds
    while not is_gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        await asyncio.sleep(0.01)


class DataflowClient:
    """Stock clients over one plain channel; `async with` closes it."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.flex = df.FlexTemplatesServiceAsyncClient(
            transport=FlexTemplatesServiceGrpcAsyncIOTransport(channel=self._channel)
        )
        self.jobs = df.JobsV1Beta3AsyncClient(
            transport=JobsV1Beta3GrpcAsyncIOTransport(channel=self._channel)
        )
        self.metrics = df.MetricsV1Beta3AsyncClient(
            transport=MetricsV1Beta3GrpcAsyncIOTransport(channel=self._channel)
        )
        self.messages = df.MessagesV1Beta3AsyncClient(
            transport=MessagesV1Beta3GrpcAsyncIOTransport(channel=self._channel)
        )

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        await self._channel.close()

    async def launch(
        self,
        name,
        *,
        path=SAMPLE,
        labels=None,
        update=False,
        mappings=None,
        validate_only=False,
        **parameters,
    ):
        request = df.LaunchFlexTemplateRequest(
            launch_parameter=df.LaunchFlexTemplateParameter(
                job_name=name,
                container_spec_gcs_path=path,
                parameters=parameters,
                update=update,
                transform_name_mappings=mappings or {},
                environment=df.FlexTemplateRuntimeEnvironment(additional_user_labels=labels or {}),
            ),
            validate_only=validate_only,
            **PLACE,
        )
        return (await self.flex.launch_flex_template(request, timeout=DEADLINE)).job

    async def launch_running(self, name, **arguments):
        job = await self.launch(name, **arguments)
        return await self.until(job.id, "RUNNING")

    async def get(self, job_id, view=df.JobView.JOB_VIEW_DESCRIPTION, **place):
        request = df.GetJobRequest(job_id=job_id, view=view, **(PLACE | place))
        return await self.jobs.get_job(request, timeout=DEADLINE)

    async def request_state(self, job_id, state, **members):
        request = df.UpdateJobRequest(
            job_id=job_id, job=df.Job(requested_state=f"JOB_STATE_{state}", **members), **PLACE
        )
        return await self.jobs.update_job(request, timeout=DEADLINE)

    async def until(self, job_id, state, seconds=15.0):
        """The job as soon as it is in the state; fails with its messages when it never is."""
        deadline = time.monotonic() + seconds
        while (job := await self.get(job_id)).current_state.name != f"JOB_STATE_{state}":
            if time.monotonic() > deadline:
                told = "\n".join(await self.texts(job_id))
                raise AssertionError(f"{job.current_state.name} instead of {state}:\n{told}")
            await asyncio.sleep(0.02)
        return job

    async def told(self, job_id, **filters):
        request = df.ListJobMessagesRequest(job_id=job_id, **filters, **PLACE)
        pages = await self.messages.list_job_messages(request, timeout=DEADLINE)
        return [message async for message in pages]

    async def texts(self, job_id, **filters):
        return [message.message_text for message in await self.told(job_id, **filters)]

    async def names(self, **filters):
        pages = await self.jobs.list_jobs(df.ListJobsRequest(**filters, **PLACE), timeout=DEADLINE)
        return [job.name async for job in pages]

    async def all_metrics(self, job_id, **filters):
        request = df.GetJobMetricsRequest(job_id=job_id, **filters, **PLACE)
        return list((await self.metrics.get_job_metrics(request, timeout=DEADLINE)).metrics)

    async def counters(self, job_id):
        """The counters of the job's code by name and whether they are tentative."""
        return {
            (metric.name.name, metric.name.context.get("tentative", "")): metric.scalar
            for metric in await self.all_metrics(job_id)
            if metric.name.origin == "user"
        }

    async def scalings(self, job_id):
        """The autoscaling events as (kind, workers, text)."""
        request = df.ListJobMessagesRequest(job_id=job_id, **PLACE)
        pager = await self.messages.list_job_messages(request, timeout=DEADLINE)
        page = await anext(aiter(pager.pages))
        return [
            (event.event_type.name, event.current_num_workers, event.description.message_text)
            for event in page.autoscaling_events
        ]
