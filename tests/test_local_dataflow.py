"""The life of a job in the local Dataflow server, seen through Google's own clients."""

from __future__ import annotations

import os
import signal

import pytest
from google.api_core import exceptions
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow.fleet import Limits
from tests.dataflow_client import MISSING_MODULE, DataflowClient, local_dataflow


@pytest.fixture
async def client(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as made:
        yield made


async def test_a_job_runs_and_drains(client):
    answer = await client.launch("first-job", labels={"team": "identity"}, greeting="hello")
    assert answer.name == "first-job"
    assert answer.location == "us-central1"
    assert answer.current_state == df.JobState.JOB_STATE_UNKNOWN
    job = await client.until(answer.id, "RUNNING")
    assert job.labels == {"team": "identity"}
    drained = await client.request_state(job.id, "DRAINED")
    assert drained.current_state == df.JobState.JOB_STATE_DRAINING
    assert drained.requested_state == df.JobState.JOB_STATE_DRAINED
    await client.until(job.id, "DRAINED")
    texts = await client.texts(job.id)
    assert "INFO greeting=hello project=signin-local job_name=first-job" in texts
    assert any(text.startswith(f"INFO job={job.id} ") for text in texts)


async def test_a_job_that_ends_by_itself_is_done(client):
    job = await client.launch("short-job", finish="yes")
    await client.until(job.id, "DONE")
    assert not await client.names(filter="ACTIVE")


async def test_a_job_is_cancelled_also_while_it_drains(tmp_path):
    patient = Limits(cancel_grace_seconds=60)
    async with local_dataflow(tmp_path, limits=patient) as server, DataflowClient(server.address) as client:
        job = await client.launch_running("deaf-job", deaf="yes")
        await client.request_state(job.id, "DRAINED")
        answer = await client.request_state(job.id, "CANCELLED")
        assert answer.current_state == df.JobState.JOB_STATE_CANCELLING
        with pytest.raises(exceptions.FailedPrecondition):
            await client.request_state(job.id, "DRAINED")
        await client.request_state(job.id, "CANCELLED", labels={"force_cancel_job": "true"})
        await client.until(job.id, "CANCELLED", seconds=15)


async def test_a_cancelled_job_that_does_not_listen_is_killed(client):
    job = await client.launch_running("deaf-job", deaf="yes")
    await client.request_state(job.id, "CANCELLED")
    await client.until(job.id, "CANCELLED")
    assert any("not gone 2 s after SIGINT" in text for text in await client.texts(job.id))


async def test_a_job_cannot_be_drained_before_it_runs(client):
    job = await client.launch("slow-job", slow="yes")
    with pytest.raises(exceptions.FailedPrecondition, match="not yet ready for draining"):
        await client.request_state(job.id, "DRAINED")
    await client.request_state(job.id, "CANCELLED")
    await client.until(job.id, "CANCELLED")


async def test_a_terminal_job_cannot_be_changed(client):
    job = await client.launch("short-job", finish="yes")
    await client.until(job.id, "DONE")
    for state in ("DRAINED", "CANCELLED"):
        with pytest.raises(exceptions.FailedPrecondition, match="terminal state"):
            await client.request_state(job.id, state)


async def test_a_failed_job_carries_the_last_lines_of_its_log(client):
    job = await client.launch("failing-job", fail="3")
    await client.until(job.id, "FAILED")
    errors = await client.texts(job.id, minimum_importance="JOB_MESSAGE_ERROR")
    assert "exit code 3" in errors[-1]
    assert "the last words of the sample job" in errors[-1]


async def test_a_job_whose_drain_fails_has_failed(client):
    job = await client.launch_running("failing-drain", fail_drain="yes")
    await client.request_state(job.id, "DRAINED")
    await client.until(job.id, "FAILED")


async def test_a_killed_child_is_a_failed_job_that_names_the_signal(client, tmp_path):
    started = tmp_path / "started"
    job = await client.launch_running("killed-job", started_file=str(started))
    os.kill(int(started.read_text()), signal.SIGKILL)
    await client.until(job.id, "FAILED")
    assert "signal SIGKILL" in (await client.texts(job.id))[-1]


async def test_a_job_whose_module_cannot_be_found_fails_with_the_reason(client):
    job = await client.launch("no-module", path=MISSING_MODULE)
    await client.until(job.id, "FAILED")
    assert "tests.no_such_job" in (await client.texts(job.id))[-1]


async def test_a_name_is_taken_until_its_job_has_ended(client):
    job = await client.launch_running("same-name")
    with pytest.raises(exceptions.AlreadyExists, match="already an active job named same-name"):
        await client.launch("same-name")
    await client.request_state(job.id, "DRAINED")
    await client.until(job.id, "DRAINED")
    again = await client.launch("same-name", finish="yes")
    assert again.id != job.id


async def test_a_draining_job_still_holds_its_name(client):
    job = await client.launch_running("same-name", deaf="yes")
    await client.request_state(job.id, "DRAINED")
    with pytest.raises(exceptions.AlreadyExists):
        await client.launch("same-name")
    await client.request_state(job.id, "CANCELLED", labels={"force_cancel_job": "true"})


async def test_an_update_replaces_the_running_job(client):
    with pytest.raises(exceptions.FailedPrecondition, match="no active job named"):
        await client.launch("updated", update=True)
    old = await client.launch_running("updated", greeting="old")
    new = await client.launch("updated", update=True, greeting="new")
    await client.until(new.id, "RUNNING")
    replaced = await client.until(old.id, "UPDATED")
    assert replaced.replaced_by_job_id == new.id
    assert (await client.get(new.id)).replace_job_id == old.id


async def test_no_more_jobs_run_than_the_quota_allows(tmp_path):
    async with (
        local_dataflow(tmp_path, limits=Limits(active_jobs=1)) as server,
        DataflowClient(server.address) as client,
    ):
        await client.launch("one", slow="yes")
        with pytest.raises(exceptions.ResourceExhausted, match="project limit for active jobs is 1"):
            await client.launch("two")
