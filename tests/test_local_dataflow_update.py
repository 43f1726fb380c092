"""The update of a running job in the local Dataflow server: it takes over, or leaves the old one alone."""

from __future__ import annotations

import pytest
from google.api_core import exceptions
from google.cloud import dataflow_v1beta3 as df

from service.local.dataflow.fleet import Limits
from service.local.dataflow.job import LocalJob, ProtoJob, ProtoLaunch
from service.local.dataflow.replacement import incompatibility
from tests.dataflow_client import MISSING_MODULE, DataflowClient, local_dataflow


@pytest.fixture
async def client(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as made:
        yield made


@pytest.fixture
def gate(tmp_path):
    """A file that a replacement waits for before it runs."""
    return tmp_path / "gate"


async def test_the_old_job_runs_on_until_the_new_one_does(client, gate):
    old = await client.launch_running("updated")
    new = await client.launch("updated", update=True, gate=str(gate))
    await client.until(new.id, "PENDING")
    waiting = await client.get(old.id)
    assert (waiting.current_state.name, waiting.replaced_by_job_id) == ("JOB_STATE_RUNNING", "")
    gate.touch()
    await client.until(new.id, "RUNNING")
    replaced = await client.until(old.id, "UPDATED")
    assert replaced.replaced_by_job_id == new.id
    assert (await client.get(new.id)).replace_job_id == old.id
    assert await client.names(filter="ACTIVE") == ["updated"]


async def assert_untouched(client, job_id):
    """The job runs, is replaced by nobody, and can be updated again."""
    job = await client.get(job_id)
    assert (job.current_state.name, job.replaced_by_job_id) == ("JOB_STATE_RUNNING", "")
    again = await client.launch(job.name, update=True)
    await client.until(again.id, "RUNNING")
    await client.until(job_id, "UPDATED")


async def test_a_replacement_that_cannot_start_leaves_the_old_job_running(client):
    old = await client.launch_running("updated")
    new = await client.launch("updated", update=True, path=MISSING_MODULE)
    await client.until(new.id, "FAILED")
    await assert_untouched(client, old.id)


async def test_a_replacement_without_a_step_of_the_old_job_fails_and_names_it(client):
    old = await client.launch_running("updated", graph="Read,Decode,Write")
    new = await client.launch("updated", update=True, graph="Read,Write", slow="yes")
    await client.until(new.id, "FAILED")
    said = (await client.texts(new.id))[-1]
    assert f"The new job is not compatible with {old.id}. The original job has not been aborted." in said
    assert "The new job is missing steps Decode. If these steps have been renamed or deleted" in said
    await assert_untouched(client, old.id)


async def test_a_renamed_step_is_mapped_to_its_new_name(client):
    old = await client.launch_running("updated", graph="Read,Decode,Write")
    new = await client.launch(
        "updated", update=True, graph="Read,Parse", mappings={"Decode": "Parse", "Write": ""}
    )
    await client.until(new.id, "RUNNING")
    await client.until(old.id, "UPDATED")
    shown = await client.get(new.id, df.JobView.JOB_VIEW_ALL)
    assert [step.properties["user_name"] for step in shown.steps] == ["Read", "Parse"]
    assert shown.transform_name_mapping == {"Decode": "Parse", "Write": ""}
    assert not (await client.get(new.id)).steps


async def test_a_cancelled_replacement_leaves_the_old_job_running(client, gate):
    old = await client.launch_running("updated")
    new = await client.launch("updated", update=True, gate=str(gate))
    await client.request_state(new.id, "CANCELLED")
    await client.until(new.id, "CANCELLED")
    await assert_untouched(client, old.id)


@pytest.mark.parametrize("state", ["DRAINED", "CANCELLED"])
async def test_who_ends_the_old_job_ends_the_replacement_that_waits(client, gate, state):
    old = await client.launch_running("updated")
    new = await client.launch("updated", update=True, gate=str(gate))
    await client.request_state(old.id, state)
    await client.until(new.id, "FAILED")
    assert f"The job {old.id}, which was to be updated, is in state" in (await client.texts(new.id))[-1]
    await client.until(old.id, state)
    assert await client.names(filter="ACTIVE") == []


async def test_a_job_is_not_updated_twice_at_once(client, gate):
    old = await client.launch_running("updated")
    await client.launch("updated", update=True, gate=str(gate))
    with pytest.raises(exceptions.FailedPrecondition, match="is being updated"):
        await client.launch("updated", update=True)
    with pytest.raises(exceptions.AlreadyExists):
        await client.launch("updated")
    assert (await client.get(old.id)).current_state.name == "JOB_STATE_RUNNING"


async def test_a_job_that_is_being_replaced_can_no_longer_be_ended(client):
    old = await client.launch_running("updated", deaf="yes")
    new = await client.launch("updated", update=True)
    await client.until(new.id, "RUNNING")
    for state in ("DRAINED", "CANCELLED"):
        with pytest.raises(exceptions.FailedPrecondition, match=f"is being replaced by {new.id}"):
            await client.request_state(old.id, state)


async def test_an_old_worker_that_does_not_listen_is_killed_and_its_job_is_updated_all_the_same(tmp_path):
    limits = Limits(replace_grace_seconds=0.2)
    async with (
        local_dataflow(tmp_path, limits=limits) as server,
        DataflowClient(server.address) as client,
    ):
        old = await client.launch_running("updated", deaf="yes")
        new = await client.launch("updated", update=True)
        await client.until(new.id, "RUNNING")
        await client.until(old.id, "UPDATED")
        assert "not gone 0.2 s after SIGTERM" in (await client.texts(old.id))[-1]


async def test_an_update_goes_on_after_a_restart_of_the_server(tmp_path, gate):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        old = await client.launch_running("updated")
        new = await client.launch("updated", update=True, gate=str(gate))
        await client.until(new.id, "PENDING")
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as client:
        await client.until(old.id, "RUNNING")
        gate.touch()
        await client.until(new.id, "RUNNING")
        await client.until(old.id, "UPDATED")
        await client.request_state(new.id, "DRAINED")
        await client.until(new.id, "DRAINED")


def job_with(steps, mapping=None):
    job = LocalJob(0, ProtoJob(id="old-id", transform_name_mapping=mapping or {}), ProtoLaunch())
    job.said_graph(steps)
    return job


@pytest.mark.parametrize(
    ("before", "after", "mapping", "said"),
    [
        (["A", "B"], ["A", "B", "C"], {}, ""),
        (["A", "B"], ["B"], {}, "missing steps A."),
        (["A", "B"], ["B"], {"A": ""}, ""),
        (["Group/A", "Group/B"], ["New/A", "New/B"], {"Group": "New"}, ""),
        (["Group/A", "Group/B"], ["New/A", "Other"], {"Group": "New", "Group/B": "Other"}, ""),
        (["Group/A", "Group/B"], [], {}, ""),  # a graph that is not known
        (["Group/A", "B"], ["B"], {"Group": ""}, ""),
        (["A"], ["B"], {"A": "C"}, "missing steps A."),
        (["A"], ["A"], {"X": "Y"}, "names steps that the old job does not have: X."),
    ],
)
def test_a_graph_takes_over_where_every_old_step_is_there_or_mapped(before, after, mapping, said):
    told = incompatibility(job_with(before), job_with(after, mapping))
    assert said in told
    assert bool(told) == bool(said)
