"""The local Dataflow server as a process and its data directory: stops, kills and restarts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow.fleet import Limits
from service.local.dataflow.store import DataDirInUseError
from tests.dataflow_client import ROOT, SAMPLE, DataflowClient, local_dataflow, until_gone


@pytest.fixture
async def start(tmp_path):
    """Starts a server process on the data directory; returns it with its address once it is ready."""
    processes = []

    async def starting():
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "service.local.lifeline", "service.local.dataflow"),
            *("--data-dir", str(tmp_path / "dataflow"), "--template", f"{SAMPLE}=tests.sample_job"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        return process, json.loads(line)["ready"] if line else ""

    yield starting
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_server_killed_hard_leaves_no_child_and_resumes_its_jobs(start, tmp_path):
    started = tmp_path / "started"
    process, address = await start()
    async with DataflowClient(address) as client:
        job = await client.launch_running("survivor", started_file=str(started))
    process.kill()
    await process.wait()
    await until_gone(int(started.read_text()), seconds=5)

    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        await client.until(job.id, "RUNNING")
        assert (await client.counters(job.id))["parsed", ""] == 6
        await client.request_state(job.id, "DRAINED")
        await client.until(job.id, "DRAINED")


async def test_sigterm_ends_the_server_softly_with_its_children(start, tmp_path):
    started = tmp_path / "started"
    process, address = await start()
    async with DataflowClient(address) as client:
        await client.launch_running("softly", started_file=str(started))
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 15) == 0
    await until_gone(int(started.read_text()))


async def test_a_second_server_on_the_directory_says_who_holds_it(start):
    first, _ = await start()
    second, address = await start()
    assert not address
    _, errors = await second.communicate()
    assert second.returncode == 1
    assert f"(process {first.pid})" in errors.decode()


async def test_the_oldest_finished_jobs_are_forgotten(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        for number in range(5):
            job = await client.launch(f"job-{number}", finish="yes")
            await client.until(job.id, "DONE")
        assert await client.names() == ["job-4", "job-3", "job-2"]
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        assert await client.names() == ["job-4", "job-3", "job-2"]


async def test_a_soft_stop_keeps_the_state_and_the_next_start_resumes(tmp_path):
    started = tmp_path / "started"
    async with local_dataflow(tmp_path, limits=Limits()) as server, DataflowClient(server.address) as client:
        kept = await client.launch_running("kept", labels={"a": "b"}, started_file=str(started))
        ended = await client.launch("ended", finish="yes")
        await client.until(ended.id, "DONE")
    await until_gone(int(started.read_text()))
    async with local_dataflow(tmp_path, limits=Limits()) as server, DataflowClient(server.address) as client:
        job = await client.until(kept.id, "RUNNING")
        assert job.labels == {"a": "b"}
        assert (await client.get(ended.id)).current_state == df.JobState.JOB_STATE_DONE
        assert len(started.read_text().split()) == 2
        assert any("worker is replaced" in text for text in await client.texts(kept.id))
        # The first worker drained at the stop: 5; the second has counted 3 so far.
        assert (await client.counters(kept.id))["parsed", ""] == 8


async def test_a_job_that_was_ending_has_ended_after_a_restart(tmp_path):
    limits = Limits(close_grace_seconds=0.1, cancel_grace_seconds=60)
    async with local_dataflow(tmp_path, limits=limits) as server, DataflowClient(server.address) as client:
        draining = await client.launch_running("draining", deaf="yes")
        await client.request_state(draining.id, "DRAINED")
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        assert (await client.get(draining.id)).current_state == df.JobState.JOB_STATE_DRAINED


async def test_one_data_directory_serves_one_server(tmp_path):
    async with local_dataflow(tmp_path):
        with pytest.raises(DataDirInUseError, match="is in use by another local Dataflow server"):
            await local_dataflow(tmp_path).__aenter__()


async def test_a_file_that_is_no_job_does_not_stop_the_server(tmp_path):
    jobs = tmp_path / "dataflow" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "broken.json").write_bytes(b"{")
    (jobs / "binary.json").write_bytes(b'{"number":1,"job":{"name":"\xff"}}')
    (jobs / "folder.json").mkdir()
    (jobs / "nameless.json").write_bytes(b'{"number":2,"job":{},"launch":{},"messages":[],"metrics":[]}')
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        assert not await client.names()
    assert {path.name for path in jobs.iterdir()} == {
        f"{name}.unreadable" for name in ("broken", "binary", "folder", "nameless")
    }
