"""What the calls of the local Dataflow server answer and refuse, seen through Google's own clients."""

from __future__ import annotations

import pytest
from google.api_core import exceptions
from google.cloud import dataflow_v1beta3 as df
from google.protobuf import field_mask_pb2
from google.rpc import status_pb2

from tests.dataflow_client import BATCH, CHECKED, PLACE, SAMPLE, DataflowClient, local_dataflow


@pytest.fixture
async def client(tmp_path):
    async with local_dataflow(tmp_path) as server, DataflowClient(server.address) as made:
        yield made


def violations_of(error):
    """The InvalidTemplateParameters in a refusal's rich status, as (parameter, description)."""
    metadata = dict(error.value.errors[0].trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    detail = df.InvalidTemplateParameters.pb()()
    assert status.details[0].Unpack(detail)
    return [(violation.parameter, violation.description) for violation in detail.parameter_violations]


async def test_an_unknown_job_is_not_found_by_any_call(client):
    job = await client.launch("short-job", finish="yes")
    for job_id, place in [
        ("2026-01-01_00_00_00-1", {}),
        (job.id, {"project_id": "another-project"}),
        (job.id, {"location": "europe-west1"}),
    ]:
        with pytest.raises(exceptions.NotFound, match="could not be found in our system"):
            await client.get(job_id, **place)
    with pytest.raises(exceptions.NotFound):
        await client.request_state("nothing", "CANCELLED")
    with pytest.raises(exceptions.NotFound):
        await client.told("nothing")
    with pytest.raises(exceptions.NotFound):
        await client.counters("nothing")


@pytest.mark.parametrize(
    "path", ["gs://signin-local/templates/absent.json", "gs://other-bucket/user-signin.json"]
)
async def test_a_template_that_does_not_exist_is_named(client, path):
    with pytest.raises(exceptions.NotFound, match=path):
        await client.launch("no-template", path=path)


@pytest.mark.parametrize("path", ["", "/tmp/template.json"])
async def test_a_template_outside_a_bucket_is_refused(client, path):
    with pytest.raises(exceptions.InvalidArgument):
        await client.launch("no-template", path=path)


async def test_parameters_are_checked_against_the_template(client):
    with pytest.raises(exceptions.InvalidArgument, match="template parameters are invalid") as error:
        await client.launch("checked-job", path=CHECKED, greeting="HELLO", colour="blue")
    assert violations_of(error) == [
        ("colour", "Unrecognized parameter"),
        ("greeting", "Parameter didn't match regex '^[a-z]+$'"),
    ]
    with pytest.raises(exceptions.InvalidArgument) as error:
        await client.launch("checked-job", path=CHECKED)
    assert violations_of(error) == [("greeting", "Missing required parameter")]
    assert not await client.names()


@pytest.mark.parametrize("name", ["", "Upper", "1job", "job-", "a_b", "a" * 1025])
async def test_job_names_that_dataflow_refuses_are_refused(client, name):
    with pytest.raises(exceptions.InvalidArgument, match="JobName invalid"):
        await client.launch(name)


@pytest.mark.parametrize(
    "labels",
    [{"Key": "v"}, {"": "v"}, {"1k": "v"}, {"k": "V"}, {"k": "v" * 64}, {f"k{n}": "" for n in range(65)}],
)
async def test_labels_that_dataflow_refuses_are_refused(client, labels):
    with pytest.raises(exceptions.InvalidArgument):
        await client.launch("labelled", labels=labels)


async def test_a_launch_that_is_only_validated_makes_no_job(client):
    answer = await client.launch("dry-job", validate_only=True)
    assert not answer.id
    assert not await client.names()


async def test_jobs_are_listed_newest_first_in_pages_and_filtered(client):
    names = [f"job-{number}" for number in range(3)]
    jobs = [await client.launch_running(name) for name in names]
    await client.request_state(jobs[0].id, "CANCELLED")
    await client.until(jobs[0].id, "CANCELLED")
    assert await client.names(page_size=2) == names[::-1]
    assert await client.names(page_size=1, filter="ACTIVE") == ["job-2", "job-1"]
    assert await client.names(filter="TERMINATED") == ["job-0"]
    assert await client.names(name="job-1") == ["job-1"]
    first = await client.jobs.list_jobs(df.ListJobsRequest(page_size=1, **PLACE), timeout=5)
    assert first.next_page_token
    with pytest.raises(exceptions.InvalidArgument, match="page token"):
        await client.names(page_token="nonsense")
    with pytest.raises(exceptions.InvalidArgument):
        await client.told(jobs[0].id, page_token=first.next_page_token)


async def test_jobs_of_all_regions_are_listed_together(client):
    await client.launch("here", finish="yes")
    request = df.LaunchFlexTemplateRequest(
        project_id=PLACE["project_id"],
        location="europe-west1",
        launch_parameter=df.LaunchFlexTemplateParameter(
            job_name="there", container_spec_gcs_path=SAMPLE, parameters={"finish": "yes"}
        ),
    )
    await client.flex.launch_flex_template(request, timeout=5)
    assert await client.names() == ["here"]
    pages = await client.jobs.aggregated_list_jobs(df.ListJobsRequest(**PLACE), timeout=5)
    assert [job.name async for job in pages] == ["there", "here"]
    checked = await client.jobs.check_active_jobs(df.CheckActiveJobsRequest(project_id="another"), timeout=5)
    assert not checked.active_jobs_exist


async def test_the_environment_that_was_asked_for_is_shown_and_left_out_of_a_summary(client):
    environment = df.FlexTemplateRuntimeEnvironment(
        num_workers=2,
        max_workers=5,
        machine_type="n2-standard-2",
        worker_region="us-central1",
        service_account_email="jobs@signin-local.iam.gserviceaccount.com",
        additional_experiments=["one"],
        temp_location="gs://bucket/temp",
    )
    launch = df.LaunchFlexTemplateParameter(
        job_name="furnished", container_spec_gcs_path=SAMPLE, environment=environment
    )
    request = df.LaunchFlexTemplateRequest(launch_parameter=launch, **PLACE)
    job = (await client.flex.launch_flex_template(request, timeout=5)).job
    shown = (await client.get(job.id)).environment
    pool = shown.worker_pools[0]
    assert (pool.machine_type, pool.num_workers) == ("n2-standard-2", 2)
    assert pool.autoscaling_settings.max_num_workers == 5
    assert shown.service_account_email == "jobs@signin-local.iam.gserviceaccount.com"
    assert (list(shown.experiments), shown.temp_storage_prefix) == (["one"], "bucket/temp")
    assert not (await client.get(job.id, df.JobView.JOB_VIEW_SUMMARY)).environment.worker_pools


async def test_a_summary_leaves_the_labels_out(client):
    job = await client.launch_running("labelled", labels={"token": "abc"})
    for view in (df.JobView.JOB_VIEW_SUMMARY, df.JobView.JOB_VIEW_UNKNOWN):
        assert not (await client.get(job.id, view)).labels
    for view in (df.JobView.JOB_VIEW_DESCRIPTION, df.JobView.JOB_VIEW_ALL):
        assert (await client.get(job.id, view)).labels == {"token": "abc"}


def mask_of(*fields):
    return field_mask_pb2.FieldMask(paths=[f"runtime_updatable_params.{field}" for field in fields])


async def change(client, job_id, **params):
    """Changes the runtime parameters that are named and no others."""
    wanted = df.Job(runtime_updatable_params=df.RuntimeUpdatableParams(**params))
    request = df.UpdateJobRequest(job_id=job_id, job=wanted, update_mask=mask_of(*params), **PLACE)
    return await client.jobs.update_job(request, timeout=5)


async def test_a_running_jobs_worker_bounds_can_be_changed_one_by_one(client):
    job = await client.launch_running("scaling")
    answer = await change(client, job.id, min_num_workers=2, max_num_workers=4)
    assert answer.runtime_updatable_params.max_num_workers == 4
    await change(client, job.id, worker_utilization_hint=0.7)
    await change(client, job.id, max_num_workers=8)
    shown = (await client.get(job.id, df.JobView.JOB_VIEW_ALL)).runtime_updatable_params
    assert (shown.min_num_workers, shown.max_num_workers) == (2, 8)
    assert shown.worker_utilization_hint == pytest.approx(0.7)
    kinds = [(kind, workers) for kind, workers, _ in await client.scalings(job.id)]
    assert kinds == [("CURRENT_NUM_WORKERS_CHANGED", 1), *[("NO_CHANGE", 1)] * 3]
    assert "min_num_workers 2, max_num_workers 4" in (await client.scalings(job.id))[1][2]


@pytest.mark.parametrize(
    "params",
    [
        {"min_num_workers": 9},  # above the maximum that it has
        {"max_num_workers": 0},
        {"max_num_workers": 5_000},
        {"min_num_workers": -1},
        {"worker_utilization_hint": 1.5},
    ],
)
async def test_bounds_that_make_no_sense_change_nothing(client, params):
    job = await client.launch_running("scaling")
    await change(client, job.id, min_num_workers=2, max_num_workers=4)
    with pytest.raises(exceptions.InvalidArgument):
        await change(client, job.id, **params)
    shown = (await client.get(job.id)).runtime_updatable_params
    assert (shown.min_num_workers, shown.max_num_workers) == (2, 4)


async def test_a_job_that_does_not_run_cannot_be_scaled(client):
    job = await client.launch("slow-job", slow="yes")
    with pytest.raises(exceptions.FailedPrecondition, match="Operation update not allowed"):
        await change(client, job.id, max_num_workers=4)


async def test_a_batch_job_can_be_cancelled_and_neither_drained_updated_nor_scaled(client):
    job = await client.launch_running("batch", path=BATCH)
    assert job.type_ == df.JobType.JOB_TYPE_BATCH
    acts = {
        "drain": lambda: client.request_state(job.id, "DRAINED"),
        "update": lambda: client.launch("batch", path=BATCH, update=True),
        "scale": lambda: change(client, job.id, max_num_workers=4),
    }
    for act in acts.values():
        with pytest.raises(exceptions.FailedPrecondition, match="this is a batch job"):
            await act()
    shown = await client.get(job.id, df.JobView.JOB_VIEW_ALL)
    assert (shown.current_state.name, shown.requested_state.name) == (
        "JOB_STATE_RUNNING",
        "JOB_STATE_UNKNOWN",
    )
    assert not shown.runtime_updatable_params
    assert await client.names() == ["batch"]
    await client.request_state(job.id, "CANCELLED")
    await client.until(job.id, "CANCELLED")


@pytest.mark.parametrize(
    ("job", "mask"),
    [
        ({"requested_state": "JOB_STATE_DRAINED"}, mask_of("max_num_workers")),
        ({"requested_state": "JOB_STATE_RUNNING"}, None),
        ({"name": "other"}, field_mask_pb2.FieldMask(paths=["name"])),
        ({}, None),
    ],
)
async def test_updates_that_make_no_sense_are_invalid(client, job, mask):
    launched = await client.launch("some-job", slow="yes")
    request = df.UpdateJobRequest(job_id=launched.id, job=df.Job(**job), update_mask=mask, **PLACE)
    with pytest.raises(exceptions.InvalidArgument):
        await client.jobs.update_job(request, timeout=5)


async def test_what_is_not_offered_is_unimplemented(client):
    with pytest.raises(exceptions.MethodNotImplemented):
        await client.metrics.get_job_execution_details(
            df.GetJobExecutionDetailsRequest(job_id="x", **PLACE), timeout=5
        )
