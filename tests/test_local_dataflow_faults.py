"""The faults of the local Dataflow server: jobs that are hidden, late, or in a state that nobody knows."""

from __future__ import annotations

import asyncio

import pytest
from google.api_core import exceptions
from google.cloud import dataflow_v1beta3 as df

from service.local.faults import Fault
from tests.dataflow_client import PLACE, DataflowClient, local_dataflow


async def test_faults_hit_the_named_method(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        server.faults.set([Fault(method="LaunchFlexTemplate", code="UNAVAILABLE", after=True, times=1)])
        with pytest.raises(exceptions.ServiceUnavailable):
            await client.launch("hidden-success", finish="yes")
        assert await client.names() == ["hidden-success"]


async def test_a_job_that_is_hidden_is_missing_from_every_look_for_as_many_calls(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        await client.launch("older", slow="yes")
        job = await client.launch("hidden", slow="yes")
        server.faults.set(
            [
                Fault(method="ListJobs", hide="job", job="hidden", times=2),
                Fault(method="GetJob", hide="job", job=job.id, times=1),
                Fault(method="UpdateJob", hide="job", job=job.id, times=1),
            ]
        )
        assert [await client.names() for _ in range(3)] == [["older"], ["older"], ["hidden", "older"]]
        with pytest.raises(exceptions.NotFound):
            await client.get(job.id)
        with pytest.raises(exceptions.NotFound):
            await client.request_state(job.id, "CANCELLED")
        assert (await client.get(job.id)).current_state.name in ("JOB_STATE_QUEUED", "JOB_STATE_PENDING")


async def test_a_young_job_is_not_visible_yet_and_an_older_one_is(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        older = await client.launch("older", slow="yes")
        server.faults.set([Fault(hide="job", younger_than_seconds=60)])
        await client.launch("young", slow="yes")
        assert await client.names() == []
        long_ago = server._fleet.jobs[older.id].proto.create_time
        long_ago.FromSeconds(long_ago.seconds - 61)
        assert await client.names() == ["older"]


async def test_labels_can_come_later_than_their_job(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        job = await client.launch("labelled", labels={"token": "abc"}, slow="yes")
        server.faults.set([Fault(method="GetJob", hide="labels", times=1)])
        assert [dict((await client.get(job.id)).labels) for _ in range(2)] == [{}, {"token": "abc"}]


async def test_a_location_that_cannot_be_reached_is_told_in_the_list(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        await client.launch("some-job", slow="yes")
        server.faults.set([Fault(method="ListJobs", hide="location")])
        page = await client.jobs.list_jobs(df.ListJobsRequest(**PLACE), timeout=5)
        assert [failed.name for failed in page.failed_location] == [PLACE["location"]]
        assert not page.jobs


@pytest.mark.parametrize(("word", "number"), [("PAUSED", 14), ("77", 77)])
async def test_a_job_can_be_shown_in_any_state_known_or_not(tmp_path, word, number):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        job = await client.launch("odd-job", slow="yes")
        server.faults.set([Fault(method="GetJob", state=word), Fault(method="ListJobs", state=word)])
        assert df.Job.pb(await client.get(job.id)).current_state == number
        page = await client.jobs.list_jobs(df.ListJobsRequest(**PLACE), timeout=5)
        assert [df.Job.pb(listed).current_state for listed in page.jobs] == [number]
        with pytest.raises(ValueError, match="SLEEPING"):
            server.faults.set([Fault(state="SLEEPING")])


async def test_a_launch_whose_caller_has_gone_takes_effect_later(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        server.faults.set([Fault(method="LaunchFlexTemplate", hold=True, late=True)])
        async with DataflowClient(server.address) as mortal:
            launch = asyncio.ensure_future(mortal.launch("late-job", slow="yes"))
            await server.faults.until_held("LaunchFlexTemplate")
        with pytest.raises((asyncio.CancelledError, exceptions.GoogleAPICallError)):
            await launch
        assert await client.names() == []
        server.faults.set([])
        async with asyncio.timeout(5):
            while await client.names() != ["late-job"]:  # noqa: ASYNC110 - the list has no event
                await asyncio.sleep(0.01)
